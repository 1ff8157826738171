"""The TPU compiler on a machine without a TPU: the environment that it needs, and its log."""

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path

ENVIRONMENT_WITHOUT_TPU = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
_RESHARD = re.compile(
    r'Involuntary full rematerialization(?:.*?HLO operation \S+ = (\w+\[[\d,]*\]))?(?:.*?op_name="([^"]*)")?'
)


def prepare() -> None:
    """Set the environment variables that libtpu needs here. Call this before JAX is imported.

    libtpu writes its log to a temporary folder, which is deleted when the process ends.
    """
    os.environ.update(ENVIRONMENT_WITHOUT_TPU)
    if "TPU_LOG_DIR" not in os.environ:
        log_dir = tempfile.mkdtemp(prefix="libtpu")
        os.environ["TPU_LOG_DIR"] = log_dir  # libtpu reads it once, when it is loaded
        atexit.register(shutil.rmtree, log_dir, ignore_errors=True)


def involuntary_reshards() -> list[str]:
    """Return the arrays that the compiler could reshard only by replicating them, as libtpu's log names them."""
    log_dir = Path(os.environ.get("TPU_LOG_DIR", ""))
    reshards = []
    for path in sorted(log_dir.glob("*.log.WARNING.*")):
        for array, op_name in _RESHARD.findall(path.read_text(errors="replace")):
            reshards.append(f"{array or '?'} in {op_name or '?'}")
    return reshards
