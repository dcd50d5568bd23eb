#!/usr/bin/env bash
# Set up .venv, train a small model on synthetic identities, evaluate it on held-out ones, show the table.
# Safe to run again: what is installed stays, a finished run is evaluated from its checkpoint. Extra arguments go to train.py.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
use_environment train
echo "training on synthetic identities (drawn faces, no photographs): configs/quickstart.yaml"
.venv/bin/python train.py --config configs/quickstart.yaml --resume "$@"
