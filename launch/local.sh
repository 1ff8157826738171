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
exec t5x-lite train "$config" "$@"
