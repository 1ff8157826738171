"""Read and write safetensors files, with one tensor in memory at a time."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
from jaxtyping import Shaped

from t5x_lite.convert.weight_map import TensorMapping
from t5x_lite.errors import UserError
from t5x_lite.files import read_json_object

INDEX_FILE = "model.safetensors.index.json"
"""The file that tells which of several files stores which tensor."""

WEIGHTS_FILE = "model.safetensors"
NUMPY_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Types of weights as safetensors and as NumPy spell them."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        path: the file.
        name: the name of the tensor in the file.
        shape: its shape.
        dtype: its type as safetensors spells it.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> Shaped[np.ndarray, "..."]:
        """Return the values.

        The file is opened for this tensor alone. Otherwise the pages of all tensors read so far would stay in memory.
        """
        with safetensors.safe_open(self.path, framework="np") as file:
            return file.get_slice(self.name)[...]

    def read_finite(self) -> Shaped[np.ndarray, "..."]:
        """Return the values.

        Raises:
            UserError: some are NaN or infinite.
        """
        values = self.read()
        if not np.isfinite(values.astype(np.float32, copy=False)).all():
            raise UserError(f"{self.path}: the tensor {self.name} has values that are NaN or infinite")
        return values


def check_types(tensors: Mapping[str, StoredTensor]) -> None:
    """Check that all weights are floating-point numbers.

    Raises:
        UserError: a tensor of another type, as in quantised models.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in NUMPY_DTYPES:
            raise UserError(
                f"{tensor.path}: the tensor {name} is of type {tensor.dtype}; only {', '.join(NUMPY_DTYPES)} are read: "
                "save quantised models as floating-point weights first"
            )


def list_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a folder by name, without reading their values.

    Raises:
        UserError: the folder has no safetensors file, or one that cannot be read.
    """
    paths = _find_files(folder)
    if not paths:
        raise UserError(
            f"{folder}: no .safetensors file is there; files of other kinds (pickles) are not read: "
            "save the model with save_pretrained(..., safe_serialization=True)"
        )
    tensors = {}
    for path in paths:
        try:
            with safetensors.safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118
                    entry = file.get_slice(name)
                    tensors[name] = StoredTensor(path, name, tuple(entry.get_shape()), entry.get_dtype())
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
    return tensors


def _find_files(folder: Path) -> list[Path]:
    """Return the files of the model's weights. Adapters and copies in other formats may be in the same folder.

    Raises:
        UserError: an index that cannot be read, or several files that may be the model's.
    """
    index_path = folder / INDEX_FILE
    if not index_path.is_file():
        if (folder / WEIGHTS_FILE).is_file():
            return [folder / WEIGHTS_FILE]
        parts = sorted(folder.glob("model-*-of-*.safetensors"))
        paths = parts or sorted(folder.glob("*.safetensors"))
        if len(paths) > 1 and not parts:
            names = ", ".join(path.name for path in paths[:6])
            raise UserError(f"{folder}: has no {WEIGHTS_FILE} but {names}; rename the one that holds the model")
        return paths
    file_of_tensor = read_json_object(index_path).get("weight_map")
    if not isinstance(file_of_tensor, dict):
        raise UserError(f"{index_path}: has no weight_map from tensors to files")
    file_names = set()
    for name in file_of_tensor.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index_path}: names the file {str(name)[:80]!r}, which is not in its folder")
        file_names.add(name)
    return [folder / name for name in sorted(file_names)]


def split_into_files(
    mappings: Sequence[TensorMapping], bytes_per_value: int, max_bytes: int
) -> dict[str, list[TensorMapping]]:
    """Return file names and the tensors of each file, of at most `max_bytes` unless one tensor is larger."""
    groups: list[list[TensorMapping]] = [[]]
    group_bytes = 0
    for mapping in mappings:
        tensor_bytes = bytes_per_value * math.prod(mapping.shape)
        if groups[-1] and group_bytes + tensor_bytes > max_bytes:
            groups.append([])
            group_bytes = 0
        groups[-1].append(mapping)
        group_bytes += tensor_bytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{n:05d}-of-{len(groups):05d}.safetensors": group for n, group in enumerate(groups, start=1)}


def write_tensors(
    path: Path, mappings: Sequence[TensorMapping], dtype: np.dtype, read_array: Callable[[str], np.ndarray]
) -> Iterator[TensorMapping]:
    """Write a safetensors file, one tensor at a time; the library's own writer needs all of them in memory.

    Yields each mapping after its tensor is written.

    Args:
        path: the file.
        mappings: the tensors.
        dtype: the type in the file.
        read_array: returns one of our arrays by name.
    """
    header = _describe_tensors(mappings, dtype)
    encoded_header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    padding = b" " * (-len(encoded_header) % 8)
    encoded_header += padding
    length_bytes = 8
    data_start = length_bytes + len(encoded_header)
    with path.open("wb") as file:
        file.write(len(encoded_header).to_bytes(length_bytes, "little"))
        file.write(encoded_header)
        for mapping in mappings:
            begin, _ = header[mapping.tensor]["data_offsets"]
            file.seek(data_start + begin)
            tensor = mapping.to_foreign(read_array).astype(dtype, copy=False)
            file.write(np.ascontiguousarray(tensor).view(np.uint8).data)
            yield mapping


def _describe_tensors(mappings: Sequence[TensorMapping], dtype: np.dtype) -> dict[str, dict]:
    """Return the header of a file.

    The format (the library's README) is the length of the header, the header as JSON padded to eight bytes, and the
    tensors without gaps. The library writes tensors of one type in the order of their names.
    """
    dtype_name = _safetensors_dtype(dtype)
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for mapping in sorted(mappings, key=_tensor_name):
        end = begin + dtype.itemsize * math.prod(mapping.shape)
        header[mapping.tensor] = {"dtype": dtype_name, "shape": mapping.shape, "data_offsets": (begin, end)}
        begin = end
    return header


def _tensor_name(mapping: TensorMapping) -> str:
    return mapping.tensor


def _safetensors_dtype(dtype: np.dtype) -> str:
    for safetensors_name, numpy_name in NUMPY_DTYPES.items():
        if numpy_name == dtype:
            return safetensors_name
    raise ValueError(f"safetensors files of type {dtype} are not written")


def write_index(path: Path, files: dict[str, list[TensorMapping]], bytes_per_value: int) -> None:
    """Write the index of several files.

    Args:
        path: the index.
        files: file names and the tensors of each file.
        bytes_per_value: the size of one value.
    """
    total_bytes = 0
    file_of_tensor = {}
    for file_name, mappings in files.items():
        for mapping in mappings:
            total_bytes += bytes_per_value * math.prod(mapping.shape)
            file_of_tensor[mapping.tensor] = file_name
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(file_of_tensor.items()))}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
