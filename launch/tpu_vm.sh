#!/usr/bin/env bash
# Trains a config on a TPU slice of Google Cloud: asks for it, installs on all its hosts, trains, follows the log, asks again
# when the slice is taken away, and gives it back at the end.
#   bash launch/tpu_vm.sh [--dry-run] NAME CONFIG --zone ZONE --type v5p-128 [--project P] [--spot] [--runtime VERSION]
#     [key=value ...]                       everything, in this order
#   bash launch/tpu_vm.sh create|install|run|follow|delete …   one of its steps, with the same arguments
# run_dir must be in a bucket that the hosts have mounted, or checkpoint.folder a gs:// one: a slice that is taken is empty
# when it comes back. How often it starts again: see budgets.sh. --dry-run prints the commands.
set -euo pipefail
usage() {
  sed -n '4,6s/^# *//p' "$0" >&2
  exit 2
}
dry="" zone="" type="" project="" spot="" runtime="" step=all
words=()
overrides=()
while (($#)); do
  case "$1" in
    --dry-run) dry=yes ;;
    --spot) spot=yes ;;
    --zone | --type | --project | --runtime)
      (($# > 1)) || usage
      declare "${1#--}=$2"
      shift
      ;;
    --*)
      echo "tpu_vm.sh: unknown option $1" >&2
      usage
      ;;
    *=*) overrides+=("$1") ;;
    create | install | run | follow | delete) step="$1" ;;
    *) words+=("$1") ;;
  esac
  shift
done
[[ ${#words[@]} -eq 2 && -n "$zone" && -n "$type" ]] || usage
name="${words[0]}"
config="${words[1]}"
cd "$(dirname "$0")/.."
[[ -f "$config" ]] || { echo "tpu_vm.sh: $config: not a file of this project" >&2; exit 2; }
# shellcheck source=launch/budgets.sh
source launch/budgets.sh
case "${runtime:-$type}" in
  v4-*) runtime=tpu-ubuntu2204-base ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
esac
place=(--zone "$zone" ${project:+--project "$project"})

say() { echo "tpu_vm: $*" >&2; }

# Prints a command, and runs it unless --dry-run.
run() {
  printf '+' >&2
  printf ' %q' "$@" >&2
  echo >&2
  [[ -n "$dry" ]] || "$@"
}

on() {
  local worker="$1"
  shift
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker "$worker" --command "$*"
}

state() {
  gcloud compute tpus queued-resources describe "$name" "${place[@]}" --format 'value(state.state)' 2>/dev/null || echo NONE
}

create() {
  [[ -n "$dry" || "$(state)" == NONE ]] || delete
  run gcloud compute tpus queued-resources create "$name" --node-id "$name" "${place[@]}" \
    --accelerator-type "$type" --runtime-version "$runtime" ${spot:+--spot}
  [[ -z "$dry" ]] || return 0
  local now=""
  until [[ "$now" == ACTIVE ]]; do
    now="$(state)"
    say "$name is $now"
    case "$now" in
      ACTIVE) ;;
      FAILED | SUSPENDED | SUSPENDING) return 75 ;;
      *) sleep "${T5X_LITE_POLL:-30}" ;;
    esac
  done
}

install() {
  local archive
  archive="$(mktemp -d)/t5x_lite.tgz"
  run tar -czf "$archive" t5x_lite configs tools pyproject.toml setup.cfg README.md
  run gcloud compute tpus tpu-vm scp "$archive" "$name:t5x_lite.tgz" "${place[@]}" --worker all
  on all "mkdir -p t5x_lite && tar -xzf t5x_lite.tgz -C t5x_lite && cd t5x_lite &&" \
    "python3 -m venv .venv && .venv/bin/pip install --quiet '.[tpu,gcs]'"
}

# Trains on all hosts; the program goes on if this machine loses its connection, and `follow` finds it again.
train() {
  local quoted
  printf -v quoted ' %q' "$config" "${overrides[@]}"
  on all "cd t5x_lite && rm -f exit_code && (nohup sh -c '.venv/bin/python -m t5x_lite train${quoted//\'/\'\\\'\'}" \
    "> train.log 2>&1; echo \$? > exit_code' > /dev/null 2>&1 &)"
}

# Shows the log of the first host until the program is over; returns its exit code, or 75 if the slice is gone.
follow() {
  local code=""
  while [[ -z "$code" ]]; do
    on 0 "cd t5x_lite && (timeout ${T5X_LITE_FOLLOW:-300} tail -n +\$((\$(cat shown 2>/dev/null || echo 0) + 1)) -F train.log" \
      "--pid=\$(pgrep -of 't5x_lite train' || echo 1)" "2>/dev/null || true); wc -l < train.log > shown" || true
    [[ -z "$dry" ]] || return 0
    if [[ "$(state)" != ACTIVE ]]; then
      say "the slice was taken away"
      return 75
    fi
    code="$(gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker 0 --command 'cat t5x_lite/exit_code 2>/dev/null' || true)"
  done
  return "$code"
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
}

if [[ "$step" != all ]]; then
  [[ "$step" != run ]] || step=train
  "$step"
  exit
fi
present=""
while true; do
  status=0
  if [[ -z "$present" ]]; then
    create && install && present=yes || status=$?
  fi
  if ((status == 0)); then
    train && follow || status=$?
  fi
  if ! again tpu_vm "$status"; then
    delete
    exit "$status"
  fi
  # What was taken, or has failed half way, is asked for anew; a slice on which the program alone failed is kept.
  [[ "$(state)" == ACTIVE && -n "$present" ]] || present=""
done
