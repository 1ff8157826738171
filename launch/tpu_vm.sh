#!/usr/bin/env bash
# Trains a config on a TPU slice of Google Cloud: requests the slice, installs on all its hosts, trains, follows the log,
# requests a new slice after a preemption, and deletes the slice at the end.
#   bash launch/tpu_vm.sh [--dry-run] NAME CONFIG --zone ZONE --type v5p-128 [--project P] [--spot] [--runtime VERSION]
#     [key=value ...]                       all steps, in this order
#   bash launch/tpu_vm.sh create|install|run|follow|delete …   one step, with the same arguments
# A new slice has empty disks: run_dir and data.cache_dir should be gs:// folders, and data.files gs:// files.
# budgets.sh sets the number of restarts.
# --dry-run prints the commands without running them.
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
[[ -f "$config" ]] || { echo "tpu_vm.sh: $config: there is no such file in this project" >&2; exit 2; }
# shellcheck source=launch/budgets.sh
source launch/budgets.sh
case "${runtime:-$type}" in
  v4-*) runtime=tpu-ubuntu2204-base ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
esac
location=(--zone "$zone" ${project:+--project "$project"})

log() { echo "tpu_vm: $*" >&2; }

# Prints a command and runs it, unless --dry-run is given.
run() {
  printf '+' >&2
  printf ' %q' "$@" >&2
  echo >&2
  [[ -n "$dry" ]] || "$@"
}

# run_on WORKER COMMAND …: runs a shell command on one host, or on `all`.
run_on() {
  local worker="$1"
  shift
  run gcloud compute tpus tpu-vm ssh "$name" "${location[@]}" --worker "$worker" --command "$*"
}

# Prints the state of the slice, or NONE if it does not exist.
state() {
  gcloud compute tpus queued-resources describe "$name" "${location[@]}" --format 'value(state.state)' 2>/dev/null || echo NONE
}

create() {
  [[ -n "$dry" || "$(state)" == NONE ]] || delete
  run gcloud compute tpus queued-resources create "$name" --node-id "$name" "${location[@]}" \
    --accelerator-type "$type" --runtime-version "$runtime" ${spot:+--spot}
  [[ -z "$dry" ]] || return 0
  local now=""
  until [[ "$now" == ACTIVE ]]; do
    now="$(state)"
    log "$name is $now"
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
  run tar -czf "$archive" t5x_lite configs tools pyproject.toml setup.cfg setup.py README.md
  run gcloud compute tpus tpu-vm scp "$archive" "$name:t5x_lite.tgz" "${location[@]}" --worker all
  run_on all "mkdir -p t5x_lite && tar -xzf t5x_lite.tgz -C t5x_lite && cd t5x_lite &&" \
    "python3 -m venv .venv && .venv/bin/pip install --quiet '.[tpu,gcs]'"
}

# Starts training on all hosts. It continues if this machine loses its connection, and `follow` reconnects to it.
train() {
  local quoted
  printf -v quoted ' %q' "$config" "${overrides[@]}"
  run_on all "cd t5x_lite && rm -f exit_code && (nohup sh -c '.venv/bin/python -m t5x_lite train${quoted//\'/\'\\\'\'}" \
    "> train.log 2>&1; echo \$? > exit_code' > /dev/null 2>&1 &)"
}

# Shows the log of the first host until training ends. Returns its exit code, or 75 if the slice was preempted.
follow() {
  local code=""
  while [[ -z "$code" ]]; do
    run_on 0 "cd t5x_lite && (timeout ${T5X_LITE_FOLLOW:-300} tail -n +\$((\$(cat shown 2>/dev/null || echo 0) + 1)) -F train.log" \
      "--pid=\$(pgrep -of 't5x_lite train' || echo 1)" "2>/dev/null || true); wc -l < train.log > shown" || true
    [[ -z "$dry" ]] || return 0
    if [[ "$(state)" != ACTIVE ]]; then
      log "the slice was preempted"
      return 75
    fi
    code="$(gcloud compute tpus tpu-vm ssh "$name" "${location[@]}" --worker 0 --command 'cat t5x_lite/exit_code 2>/dev/null' || true)"
  done
  return "$code"
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${location[@]}" --force --quiet
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
  if ! should_restart tpu_vm "$status"; then
    delete
    exit "$status"
  fi
  # A preempted or half-installed slice is requested again. A slice on which only the program failed is kept.
  [[ "$(state)" == ACTIVE && -n "$present" ]] || present=""
done
