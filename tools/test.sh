#!/usr/bin/env bash
# Installs the dependencies of the tests into .venv (or the active virtual environment) and runs all checks.
#   bash tools/test.sh            linters, type checker and fast tests
#   bash tools/test.sh --all      also the slow tests, with the compilers of TPUs and GPUs and an S3 in memory
#   bash tools/test.sh -k name    other arguments are passed to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
extras=test,hf,hfdata,webdataset,cleaning,retrieval,eval,docs,quantization,wandb,mlflow
packages=()
arguments=()
slow=(-m "not slow")
for argument in "$@"; do
  if [[ "$argument" == "--all" ]]; then
    slow=()
    # The compilers of `plan`, and run directories in S3.
    extras+=,tpu,gpu-compiler,s3
    # Change foreign files in every way, read exports as llama.cpp does, and serve a bucket of S3 from memory. s3fs is
    # named again so that moto takes a botocore that it allows.
    packages=("hypothesis>=6.140" "gguf>=0.19" "moto[server]>=5.2" s3fs)
    export XLA_FLAGS="${XLA_FLAGS-}" # compile as users do; the fast tests disable most optimizations
  else
    arguments+=("$argument")
  fi
done
source tools/environment.sh "$extras"
if [[ ${#packages[@]} -gt 0 ]]; then
  python -m pip install -q "${packages[@]}"
fi

export JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1
python -m ruff check .
python -m ruff format --check .
python tools/check_words.py
python -m mypy
lint-imports
# Two workers: most of the time is spent on compilation, which uses little more than one core.
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${slow[@]}" "${arguments[@]}"
