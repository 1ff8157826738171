#!/usr/bin/env bash
# Fills in jobset.yaml and hands it to Kubernetes; nothing of this project is needed on this machine but this folder.
#   bash launch/gke/train.sh [--dry-run] NAME CONFIG --image IMAGE --bucket BUCKET --accelerator tpu-v5p-slice \
#     --topology 4x4x4 [--slices 1] [--chips-per-host 4] [--failures 3] [--service-account default] [key=value ...]
# CONFIG is a path inside the image (configs/…). --dry-run prints the manifest, for `kubectl apply -f -`.
# Follow it with: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME,batch.kubernetes.io/job-completion-index=0
set -euo pipefail
usage() {
  sed -n '3,4s/^# *//p' "$0" >&2
  exit 2
}
dry=""
declare -A given=([slices]=1 [chips-per-host]=4 [failures]=3 [service-account]=default)
words=()
overrides=""
while (($#)); do
  case "$1" in
    --dry-run) dry=yes ;;
    --image | --bucket | --accelerator | --topology | --slices | --chips-per-host | --failures | --service-account)
      (($# > 1)) || usage
      given[${1#--}]="$2"
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
given[name]="${words[0]}"
given[config]="${words[1]}"
for needed in image bucket accelerator topology; do
  [[ -n "${given[$needed]:-}" ]] || { echo "train.sh: --$needed is needed" >&2; usage; }
done
wrong() {
  echo "train.sh: $1: $2" >&2
  exit 2
}
[[ "${given[name]}" =~ ^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$ ]] || wrong "${given[name]}" "a name is of lower case letters, digits and -"
[[ "${given[topology]}" =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || wrong "--topology ${given[topology]}" "write for example 4x4x4"
for number in slices chips-per-host failures; do
  [[ "${given[$number]}" =~ ^[0-9]+$ ]] || wrong "--$number ${given[$number]}" "must be a number"
done
chips=$((${given[topology]//x/*}))
((given[chips-per-host] <= chips)) || given[chips-per-host]="$chips"
given[hosts]=$((chips / given[chips-per-host]))

folder="$(cd "$(dirname "$0")" && pwd)"
manifest="$(<"$folder/jobset.yaml")"
for key in "${!given[@]}"; do
  [[ "${given[$key]}" =~ ^[A-Za-z0-9_./:@-]+$ ]] || wrong "$key ${given[$key]}" "unexpected character"
  place="${key^^}"
  manifest="${manifest//"\${${place//-/_}}"/${given[$key]}}"
done
last="- data.cache_dir=/bucket/cache"
manifest="${manifest/"$last"/"$last$overrides"}"
if [[ -n "$dry" ]]; then
  printf '%s\n' "$manifest"
else
  echo "gke: ${given[name]}, ${given[slices]} × ${given[hosts]} hosts of ${given[accelerator]} ${given[topology]}" >&2
  kubectl apply -f - <<<"$manifest"
fi
