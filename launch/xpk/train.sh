#!/usr/bin/env bash
# Trains a config on TPU slices of a cluster that XPK manages (pip install xpk).
#   bash launch/xpk/train.sh [--dry-run] NAME CONFIG --cluster CLUSTER --type v5p-256 --image IMAGE --bucket BUCKET \
#     [--slices 1] [--zone ZONE] [--project P] [--priority medium] [--failures 3] [--spot] [key=value ...]
# CONFIG is the name of a config in the image. --dry-run prints the command. The run is gs://BUCKET/runs/NAME, and the same
# command resumes it. A crash and a preemption restart the workload; wrong input (2) and a diverged loss (3) end it.
set -euo pipefail
usage() {
  sed -n '3,4s/^# *//p' "$0" >&2
  exit 2
}
reject() {
  echo "train.sh: $1: $2" >&2
  exit 2
}
dry="" spot=""
declare -A settings=([slices]=1 [failures]=3 [priority]=medium)
words=()
overrides=()
while (($#)); do
  case "$1" in
    --dry-run) dry=yes ;;
    --spot) spot=yes ;;
    --cluster | --type | --image | --bucket | --slices | --zone | --project | --priority | --failures)
      (($# > 1)) || usage
      settings[${1#--}]="$2"
      shift
      ;;
    --*)
      echo "train.sh: unknown option $1" >&2
      usage
      ;;
    *=*) overrides+=("$1") ;;
    *) words+=("$1") ;;
  esac
  shift
done
((${#words[@]} == 2)) || usage
name="${words[0]}"
config="${words[1]}"
for required in cluster type image bucket; do
  [[ -n "${settings[$required]:-}" ]] || { echo "train.sh: --$required is required" >&2; usage; }
done
[[ "$name" =~ ^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$ ]] || reject "$name" "a name consists of lower case letters, digits and -"
for number in slices failures; do
  [[ "${settings[$number]}" =~ ^[0-9]+$ ]] || reject "--$number ${settings[$number]}" "must be a number"
done
# XPK runs the command in a shell. With `exec`, SIGTERM reaches the program, which saves.
printf -v program ' %q' exec t5x-lite train "$config" "run_dir=gs://${settings[bucket]}/runs/$name" "${overrides[@]}"
command=(
  xpk workload create
  --workload "$name"
  --cluster "${settings[cluster]}"
  --tpu-type "${settings[type]}"
  --num-slices "${settings[slices]}"
  --docker-image "${settings[image]}"
  --priority "${settings[priority]}"
  --max-restarts "${settings[failures]}"
  # XPK restarts after 127 to 255 by itself. 1: a crash, 4: differing replicas, 69: a lost process, 70: an error, 75: saved.
  --restart-on-exit-codes '1,4,69,70,75'
  --termination-grace-period-seconds 300
  --command "${program# }"
)
[[ -z "${settings[zone]:-}" ]] || command+=(--zone "${settings[zone]}")
[[ -z "${settings[project]:-}" ]] || command+=(--project "${settings[project]}")
[[ -z "$spot" ]] || command+=(--spot)
if [[ -n "$dry" ]]; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
