"""The state that trackers need to go on with a run: its identifier, and the last step that they were sent.

Both are in `RUN/trackers.json`. Trackers take no step back, while a resumed run repeats the steps after its checkpoint.
"""

import json
import secrets
from contextlib import suppress
from pathlib import Path

from t5x_lite.files import write_file
from t5x_lite.metrics_file import last_logged_step
from t5x_lite.run_layout import METRICS_FILE

STATE_FILE = "trackers.json"


def open_tracked_state(run_dir: Path) -> tuple[str, int]:
    """Return the identifier of a run and the last step that its trackers were sent, before its metrics are shortened.

    A step goes to metrics.jsonl before it goes to the trackers, so the file's last step is that of the last start; the
    state has the last step of the starts before.
    """
    path = run_dir / STATE_FILE
    identifier = ""
    tracked_step = 0
    with suppress(OSError, ValueError):
        state = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(state, dict) and isinstance(state.get("id"), str) and isinstance(state.get("step"), int):
            identifier = state["id"]
            tracked_step = state["step"]
    if not identifier:
        # Metrics from before the run had trackers were not sent to them.
        identifier = secrets.token_hex(8)
    else:
        tracked_step = max(tracked_step, last_logged_step(run_dir / METRICS_FILE))
    write_file(path, json.dumps({"id": identifier, "step": tracked_step}))
    return identifier, tracked_step
