#!/usr/bin/env bash
# Simulates a pod: trains a config with N real processes on this machine, which communicate over loopback as the hosts of
# a pod do over their network.
#   bash launch/pod_sim.sh [--dry-run] N CONFIG [key=value ...]
# XLA_FLAGS=--xla_force_host_platform_device_count=K gives each process K devices. If one process fails or is preempted,
# the others are stopped and all are restarted, as often as budgets.sh allows. On SIGTERM or Ctrl-C all processes save the
# same step and exit. The same command resumes the run, with any N. T5X_LITE_READY=1 skips the installation.
set -euo pipefail
usage() {
  echo "usage: bash launch/pod_sim.sh [--dry-run] N CONFIG [key=value ...]" >&2
  exit 2
}
dry=""
if [[ "${1:-}" == --dry-run ]]; then
  dry=yes
  shift
fi
[[ $# -ge 2 && "$1" =~ ^[1-9][0-9]*$ ]] || usage
count="$1"
config="$(realpath "$2")"
shift 2
cd "$(dirname "$0")/.."
# shellcheck source=launch/budgets.sh
source launch/budgets.sh
if [[ -z "${T5X_LITE_READY:-}" && -z "$dry" ]]; then
  # shellcheck source=tools/environment.sh
  source tools/environment.sh "" # without an argument it would take the overrides for extras
fi
export JAX_PLATFORMS=cpu
processes=()
stopping=""
trap 'stopping=yes; kill -TERM "${processes[@]}" 2>/dev/null || true' TERM INT

# Starts all processes and waits for them. Returns the exit code of the first that failed, or 75 if all stopped on request.
run_job() {
  local port number process code status=0
  port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
  [[ -z "$stopping" ]] || return 75
  echo "pod_sim: $count processes, coordinator 127.0.0.1:$port"
  processes=()
  for ((number = 0; number < count; number++)); do
    local command=(python -m t5x_lite train "$config" --coordinator "127.0.0.1:$port"
      --num-processes "$count" --process-id "$number" "$@")
    if [[ -n "$dry" ]]; then
      echo "${command[*]}"
      continue
    fi
    "${command[@]}" &
    processes+=("$!")
  done
  # A signal may have come while the processes were starting.
  [[ -z "$stopping" ]] || kill -TERM "${processes[@]}" 2>/dev/null || true
  local left=("${processes[@]}")
  while ((${#left[@]})); do
    code=0
    process=""
    wait -n -p process "${left[@]}" || code=$?
    # A trapped signal ends `wait` early, while the processes are saving.
    [[ -n "$process" ]] || continue
    local others=()
    for number in "${!processes[@]}"; do
      if [[ "${processes[number]}" == "$process" ]]; then
        ((code == 0 || code == 75)) || echo "pod_sim: process $number ended with exit code $code" >&2
      elif [[ " ${left[*]} " == *" ${processes[number]} "* ]]; then
        others+=("${processes[number]}")
      fi
    done
    left=("${others[@]}")
    if ((code != 0 && status == 0)); then
      status="$code"
      # The other processes notice the loss and end by themselves. Those that hang are killed after a while.
      if ((code != 75 && ${#left[@]})); then
        (sleep "${T5X_LITE_GRACE:-20}" && kill -KILL "${left[@]}" 2>/dev/null) >/dev/null 2>&1 &
        local grace="$!"
      fi
    fi
  done
  [[ -z "${grace:-}" ]] || kill "$grace" 2>/dev/null || true
  return "$status"
}

while true; do
  status=0
  run_job "$@" || status=$?
  if [[ -n "$stopping" ]] || ! should_restart pod_sim "$status"; then
    exit "$status"
  fi
done
