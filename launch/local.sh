#!/usr/bin/env bash
# Trains a config on this machine from scratch: environment, text, tokenizer, tokens, training, evaluation and a sample.
#   bash launch/local.sh configs/quickstart.yaml [key=value ...]
# The same command resumes the run, or reports that it is complete.
set -euo pipefail
if [[ $# -lt 1 || "$1" == -* ]]; then
  echo "usage: bash launch/local.sh CONFIG [key=value ...]" >&2
  exit 2
fi
config="$(realpath "$1")"
shift
cd "$(dirname "$0")/.."
source tools/environment.sh "" # without an argument it would take the overrides for extras
# On a CPU, every step allocates its activations again. Pages of 2 MB instead of 4 kB make that faster (glibc 2.35).
export GLIBC_TUNABLES="${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}"
exec t5x-lite train "$config" "$@"
