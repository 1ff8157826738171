"""The TPU compiler on a machine without a TPU: what it must find before it is loaded, and what it writes to its log."""

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path

WITHOUT_A_TPU = {
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
    """Set the environment, before JAX is imported; the log goes to a folder that ends with the process."""
    os.environ.update(WITHOUT_A_TPU)
    if "TPU_LOG_DIR" not in os.environ:  # which libtpu reads once, when it is loaded
        os.environ["TPU_LOG_DIR"] = log = tempfile.mkdtemp(prefix="libtpu")
        atexit.register(shutil.rmtree, log, ignore_errors=True)


def involuntary_reshards() -> list[str]:
    """What libtpu has written to its log of arrays that it had to make whole on every device to lay them out anew."""
    logs = sorted(Path(os.environ.get("TPU_LOG_DIR", "")).glob("*.log.WARNING.*"))
    found = [one for path in logs for one in _RESHARD.findall(path.read_text(errors="replace"))]
    return [f"{array or '?'} in {name or '?'}" for array, name in found]
