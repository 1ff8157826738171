#!/usr/bin/env bash
# Trains a config as N real processes on this machine, which talk over loopback as the hosts of a pod do over their network.
#   bash launch/pod_sim.sh N CONFIG [key=value ...]
# XLA_FLAGS=--xla_force_host_platform_device_count=K gives each process K devices. If one process fails, the others are
# stopped and its exit code is returned; SIGTERM and Ctrl-C reach all of them, which save the same step and leave. Run
# again, it resumes, with any N. T5X_LITE_READY=1 takes the environment as it is.
set -euo pipefail
if [[ $# -lt 2 || ! "$1" =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: bash launch/pod_sim.sh N CONFIG [key=value ...]" >&2
  exit 2
fi
count="$1"
config="$(realpath "$2")"
shift 2
cd "$(dirname "$0")/.."
if [[ -z "${T5X_LITE_READY:-}" ]]; then
  # shellcheck source=tools/environment.sh
  source tools/environment.sh
fi
export JAX_PLATFORMS=cpu
port="$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
echo "pod_sim: $count processes, coordinator 127.0.0.1:$port"

processes=()
for ((number = 0; number < count; number++)); do
  python -m t5x_lite train "$config" \
    --coordinator "127.0.0.1:$port" --num-processes "$count" --process-id "$number" "$@" &
  processes+=("$!")
done
trap 'kill -TERM "${processes[@]}" 2>/dev/null || true' TERM INT

status=0
for process in "${processes[@]}"; do
  while kill -0 "$process" 2>/dev/null; do
    # A trapped signal ends `wait` early; the processes are then saving.
    code=0
    wait -n || code=$?
    if ((code != 0 && code < 128 && code != 75 && status == 0)); then
      status="$code"
      echo "pod_sim: a process failed with exit code $code; stopping the others" >&2
      kill -KILL "${processes[@]}" 2>/dev/null || true
    fi
  done
  wait "$process" 2>/dev/null || { code=$?; ((status == 0)) && status="$code"; }
done
exit "$status"
