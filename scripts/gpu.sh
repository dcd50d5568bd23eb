#!/usr/bin/env bash
# Set up .venv and measure training on this machine's GPU: python -m scripts.bench.gpu. Extra arguments go to it.
# Safe to run again: what is installed and what was measured stays.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
use_environment dev
.venv/bin/python -m scripts.bench.gpu "$@"
