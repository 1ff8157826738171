# shellcheck shell=bash
# Sourced by the launchers: whether a job that has ended is started again.
#   T5X_LITE_PREEMPTIONS (default 100) starts after a preemption: the job saved and left (75) or its machine was taken.
#   T5X_LITE_FAILURES (default 3)      starts after a failure: a crash, a hang, a lost process, corrupt replicas.
# Wrong input (2) and a diverged loss (3) come again: they are never tried again.
preemptions="${T5X_LITE_PREEMPTIONS:-100}"
failures="${T5X_LITE_FAILURES:-3}"

# again NAME STATUS: says what happened; returns 0 if the job is to be started again.
again() {
  case "$2" in
    0) return 1 ;;
    2 | 3)
      echo "$1: ended with exit code $2, which starting again would not mend" >&2
      return 1
      ;;
    75 | 143)
      if ((preemptions == 0)); then
        echo "$1: preempted, and no start is left (T5X_LITE_PREEMPTIONS); run it again to resume" >&2
        return 1
      fi
      preemptions=$((preemptions - 1))
      echo "$1: preempted; starting again, $preemptions preemptions left" >&2
      ;;
    *)
      if ((failures == 0)); then
        echo "$1: failed with exit code $2, and no start is left (T5X_LITE_FAILURES); run it again to resume" >&2
        return 1
      fi
      failures=$((failures - 1))
      echo "$1: failed with exit code $2; starting again, $failures failures left" >&2
      ;;
  esac
}
