"""The command `t5x-lite export hf RUN DIR [--push ORG/NAME]`."""

from pathlib import Path

from t5x_lite.convert import hub
from t5x_lite.convert.huggingface import export_hf
from t5x_lite.errors import UserError


def export_model(run_dir: str, folder: Path, step: int | None, push: str | None, *, private: bool) -> None:
    """Export a run, upload it if a name is given, and print the folder and the address.

    Args:
        run_dir: the run.
        folder: the folder to write.
        step: the step of the checkpoint; None takes the newest.
        push: `ORG/NAME` on the Hugging Face Hub; None does not upload.
        private: create the model there as a private one.

    Raises:
        UserError: see `export_hf`, `check_push` and `push_model`.
    """
    if private and not push:
        raise UserError("export hf: --private says how a model is created on the Hub; name it by --push ORG/NAME")
    if push:
        hub.check_push(push)
    print(export_hf(run_dir, folder, step, hub_name=push))
    if push:
        print(hub.push_model(folder, push, private=private))
