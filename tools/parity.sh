#!/usr/bin/env bash
# Compares every model family with Hugging Face Transformers and prints one table. Downloads no weights.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh test,hf
export JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 PYTHONPATH=.
python tools/parity.py
