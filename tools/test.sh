#!/usr/bin/env bash
# Installs the dependencies of the tests into .venv (or the active virtual environment) and runs all checks.
#   bash tools/test.sh            linters, type checker and fast tests
#   bash tools/test.sh --all      also the slow tests
#   bash tools/test.sh -k name    other arguments are passed to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh test,hf,hfdata,webdataset,cleaning,retrieval,eval,docs,quantization,wandb,mlflow

arguments=()
slow=(-m "not slow")
for argument in "$@"; do
  if [[ "$argument" == "--all" ]]; then
    slow=()
    # Change foreign files in every way, and read exports as llama.cpp does, in the slow tests alone.
    python -m pip install -q "hypothesis>=6.140" "gguf>=0.19"
    export XLA_FLAGS="${XLA_FLAGS-}" # compile as users do; the fast tests disable most optimizations
  else
    arguments+=("$argument")
  fi
done

export JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1
python -m ruff check .
python -m ruff format --check .
python tools/check_words.py
python -m mypy
# Two workers: most of the time is spent on compilation, which uses little more than one core.
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${slow[@]}" "${arguments[@]}"
