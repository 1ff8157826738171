"""The layout of a run directory: names of its files. Importing this module does not import JAX."""

from t5x_lite import storage

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
LOCK_FILE = ".lock"
"""Locked by the job that trains the run."""
DIVERGED_FILE = "diverged.txt"
"""Says why a run has diverged; it exists until the run goes on."""
HUGGINGFACE_CONFIG = "config.huggingface.json"
"""The original config of imported weights."""
MANIFEST = "manifest.json"
"""A file of a checkpoint that is complete; see `manifest`."""


def checkpoints_folder(run_dir: str, folder: str | None) -> str:
    """Return the folder of a run's checkpoints: `checkpoint.folder`, or else one in the run directory."""
    return folder or storage.join(run_dir, "checkpoints")


def is_step(name: str) -> bool:
    """Return whether the name of a folder is a number of a step, as this program writes it."""
    return name.isascii() and name.isdecimal()


def has_checkpoint(folder: str, step: int) -> bool:
    """Return whether the checkpoint of a step is complete in a folder of checkpoints.

    Raises:
        UserError: the store cannot be read.
    """
    return storage.file_exists(storage.join(folder, f"{step}/{MANIFEST}"))


def newest_checkpoint(folder: str) -> int | None:
    """Return the step of the newest complete checkpoint in a folder; None if there is none.

    Raises:
        UserError: the store cannot be read.
    """
    steps = [int(name) for name in storage.list_names(folder) if is_step(name)]
    for step in sorted(steps, reverse=True):
        if has_checkpoint(folder, step):
            return step
    return None
