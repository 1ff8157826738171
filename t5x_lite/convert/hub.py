"""Models of the Hugging Face Hub, downloaded into its cache and uploaded by its client (extra `hub`)."""

import re
from pathlib import Path

from t5x_lite.errors import UserError, one_line
from t5x_lite.extras import require_library

MODEL_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
SAFE_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
"""Files that are downloaded: configs, weights and tokenizers. Pickles (`.bin`, `.pt`) and programs can run code."""

EXPORTED_FILES = [*SAFE_FILES, "README.md", "report.png"]
"""Files of a folder that are uploaded."""


def check_push(name: str) -> None:
    """Check that a model can be uploaded, before it is exported: its name, the client, the network and the token.

    Raises:
        UserError: one of these is missing or wrong.
    """
    match = MODEL_NAME.fullmatch(name)
    if match is None or match["revision"]:
        raise UserError(f"--push {name}: is not ORG/NAME")
    require_library(f"--push {name}:", "huggingface_hub", "hub")
    import huggingface_hub

    try:
        huggingface_hub.HfApi().whoami()
    except Exception as error:  # of the network, of the Hub and of its offline mode
        raise _push_error(name, error) from None


def push_model(folder: Path, name: str, *, private: bool) -> str:
    """Upload the files of an export as one commit, and return the address of the model.

    The token is the one that the client has stored (`hf auth login`, or `HF_TOKEN`).

    Args:
        folder: the export.
        name: `ORG/NAME`; the model is created if it does not exist.
        private: create it as a private one.

    Raises:
        UserError: the network fails, or the token may not write there.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        # Without a word on it, the Hub creates what the organisation's settings say.
        address = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=EXPORTED_FILES, commit_message="Export of t5x_lite"
        )
    except Exception as error:  # of the network, of the Hub and of its offline mode
        raise _push_error(name, error) from None
    return str(address)


def _push_error(name: str, error: Exception) -> UserError:
    reason = one_line(error)
    return UserError(
        f"--push {name}: cannot be uploaded to the Hugging Face Hub: {type(error).__name__}: {reason}; check the name, "
        "the network, and `hf auth login` with a token that may write"
    )


def find_model(source: Path) -> Path:
    """Return a local folder, or the folder in the cache of a model of the Hub, after its safe files are downloaded.

    Args:
        source: a folder, or `ORG/NAME` or `ORG/NAME@REVISION` if there is no such folder.

    Raises:
        UserError: the client is not installed, the network is missing, or there is no such model or revision.
    """
    match = MODEL_NAME.fullmatch(str(source))
    if source.exists() or source.parent.exists() or match is None:
        return source
    require_library(f"{source}: is not a folder, and the Hub", "huggingface_hub", "hub")
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(match["name"], revision=match["revision"], allow_patterns=SAFE_FILES)
    except Exception as error:  # of the network, of the Hub and of its offline mode
        reason = one_line(error)
        raise UserError(
            f"{source}: is not a folder, and cannot be downloaded from the Hugging Face Hub: {type(error).__name__}: "
            f"{reason}; check the name, the network, and `hf auth login` for a private model"
        ) from None
    return Path(folder)
