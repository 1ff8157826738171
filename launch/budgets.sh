# shellcheck shell=bash
# Sourced by the launchers: decides whether to restart a job that has ended.
#   T5X_LITE_PREEMPTIONS (default 100) restarts after a preemption: the job saved and exited (75), SIGTERM ended it (143), or
#                                    its TPU slice is gone.
#   T5X_LITE_FAILURES (default 3)      restarts after a failure: a crash, a hang, a lost process or node, differing replicas.
# Wrong input (2) and a diverged loss (3) would occur again, so these jobs are never restarted.
preemptions="${T5X_LITE_PREEMPTIONS:-100}"
failures="${T5X_LITE_FAILURES:-3}"

# should_restart NAME STATUS: prints what happened, and returns 0 if the job is to be restarted.
should_restart() {
  case "$2" in
    0) return 1 ;;
    2 | 3)
      echo "$1: ended with exit code $2, which a restart would not fix" >&2
      return 1
      ;;
    75 | 143)
      if ((preemptions <= 0)); then
        echo "$1: preempted, and no restarts are left (T5X_LITE_PREEMPTIONS); run it again to resume" >&2
        return 1
      fi
      preemptions=$((preemptions - 1))
      echo "$1: preempted; starting again, $preemptions preemptions left" >&2
      ;;
    *)
      if ((failures <= 0)); then
        echo "$1: failed with exit code $2, and no restarts are left (T5X_LITE_FAILURES); run it again to resume" >&2
        return 1
      fi
      failures=$((failures - 1))
      echo "$1: failed with exit code $2; starting again, $failures failures left" >&2
      ;;
  esac
}
