"""Samples of tar files as WebDataset groups them, by its library (extra `webdataset`).

Files of a tar file whose names agree up to the first dot are a sample. The rest of their names is the name of a field.
"""

import json
import tarfile
from collections.abc import Iterator

from t5x_lite.data.files import READ_ERRORS, open_file
from t5x_lite.errors import UserError
from t5x_lite.extras import require_library

JSON_FIELD = "json"


def check_library(path: str) -> None:
    """Check that the library is installed.

    Raises:
        UserError: it is not; names the tar file that needs it.
    """
    require_library(f"data.files: {path}", "webdataset", "webdataset")


def records(path: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the key and the fields of each sample of a tar file, in order.

    The fields are the contents of its files by their endings, such as `txt`, and the columns of its `json`.

    Raises:
        UserError: the library is not installed; the file cannot be read.
    """
    check_library(path)
    from webdataset.tariterators import group_by_keys, tar_file_expander

    try:
        with open_file(path) as stream:
            files = tar_file_expander([{"url": path, "stream": stream}])
            for sample in group_by_keys(files):
                key = str(sample["__key__"])
                yield key, {**_json_columns(path, key, sample), **sample}
    except (tarfile.TarError, ValueError, *READ_ERRORS) as error:
        raise UserError(f"{path}: cannot be read as a tar file of WebDataset: {error.args[0]}") from None


def _json_columns(path: str, key: str, sample: dict[str, object]) -> dict[str, object]:
    """Return the columns of the object in the `json` of a sample; none if it has no such file."""
    content = sample.get(JSON_FIELD)
    if not isinstance(content, bytes):
        return {}
    try:
        columns: object = json.loads(content)
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path} sample {key}: its .json cannot be read: {error}") from None
    if not isinstance(columns, dict):
        return {}
    return columns
