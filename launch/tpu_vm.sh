#!/usr/bin/env bash
# Trains a config on a TPU slice of Google Cloud: requests the slice, installs on all its hosts, trains, follows the log,
# requests a new slice after a preemption, and deletes the slice at the end.
#   bash launch/tpu_vm.sh [--dry-run] NAME CONFIG --zone ZONE --type v5p-128 [--project P] [--spot] [--runtime VERSION]
#     [key=value ...]                       all steps, in this order
#   bash launch/tpu_vm.sh create|install|run|follow|delete …   one step, with the same arguments
# A new slice has empty disks: run_dir and data.cache_dir should be gs:// folders, and data.files gs:// files.
# budgets.sh sets the number of restarts. Ctrl-C ends this script alone. On SIGTERM, which `t5x-lite sweep` sends, the
# program saves and stops, the slice is deleted, and the exit code is 75.
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
[[ "$config" == configs/* && "$config" != *..* ]] || {
  echo "tpu_vm.sh: $config: must be in configs/, which is copied to the hosts" >&2
  exit 2
}
[[ -f "$config" ]] || { echo "tpu_vm.sh: $config: there is no such file in this project" >&2; exit 2; }
# shellcheck source=launch/budgets.sh
source launch/budgets.sh
case "${runtime:-$type}" in
  v4-*) runtime=tpu-ubuntu2204-base ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
esac
[[ -n "$runtime" ]] || { echo "tpu_vm.sh: --type $type: name its software by --runtime" >&2; exit 2; }
location=(--zone "$zone" ${project:+--project "$project"})
stopping="" asked=""
# The first words of the program on a host: the shells that start it, follow it and write exit_code are others.
program='^\.venv/bin/python -m t5x_lite train'

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

# Returns whether the slice is lost. A call that fails looks like NONE too, so that must be seen three times.
is_gone() {
  local look now
  for look in 1 2 3; do
    now="$(state)"
    [[ "$now" == NONE ]] || break
    ((look == 3)) || sleep "${T5X_LITE_POLL:-30}"
  done
  [[ "$now" != ACTIVE ]]
}

# The caller uses the exit codes of these functions, for which bash turns `set -e` off inside them.
create() {
  [[ -n "$dry" || "$(state)" == NONE ]] || delete || return
  run gcloud compute tpus queued-resources create "$name" --node-id "$name" "${location[@]}" \
    --accelerator-type "$type" --runtime-version "$runtime" ${spot:+--spot} || return
  [[ -z "$dry" ]] || return 0
  local now=""
  until [[ "$now" == ACTIVE ]]; do
    [[ -z "$stopping" ]] || return 75
    now="$(state)"
    log "$name is $now"
    case "$now" in
      ACTIVE) ;;
      FAILED) return 1 ;;
      SUSPENDED | SUSPENDING) return 75 ;;
      *) sleep "${T5X_LITE_POLL:-30}" ;;
    esac
  done
}

install() {
  local archive
  archive="$(mktemp -d)/t5x_lite.tgz"
  run tar -czf "$archive" t5x_lite configs tools pyproject.toml setup.cfg setup.py README.md || return
  run gcloud compute tpus tpu-vm scp "$archive" "$name:t5x_lite.tgz" "${location[@]}" --worker all || return
  # The images of TPU VMs have Python 3.10, which is too old.
  run_on all "mkdir -p t5x_lite && tar -xzf t5x_lite.tgz -C t5x_lite && cd t5x_lite &&" \
    "if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then python3 -m venv .venv;" \
    "else python3 -m pip install --quiet --user uv &&" \
    "python3 -m uv venv --quiet --allow-existing --python 3.11 --seed .venv; fi &&" \
    ".venv/bin/pip install --quiet '.[tpu,gcs]'"
}

# Starts training on all hosts. It continues if this machine loses its connection, and `follow` reconnects to it.
train() {
  local quoted
  [[ -z "$stopping" ]] || return 75
  printf -v quoted ' %q' "$config" "${overrides[@]}"
  run_on all "cd t5x_lite && rm -f exit_code shown && (nohup sh -c '.venv/bin/python -m t5x_lite train${quoted//\'/\'\\\'\'}" \
    "> train.log 2>&1; echo \$? > exit_code' > /dev/null 2>&1 &)"
}

# Asks the program to save and stop.
ask_to_stop() {
  if [[ -z "$asked" ]] && run_on all "pkill -TERM -of '$program' || true"; then
    asked=yes
  fi
}

# Shows the log of the first host until training ends. Returns its exit code, or 75 if the slice was preempted.
follow() {
  local code="" follower
  while [[ -z "$code" ]]; do
    # A signal is seen when the command in the foreground ends, so ssh is in the background, and that one is short.
    # (A signal just before `wait` is seen at the end of ssh.) With -m, `leave` can end ssh and all around it together.
    set -m
    run_on 0 "cd t5x_lite && next=\$((\$(cat shown 2>/dev/null || echo 0) + 1)); if pid=\$(pgrep -of '$program');" \
      "then timeout ${T5X_LITE_FOLLOW:-300} tail -n +\$next -F train.log --pid=\$pid 2>/dev/null;" \
      "else tail -n +\$next train.log; fi; wc -l < train.log > shown" </dev/null &
    follower=$!
    set +m
    while kill -0 "$follower" 2>/dev/null; do
      [[ -z "$stopping" ]] || ask_to_stop
      sleep 0.3
    done
    [[ -z "$dry" ]] || return 0
    if is_gone; then
      log "the slice was preempted"
      present="" # even if it can be seen again: the program may still run there
      return 75
    fi
    code="$(gcloud compute tpus tpu-vm ssh "$name" "${location[@]}" --worker 0 --command 'cat t5x_lite/exit_code 2>/dev/null' || true)"
  done
  return "$code"
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${location[@]}" --force --quiet
}

# Ends this script alone, and says what is left.
leave() {
  local script arguments job
  for job in $(jobs -p); do kill -- "-$job" 2>/dev/null || true; done
  printf -v script '%q' "$0"
  printf -v arguments ' %q' "$name" "$config" "${location[@]}" --type "$type"
  log "$name is not deleted, and training goes on if it has begun; to follow it: bash $script follow$arguments;" \
    "to delete it: bash $script delete$arguments"
  exit "$1"
}
trap 'leave 130' INT
trap 'leave 143' TERM

if [[ "$step" != all ]]; then
  [[ "$step" != run ]] || step=train
  "$step"
  exit
fi
trap 'stopping=yes' TERM
present=""
while true; do
  status=0
  if [[ -z "$present" ]]; then
    create && install && present=yes || status=$?
  fi
  if ((status == 0)); then
    train && follow || status=$?
  fi
  if [[ -n "$stopping" ]] || ! should_restart tpu_vm "$status"; then
    delete || log "$name could not be deleted"
    exit "$status"
  fi
  # A preempted or half-installed slice is requested again. A slice on which only the program failed is kept.
  if [[ -n "$present" ]] && is_gone; then present=""; fi
done
