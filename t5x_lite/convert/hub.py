"""Models of the Hugging Face Hub, downloaded by its client (extra `hub`) into its cache."""

import re
from pathlib import Path

from t5x_lite.errors import UserError
from t5x_lite.extras import require_library

MODEL_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
SAFE_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
"""Files that are downloaded: configs, weights and tokenizers. Pickles (`.bin`, `.pt`) and programs can run code."""


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
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{source}: is not a folder, and cannot be downloaded from the Hugging Face Hub: {type(error).__name__}: "
            f"{reason}; check the name, the network, and `hf auth login` for a private model"
        ) from None
    return Path(folder)
