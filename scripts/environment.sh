# Sourced by quickstart.sh and test.sh: makes .venv and installs the given extra of pyproject.toml.

fail() { echo "error: $*" >&2; exit 1; }

# use_environment EXTRA: afterwards .venv/bin/python has the project's requirements, in the versions
# of requirements.lock. LOCK=other.lock uses another file, and an empty LOCK lets pip choose.
use_environment() {
    local extra=$1 python=${PYTHON:-python3} lock=${LOCK-requirements.lock}
    command -v "$python" >/dev/null ||
        fail "'$python' not found: install Python 3.10 or newer, or set PYTHON=/path/to/python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$python" --version) is too old: set PYTHON=/path/to/python3, version 3.10 or newer"
    [ -z "$lock" ] || [ -r "$lock" ] || fail "'$lock' cannot be read: set LOCK to a lock file, or empty"
    if [ ! -x .venv/bin/python ]; then
        echo "making .venv with $("$python" --version)"
        "$python" -m venv .venv ||
            fail "could not make .venv: on Debian or Ubuntu, 'apt-get install python3-venv' and run again"
    fi

    # The name of the stamp changes whenever the requirements or the locked versions do.
    local sum
    sum=$(cat pyproject.toml ${lock:+"$lock"} | cksum | cut -d' ' -f1)
    local stamp=.venv/installed-$extra-$sum
    if [ ! -e "$stamp" ]; then
        echo "installing fastface[$extra] into .venv (torch is large: this takes a few minutes)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check \
            ${lock:+--constraint "$lock"} --editable ".[$extra]" ||
            fail "the installation failed: mend what pip names above and run again (what is installed is kept)"
        touch "$stamp"
    fi
}
