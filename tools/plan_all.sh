#!/usr/bin/env bash
# Compile every config of configs/pods for its pod with the compilers of TPUs and GPUs, on this machine, and print the
# tables of docs/results/plans.md as one. The full reports are written to build/plans. Takes minutes per config.
#   bash tools/plan_all.sh [NAME ...]        such as gpt3_13b, h100/llama3_8b_8k
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh tpu,gpu-compiler
mkdir -p build/plans/h100
if (($# == 0)); then
  set -- configs/pods/*.yaml configs/pods/h100/*.yaml
fi
status=0
reports=()
for config in "$@"; do
  name="${config#configs/pods/}"
  name="${name%.yaml}"
  echo "planning $name" >&2
  reports+=("build/plans/$name.json")
  t5x-lite plan "configs/pods/$name.yaml" --json >"build/plans/$name.json" 2>"build/plans/$name.log" || status=1
done
python tools/plan_table.py "${reports[@]}"
exit "$status"
