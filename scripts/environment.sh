# Sourced by quickstart.sh and test.sh: makes .venv once and installs the given extra of setup.py into it.

fail() { echo "error: $*" >&2; exit 1; }

# use_environment EXTRA: afterwards .venv/bin/python has the project's requirements.
use_environment() {
    local extra=$1 python=${PYTHON:-python3}
    command -v "$python" >/dev/null || fail "'$python' not found: install Python 3.10 or newer, or set PYTHON=/path/to/python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$python" --version) is too old: Python 3.10 or newer is needed (set PYTHON=/path/to/a/newer/python3)"
    if [ ! -x .venv/bin/python ]; then
        echo "making .venv with $("$python" --version)"
        "$python" -m venv .venv || fail "could not make .venv: on Debian or Ubuntu, 'apt-get install python3-venv' and run again"
    fi
    local stamp=.venv/installed-$extra-$(cksum <setup.py | cut -d' ' -f1)
    if [ ! -e "$stamp" ]; then
        echo "installing the requirements of setup.py[$extra] into .venv (torch is large; a few minutes)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$extra]" ||
            fail "installation failed: see pip's message above; run again when it is mended (what is installed is kept)"
        touch "$stamp"
    fi
}
