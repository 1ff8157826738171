# shellcheck shell=bash
# Sourced by the other scripts: activates .venv. It is created if it does not exist, and updated if setup.cfg is newer.
#   source tools/environment.sh [extra,extra]
# An active virtual environment is used instead of .venv, and updated in the same way. T5X_LITE_PYTHON names another
# interpreter to create .venv with. Starts at the same time on one machine follow each other.

t5x_lite_environment() {
  local lock="" status=0
  if command -v flock >/dev/null; then
    mkdir -p "${VIRTUAL_ENV:-.venv}" || return
    exec {lock}>"${VIRTUAL_ENV:-.venv}/.lock" || return
    flock "$lock" || true # a file system without locks
  fi
  t5x_lite_install "$1" || status=$?
  [[ -z "$lock" ]] || exec {lock}>&-
  return "$status"
}

# bash turns `set -e` off in this function, whose exit code its caller uses.
t5x_lite_install() {
  local extras="${1:+[$1]}" python="${T5X_LITE_PYTHON:-python3}" stamp
  if [[ -z "${VIRTUAL_ENV:-}" ]]; then
    # `activate` is written last: without it the creation was interrupted.
    if [[ ! -e .venv/bin/activate ]]; then
      "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "Python 3.11 or newer is needed; $python is $("$python" --version 2>&1). Set T5X_LITE_PYTHON." >&2
        return 2
      }
      echo "environment: creating .venv"
      "$python" -m venv .venv || return
    fi
    # shellcheck disable=SC1091
    source .venv/bin/activate || return
  fi
  stamp="$VIRTUAL_ENV/.t5x_lite${extras//[^a-z]/_}"
  if [[ ! -e "$stamp" || setup.cfg -nt "$stamp" || tools/constraints.txt -nt "$stamp" ]]; then
    echo "environment: installing t5x_lite$extras into $VIRTUAL_ENV"
    # The pinned versions are those for Python 3.11; for other versions pip chooses.
    local pins=()
    python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' && pins=(-c tools/constraints.txt)
    python -m pip install --quiet "${pins[@]}" -e ".$extras" || return
    touch "$stamp"
  fi
}

t5x_lite_environment "${1:-}"
