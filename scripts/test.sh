#!/usr/bin/env bash
# Set up .venv and run all checks: ruff, mypy, pytest. Extra arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
use_environment dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two processes at a time; the tests of a file stay together, because they share what they set up.
.venv/bin/python -m pytest -n 2 --dist loadfile "$@"
