"""Data sets of the Hugging Face Hub, streamed by its library `datasets` (extra `hfdata`).

A source names `hf://ORG/NAME@REVISION#CONFIG/SPLIT`, or a local folder as the library reads it, `hf:///PATH#SPLIT`.
Records are read one after the other while they are tokenised: neither memory nor disk holds the data set.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from t5x_lite.errors import UserError, one_line
from t5x_lite.extras import require_library

if TYPE_CHECKING:
    from datasets import IterableDataset

SCHEME = "hf://"
NAME = re.compile(
    r"hf://(?P<name>[^@#]+)(?:@(?P<revision>[^#]+))?(?:#(?:(?P<config>[^/#]+)/)?(?P<split>[^/#]+))?", re.ASCII
)
COMMIT = re.compile(r"[0-9a-f]{40}")
DEFAULT_SPLIT = "train"


@dataclass(frozen=True)
class HubDataset:
    """A split of a data set.

    Attributes:
        name: `ORG/NAME`, or the path of a local folder.
        revision: branch, tag or commit; empty takes the main branch.
        config: the configuration; empty takes the data set's default.
        split: the split.
    """

    name: str
    revision: str
    config: str
    split: str

    @property
    def is_local(self) -> bool:
        """True for a local folder."""
        return self.name.startswith((".", "/", "~"))

    @property
    def url(self) -> str:
        """The name in full, as `parse` reads it."""
        revision = f"@{self.revision}" if self.revision else ""
        config = f"{self.config}/" if self.config else ""
        return f"{SCHEME}{self.name}{revision}#{config}{self.split}"


def parse(url: str, split: str = DEFAULT_SPLIT) -> HubDataset:
    """Return the data set that a name in `data.files` means.

    Args:
        url: the name.
        split: `data.split`, for a name without a split.

    Raises:
        UserError: it is not such a name, or both it and `data.split` name a split.
    """
    match = NAME.fullmatch(url)
    if match is None:
        raise UserError(f"data.files: {url} is not hf://ORG/NAME, hf://ORG/NAME@REVISION or either with #CONFIG/SPLIT")
    if match["split"] and split not in {DEFAULT_SPLIT, match["split"]}:
        raise UserError(f"data.files: {url} names a split, and so does data.split or data.validation_split ({split})")
    return HubDataset(match["name"], match["revision"] or "", match["config"] or "", match["split"] or split)


def pin(dataset: HubDataset) -> HubDataset:
    """Return the data set at the commit that its revision is at now, so that a corpus belongs to one content.

    Raises:
        UserError: the library is not installed; the Hub cannot be reached, or has no such data set or revision.
    """
    if dataset.is_local or COMMIT.fullmatch(dataset.revision):
        return dataset
    require_library(f"data.files: {dataset.url}", "datasets", "hfdata")
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(dataset.name, revision=dataset.revision or None).sha
    except Exception as error:  # of the network, of the Hub and of its offline mode
        raise _unreadable(dataset, error) from None
    return HubDataset(dataset.name, str(commit), dataset.config, dataset.split)


def local_files(dataset: HubDataset) -> list[str]:
    """Return the files of a local folder, whose sizes and times say whether it has changed; none for the Hub."""
    if not dataset.is_local:
        return []
    return sorted(str(path) for path in Path(dataset.name).expanduser().rglob("*") if path.is_file())


def count_shards(dataset: HubDataset) -> int:
    """Return the number of files, or parts of files, that can be read at the same time.

    Raises:
        UserError: see `open_dataset`.
    """
    return int(open_dataset(dataset).num_shards)


def records(dataset: HubDataset, shard: int) -> Iterator[dict[str, object]]:
    """Yield the records of one shard, in order.

    Raises:
        UserError: see `open_dataset`; the network fails while they are read.
    """
    stream = open_dataset(dataset)
    try:
        yield from stream.shard(num_shards=stream.num_shards, index=shard)
    except Exception as error:  # of the network, of the Hub and of every format
        raise _unreadable(dataset, error) from None


def open_dataset(dataset: HubDataset) -> "IterableDataset":
    """Open a data set as a stream.

    Raises:
        UserError: the library is not installed, the network is missing, or there is no such data set, config or split.
    """
    require_library(f"data.files: {dataset.url}", "datasets", "hfdata")
    if dataset.is_local:
        return _load(dataset)
    return _load_once(dataset)


def _load(dataset: HubDataset) -> "IterableDataset":
    import datasets

    path = dataset.name
    if dataset.is_local:
        path = str(Path(dataset.name).expanduser())
    try:
        return datasets.load_dataset(
            path,
            dataset.config or None,
            split=dataset.split,
            revision=dataset.revision or None,
            streaming=True,
        )
    except Exception as error:  # of the network, of the Hub and of every format
        raise _unreadable(dataset, error) from None


@lru_cache(maxsize=16)
def _load_once(dataset: HubDataset) -> "IterableDataset":
    """Open a data set of the Hub once in a process: its shards need not ask the Hub for its files again."""
    return _load(dataset)


def _unreadable(dataset: HubDataset, error: Exception) -> UserError:
    reason = one_line(error)
    return UserError(
        f"data.files: {dataset.url} cannot be read: {type(error).__name__}: {reason}; check the name and the network, "
        "or download the data set and name its files"
    )
