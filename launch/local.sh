#!/usr/bin/env bash
# Trains a config on this machine, from nothing: environment, text, tokenizer, tokens, training, evaluation, a sample.
#   bash launch/local.sh configs/quickstart.yaml [key=value ...]
# Run again, it resumes, or says that the run is complete.
set -euo pipefail
if [[ $# -lt 1 || "$1" == -* ]]; then
  echo "usage: bash launch/local.sh CONFIG [key=value ...]" >&2
  exit 2
fi
config="$(realpath "$1")"
shift
cd "$(dirname "$0")/.."
source tools/environment.sh "" # or it would take the overrides for extras
# On a CPU a step asks for its activations anew: pages of 2 MB are 500 times fewer of them (glibc 2.35 and newer).
export GLIBC_TUNABLES="${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}"
exec t5x-lite train "$config" "$@"
