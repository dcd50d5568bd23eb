#!/usr/bin/env bash
# Write requirements.lock: one version of every package that the extras of pyproject.toml install, for
# Python 3.10 and newer on Linux and macOS. It needs uv (`pip install uv`) and the package index.
# Versions of the present lock are kept where they still fit; `--upgrade` replaces all of them.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
command -v uv >/dev/null || fail "'uv' not found: pip install uv"
keep=(--constraint requirements.lock)
[ "${1:-}" != --upgrade ] || keep=()

# CUDA's libraries and triton are left out: they follow torch's build, which the user may choose.
# colorama is for Windows alone.
locked=$(uv pip compile --quiet --universal --python-version 3.10 --all-extras --no-annotate \
    --no-header ${keep[@]+"${keep[@]}"} pyproject.toml | grep -vE '^(cuda-|nvidia-|triton=|colorama=)')
{
    echo "# Versions that scripts/quickstart.sh and scripts/test.sh install; written by scripts/lock.sh."
    echo "$locked"
} >requirements.lock
