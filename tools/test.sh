#!/usr/bin/env bash
# Installs what the tests need into .venv (or into the active virtual environment) and runs them.
#   bash tools/test.sh            lint, types, fast tests
#   bash tools/test.sh --all      the slow tests too
#   bash tools/test.sh -k name    other arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh test,hf,eval

arguments=()
slow=(-m "not slow")
for argument in "$@"; do
  if [[ "$argument" == "--all" ]]; then
    slow=()
    export XLA_FLAGS="${XLA_FLAGS-}" # the code that users run; the fast tests leave most optimizations out
  else
    arguments+=("$argument")
  fi
done

export JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1
python -m ruff check .
python -m ruff format --check .
python -m mypy
# Two at a time: compiling, which is most of it, keeps little more than one core busy.
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${slow[@]}" "${arguments[@]}"
