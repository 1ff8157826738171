#!/usr/bin/env bash
# Compile every config of configs/pods for its pod with the TPU compiler, on this machine, and print the table of
# docs/results/plans.md. The full reports are written to build/plans. Takes minutes per config.
#   bash tools/plan_all.sh [NAME ...]
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh tpu
mkdir -p build/plans
if (($# == 0)); then
  set -- configs/pods/*.yaml
fi
status=0
for config in "$@"; do
  name="$(basename "$config" .yaml)"
  echo "planning $name" >&2
  t5x-lite plan "configs/pods/$name.yaml" --json >"build/plans/$name.json" 2>"build/plans/$name.log" || status=1
done
python tools/plan_table.py build/plans/*.json
exit "$status"
