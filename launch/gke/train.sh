#!/usr/bin/env bash
# Fills in jobset.yaml and submits it to Kubernetes. Of this project, this machine needs only this folder.
#   bash launch/gke/train.sh [--dry-run] NAME CONFIG --image IMAGE --bucket BUCKET --accelerator tpu-v5p-slice \
#     --topology 4x4x4 [--slices 1] [--chips-per-host 4] [--failures 3] [--service-account default] [key=value ...]
# CONFIG is a path inside the image (configs/…). --dry-run prints the manifest, for `kubectl apply -f -`.
# Follow the log with: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME,batch.kubernetes.io/job-completion-index=0
set -euo pipefail
usage() {
  sed -n '3,4s/^# *//p' "$0" >&2
  exit 2
}
dry=""
declare -A settings=([slices]=1 [chips-per-host]=4 [failures]=3 [service-account]=default)
words=()
overrides=""
while (($#)); do
  case "$1" in
    --dry-run) dry=yes ;;
    --image | --bucket | --accelerator | --topology | --slices | --chips-per-host | --failures | --service-account)
      (($# > 1)) || usage
      settings[${1#--}]="$2"
      shift
      ;;
    --*)
      echo "train.sh: unknown option $1" >&2
      usage
      ;;
    *=*) overrides+=$'\n'"                    - '${1//\'/\'\'}'" ;;
    *) words+=("$1") ;;
  esac
  shift
done
((${#words[@]} == 2)) || usage
settings[name]="${words[0]}"
settings[config]="${words[1]}"
for required in image bucket accelerator topology; do
  [[ -n "${settings[$required]:-}" ]] || { echo "train.sh: --$required is required" >&2; usage; }
done
reject() {
  echo "train.sh: $1: $2" >&2
  exit 2
}
[[ "${settings[name]}" =~ ^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$ ]] || reject "${settings[name]}" "a name consists of lower case letters, digits and -"
[[ "${settings[topology]}" =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || reject "--topology ${settings[topology]}" "write for example 4x4x4"
[[ "${settings[failures]}" =~ ^[0-9]+$ ]] || reject "--failures ${settings[failures]}" "must be a number"
for number in slices chips-per-host; do
  [[ "${settings[$number]}" =~ ^[1-9][0-9]*$ ]] || reject "--$number ${settings[$number]}" "must be a number from 1"
done
chips=$((${settings[topology]//x/*}))
((settings[chips-per-host] <= chips)) || settings[chips-per-host]="$chips"
settings[hosts]=$((chips / settings[chips-per-host]))

folder="$(cd "$(dirname "$0")" && pwd)"
manifest="$(<"$folder/jobset.yaml")"
for key in "${!settings[@]}"; do
  [[ "${settings[$key]}" =~ ^[A-Za-z0-9_./:@-]+$ ]] || reject "$key ${settings[$key]}" "unexpected character"
  variable="${key^^}"
  manifest="${manifest//"\${${variable//-/_}}"/${settings[$key]}}"
done
last="- data.cache_dir=gs://${settings[bucket]}/cache"
manifest="${manifest/"$last"/"$last$overrides"}"
if [[ -n "$dry" ]]; then
  printf '%s\n' "$manifest"
else
  echo "gke: ${settings[name]}, ${settings[slices]} × ${settings[hosts]} hosts of ${settings[accelerator]} ${settings[topology]}" >&2
  kubectl apply -f - <<<"$manifest"
fi
