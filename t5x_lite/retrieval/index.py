"""An index: the vectors and the texts of a collection, in a folder.

    INDEX/manifest.json         the model, the collection, and the number of passages once all are embedded
    INDEX/passages-00000.jsonl  `id`, `title` and `text` of each passage of a shard
    INDEX/vectors-00000.npy     their vectors, float32 `[passages, embed]`

A shard is complete if it has its vectors. An interrupted build goes on with the first shard that has none.
"""

import io
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ValidationError

from t5x_lite.data.files import hash_file
from t5x_lite.errors import UserError
from t5x_lite.files import read_json_object, write_file
from t5x_lite.integers import ceil_div
from t5x_lite.objectives.passages import Passage
from t5x_lite.progress import track_progress
from t5x_lite.retrieval.collection import StoredPassage, check_collection, read_collection
from t5x_lite.retrieval.encoder import VectorEncoder
from t5x_lite.schema import first_problem

MANIFEST = "manifest.json"
CACHED_SHARDS = 4
"""Shards whose texts stay in memory."""


COMPARED = {
    "fingerprint": "the fingerprint of the model",
    "query_fingerprint": "the fingerprint of the model of queries",
    "collection_hash": "the hash of the file of passages",
    "width": "the width of the vectors",
    "shard_passages": "--shard",
}
"""Fields that an interrupted index has in common with the one that goes on with it, as messages call them."""


class IndexManifest(BaseModel, extra="forbid", strict=True, frozen=True):
    """The content of manifest.json.

    Attributes:
        fingerprint: of the model that the vectors are from.
        query_fingerprint: of the model whose queries are compared with them.
        model: its run directory and step.
        collection_hash: of the file of the passages.
        width: the length of a vector.
        shard_passages: passages of each shard but the last.
        passages: their number; null while the build is not complete.
    """

    fingerprint: str
    query_fingerprint: str
    model: str
    collection_hash: str
    width: int
    shard_passages: int
    passages: int | None = None


class Index:
    """A complete index.

    Args:
        folder: of the index.

    Raises:
        UserError: the folder holds no index, an incomplete one, or vectors of another shape.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        if self.manifest.passages is None:
            raise UserError(f"index {folder}: is not complete; the same `t5x-lite index` command goes on with it")
        self.passages: int = self.manifest.passages
        self._shards = [self._open_vectors(number) for number in range(ceil_div(self.passages, self._shard_passages))]
        self._texts = lru_cache(CACHED_SHARDS)(self._read_texts)

    def __len__(self) -> int:
        return self.passages

    def __getitem__(self, number: int) -> StoredPassage:
        shard, row = divmod(number, self._shard_passages)
        return StoredPassage.from_json(self._texts(shard)[row])

    def vectors(self, start: int, stop: int) -> Float[np.ndarray, "rows d"]:
        """Return the vectors of passages `[start, stop)`."""
        parts = [np.zeros((0, self.manifest.width), np.float32)]
        while start < stop:
            shard, row = divmod(start, self._shard_passages)
            part = self._shards[shard][row : row + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def missing(self, ids: AbstractSet[str], passages: AbstractSet[Passage]) -> tuple[set[str], set[Passage]]:
        """Return those of some ids and passages that are not in the index. It is read until the last of them occurs."""
        missing_ids = set(ids)
        missing_passages = set(passages)
        with track_progress("comparing passages") as advance:
            for number in range(len(self._shards)):
                if not missing_ids and not missing_passages:
                    break
                for line in self._read_texts(number):
                    stored = StoredPassage.from_json(line)
                    missing_ids.discard(stored.id)
                    missing_passages.discard(stored.passage)
                advance("", number + 1, len(self._shards))
        return missing_ids, missing_passages

    def check_queries(self, encoder: VectorEncoder) -> None:
        """Refuse a model whose queries the vectors are not for.

        Raises:
            UserError: the index is of another model.
        """
        if encoder.fingerprint == self.manifest.query_fingerprint:
            return
        raise UserError(
            f"index {self.folder}: is for queries of another model than {encoder.name}: its vectors are of "
            f"{self.manifest.model} (fingerprint {self.manifest.query_fingerprint}, not {encoder.fingerprint}); build "
            "one with `t5x-lite index`"
        )

    @property
    def _shard_passages(self) -> int:
        return self.manifest.shard_passages

    def _open_vectors(self, number: int) -> Float[np.ndarray, "rows d"]:
        path = vectors_path(self.folder, number)
        rows = min(self._shard_passages, self.passages - number * self._shard_passages)
        vectors = _load_vectors(path)
        if vectors.shape != (rows, self.manifest.width):
            raise UserError(f"{path}: has the shape {vectors.shape}, expected ({rows}, {self.manifest.width})")
        return vectors

    def _read_texts(self, number: int) -> list[str]:
        path = passages_path(self.folder, number)
        try:
            return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from None


def vectors_path(folder: Path, shard: int) -> Path:
    """Return the file of the vectors of a shard."""
    return folder / f"vectors-{shard:05d}.npy"


def passages_path(folder: Path, shard: int) -> Path:
    """Return the file of the texts of a shard."""
    return folder / f"passages-{shard:05d}.jsonl"


def read_manifest(folder: Path) -> IndexManifest:
    """Read the manifest of an index.

    Raises:
        UserError: the folder holds no index.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise UserError(f"index {folder}: is not an index (no {MANIFEST}); `t5x-lite index` builds one")
    try:
        return IndexManifest.model_validate(read_json_object(path))
    except ValidationError as error:
        raise UserError(f"{path}: the field {first_problem(error)}") from None


def build_index(
    encoder: VectorEncoder,
    collection: Path,
    folder: Path,
    shard_passages: int,
    query_encoder: VectorEncoder | None = None,
) -> IndexManifest:
    """Embed the passages of a file, shard by shard. A build that was interrupted goes on.

    Args:
        encoder: the model.
        collection: the file of the passages.
        folder: of the index; it is created.
        shard_passages: passages of a shard.
        query_encoder: the model of the queries, if it is another run.

    Raises:
        UserError: the folder holds an index of another model or collection; the collection cannot be read or is empty.
    """
    check_collection(collection)
    passages = read_collection(collection)
    manifest = IndexManifest(
        fingerprint=encoder.fingerprint,
        query_fingerprint=(query_encoder or encoder).fingerprint,
        model=encoder.name,
        collection_hash=hash_file(str(collection)).hex(),
        width=encoder.width,
        shard_passages=shard_passages,
    )
    existing = _existing_manifest(folder, manifest)
    if existing.passages is not None:
        return existing
    total = 0
    with track_progress("indexing") as advance:
        for shard, stored in enumerate(_in_shards(passages, shard_passages)):
            if shard == 0:
                write_file(folder / MANIFEST, existing.model_dump_json(indent=2) + "\n")
            _build_shard(encoder, folder, shard, stored)
            total += len(stored)
            advance(f"{total:,} passages", total, total)
    if not total:
        raise UserError(f"{collection}: holds no passage")
    complete = manifest.model_copy(update={"passages": total})
    write_file(folder / MANIFEST, complete.model_dump_json(indent=2) + "\n")
    return complete


def _existing_manifest(folder: Path, manifest: IndexManifest) -> IndexManifest:
    """Return the manifest of the folder if it is of the same index, or the new one where there is none.

    Raises:
        UserError: the folder holds another index.
    """
    if not (folder / MANIFEST).exists():
        return manifest
    existing = read_manifest(folder)
    different = []
    for name, description in COMPARED.items():
        if getattr(existing, name) != getattr(manifest, name):
            different.append(f"{description} was {getattr(existing, name)!r}, is {getattr(manifest, name)!r}")
    if different:
        raise UserError(f"index {folder}: belongs to another index: {'; '.join(different)}; give another folder")
    return existing


def _build_shard(encoder: VectorEncoder, folder: Path, shard: int, stored: Sequence[StoredPassage]) -> None:
    """Write a shard, unless it is complete. Its vectors are written last."""
    path = vectors_path(folder, shard)
    if path.exists() and len(_load_vectors(path)) == len(stored):
        return
    vectors = encoder.passages([item.passage for item in stored])
    write_file(passages_path(folder, shard), "".join(item.to_json() for item in stored))
    content = io.BytesIO()
    np.save(content, vectors)
    write_file(path, content.getvalue())


def _load_vectors(path: Path) -> Float[np.ndarray, "rows d"]:
    """Return the vectors of a file, which are read from the disk when they are used.

    Raises:
        UserError: they cannot be read.
    """
    try:
        vectors: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read: {error}; delete it and run `t5x-lite index` again") from None
    if vectors.dtype != np.float32 or vectors.ndim != 2:
        raise UserError(f"{path}: is an array of {vectors.dtype} {vectors.shape}, expected float32 [passages, embed]")
    return vectors


def _in_shards(passages: Iterator[StoredPassage], size: int) -> Iterator[list[StoredPassage]]:
    while shard := list(islice(passages, size)):
        yield shard
