"""Hugging Face folders (config.json, safetensors, tokenizer files) to runs and back, one tensor in memory at a time."""

import json
import math
import re
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors

from t5x_lite import config as configuration
from t5x_lite import schema
from t5x_lite.adapt.initial_weights import merged_weights
from t5x_lite.checkpoint import Checkpoints
from t5x_lite.config import CheckpointConfig, MeshConfig, RunConfig
from t5x_lite.convert import FAMILIES, Family
from t5x_lite.convert.family import resolved
from t5x_lite.convert.tensors import Entry, Table
from t5x_lite.data import tokenizer as tokenizers
from t5x_lite.data.config import TokenizerFile
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.errors import UserError
from t5x_lite.models.components import Learned
from t5x_lite.models.config import ModelConfig
from t5x_lite.parallel import mesh as meshes
from t5x_lite.progress import track_progress
from t5x_lite.run_dir import FOREIGN_CONFIG, Run, open_run
from t5x_lite.trees import flatten_names, unflatten_names

SHARD_BYTES = 5 * 10**9
"""Size of one file of an export at most, as Transformers has it."""
INDEX = "model.safetensors.index.json"
NOT_COMPARED = {"dropout", "init", "compute", "remat", "unroll", "kernel"}
"""Settings of a model that its config in another format need not hold."""

KNOWN = ", ".join(FAMILIES)
HEADS = ("lm_head", "cls.", "predictions.", "sop_classifier.", "generator_", "discriminator_")
"""Modules that stand beside the base model, whose own prefix some files leave out."""
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Types as safetensors and as NumPy spell them."""


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file; `kind` is its type as safetensors spells it."""

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: str

    def read(self) -> np.ndarray:
        """Its values. The file is opened for it alone, or the pages of all that was read would stay in memory."""
        with safetensors.safe_open(self.path, framework="np") as file:
            return file.get_slice(self.name)[...]


def _tensors(folder: Path, family: Family) -> dict[str, Tensor]:
    """The tensors of one file, or of the files of an index, by the names that newer files with a prefix give them."""
    paths = sorted(folder.glob("*.safetensors"))
    if (folder / INDEX).is_file():
        paths = sorted({folder / name for name in _read_json(folder / INDEX)["weight_map"].values()})
    if not paths:
        raise UserError(
            f"{folder}: no .safetensors file is there; files of other kinds (pickles) are not read: "
            "save the model with save_pretrained(..., safe_serialization=True)"
        )
    found = {}
    for path in paths:
        try:
            with safetensors.safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118
                    part = file.get_slice(name)
                    found[name] = Tensor(path, name, tuple(part.get_shape()), part.get_dtype())
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
    if not any(name.startswith(family.prefix) for name in found):
        found = {name if name.startswith(HEADS) else family.prefix + name: own for name, own in found.items()}
    for old, new in family.renamed.items():
        found = {re.sub(old, new, name): own for name, own in found.items()}
    return found


def import_hf(folder: Path, run_dir: Path) -> Run:
    """Make a run directory from a Hugging Face folder: config, tokenizer (where there is one), checkpoint 0.

    Raises:
        UserError: not such a folder, a model type that is not known, tensors that do not fit (all of them), or a run
            directory that exists.
    """
    hf = _read_json(folder / "config.json")
    family = FAMILIES.get(hf.get("model_type", ""))
    if family is None:
        raise UserError(f"{folder / 'config.json'}: model_type {hf.get('model_type')!r} is not one of {KNOWN}")
    if (run_dir / "config.yaml").exists():
        raise UserError(f"{run_dir}: is a run already; give another directory")
    tensors = _tensors(folder, family)
    # What is ignored because it is a copy may also be a tensor of its own.
    ignored = {name for name in tensors if any(re.fullmatch(pattern, name) for pattern in family.ignored)}
    try:
        settings = family.model(hf, tensors.keys() - ignored)
    except KeyError as error:
        raise UserError(f"{folder / 'config.json'}: {error} is missing or not known here") from None
    model = schema.validate(ModelConfig, schema.Sources(settings, {"": str(folder / "config.json")}))
    table = family.table(model)
    table.check(str(folder), {name: own.shape for name, own in tensors.items()}, ignored)
    params = params_of(table, lambda name: tensors[name].read())
    hf["dtype"] = DTYPES.get(statistics.mode(own.kind for own in tensors.values()), "float32")
    return write_run(run_dir, model, family.objective_of(model), params, tokenizer_of(folder, model), hf)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def params_of(table: Table, read: Callable[[str], np.ndarray]) -> Any:
    """Our arrays, on the devices; each is filled on the host from theirs and given away before the next."""
    plan = table.blueprint
    shardings = flatten_names(meshes.shardings(meshes.make_mesh(MeshConfig()), plan.axes, plan.shapes))
    params = {}
    with track_progress("reading") as advance:
        for name, sharding in shardings.items():
            params[name] = jax.device_put(table.to_ours(name, read), sharding)
            advance(name, len(params), len(shardings))
    return unflatten_names(params)


def write_run(
    run_dir: Path,
    model: ModelConfig,
    objective: Any,
    params: Any,
    tokenizer: Tokenizer | None,
    foreign: Mapping[str, Any] | None = None,
) -> Run:
    """A run directory of weights from elsewhere: what `eval`, `generate` and `export` need."""
    length = model.positions.length if isinstance(model.positions, Learned) else 512
    sentences = isinstance(objective, dict) and objective["masked"]["sentences"] != "none"
    settings = {
        "model": model.model_dump(mode="json"),
        "objective": objective,
        "data": {"packing": "sentences", "parts": "punctuation"} if sentences else {},
        "tokenizer": {"file": {"path": str(run_dir / (tokenizer.file_name if tokenizer else "tokenizer.json"))}},
        "train": {"steps": 1, "batch_size": 8, "seq_len": min(length, 512)},
    }
    config = configuration.dump(schema.validate(RunConfig, schema.Sources(settings, {"": "import"})))
    run_dir.mkdir(parents=True, exist_ok=True)
    with closing(Checkpoints(run_dir / "checkpoints", CheckpointConfig())) as checkpoints:
        checkpoints.write(0, {"params": params}, {"config": config})
    if tokenizer is not None:
        tokenizer.save(run_dir)
    if foreign is not None:
        (run_dir / FOREIGN_CONFIG).write_text(json.dumps(foreign, indent=2) + "\n", encoding="utf-8")
    (run_dir / "config.yaml").write_text(config, encoding="utf-8")
    return open_run(run_dir)


def tokenizer_of(folder: Path, model: ModelConfig) -> Tokenizer | None:
    """The tokenizer that lies beside foreign weights, if there is one."""
    for name in ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt"):
        if (folder / name).is_file():
            found = tokenizers.from_file(TokenizerFile(path=str(folder / name)))
            if name == "spiece.model" and model.family == "encoder_decoder" and not found.sentinels():
                # T5's file leaves out the hundred sentinels that its tokenizer adds.
                return tokenizers.from_file(TokenizerFile(path=str(folder / name), extra_ids=100))
            return found
    return None


def export_hf(run_dir: Path, folder: Path, step: int | None = None) -> Path:
    """Write a run's weights, config and tokenizer as Transformers reads them; of ELECTRA's pair, the discriminator.

    Raises:
        UserError: a model that none of the known model types can hold, with what stands in the way.
    """
    run = open_run(run_dir)
    hf = _read_json(run_dir / FOREIGN_CONFIG) if (run_dir / FOREIGN_CONFIG).is_file() else {}
    model = run.config.model
    model = model.model_of_discriminator if model.family == "electra" else model
    family = family_of(model, hf.get("model_type"))
    table = family.table(model)
    dtype = np.dtype(hf.get("dtype", "float32"))
    arrays = merged_weights(run, meshes.make_mesh(MeshConfig()), step)[1]
    arrays = {name.removeprefix("discriminator."): value for name, value in arrays.items()}
    folder.mkdir(parents=True, exist_ok=True)
    files = _shards(table, dtype.itemsize)

    # The experts of an array are written one after the other.
    array_of = lru_cache(maxsize=1)(lambda name: np.asarray(arrays[name]))
    with track_progress("writing") as advance:
        written = (_written(folder / name, entries, dtype, array_of) for name, entries in files.items())
        for done, entry in enumerate(chain.from_iterable(written), 1):
            advance(entry.theirs, done, len(table.entries))
    if len(files) > 1:
        places = {entry.theirs: name for name, entries in files.items() for entry in entries}
        total = dtype.itemsize * sum(math.prod(entry.shape) for entry in table.entries)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    own = {"model_type": family.model_type, "architectures": [family.architecture_of(model)]}
    # One setting here stands for several kinds of dropout there: what the model came with is more exact.
    dropouts = {key: value for key, value in hf.items() if "drop" in key}
    config = _special_ids(run) | hf | family.config(model) | dropouts | own | {"dtype": str(dtype)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for path in (run_dir / name for name in ("tokenizer.json", "tokenizer.model")):
        if path.is_file():
            t5s = path.suffix == ".model" and family.model_type.endswith("t5")
            shutil.copy(path, folder / ("spiece.model" if t5s else path.name))
    return folder


def _written(
    path: Path, entries: Sequence[Entry], dtype: np.dtype, array_of: Callable[[str], np.ndarray]
) -> Iterator[Entry]:
    """Write a safetensors file, one tensor at a time: the library's own writer wants all of them in memory.

    The format is a length, a JSON header padded to eight bytes, and the tensors in the order of their names, without
    gaps (the library's README).
    """
    kind = next(theirs for theirs, ours in DTYPES.items() if ours == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.theirs):
        start, end = end, end + dtype.itemsize * math.prod(entry.shape)
        header[entry.theirs] = {"dtype": kind, "shape": entry.shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            file.seek(8 + len(text) + header[entry.theirs]["data_offsets"][0])
            tensor = entry.tensor(array_of).astype(dtype, copy=False)
            file.write(np.ascontiguousarray(tensor).view(np.uint8).data)
            yield entry


def _special_ids(run: Run) -> dict[str, int]:
    """Ids that Transformers' generation goes by, of a run that was trained here."""
    own = run.own_tokenizer
    found = {} if own is None else {"eos_token_id": own.eos, "bos_token_id": own.eos, "pad_token_id": own.pad}
    return {name: value for name, value in found.items() if value is not None}


def _shards(table: Table, itemsize: int) -> dict[str, list[Entry]]:
    """File names and what each holds, at most `SHARD_BYTES`, in the table's order."""
    groups: list[list[Entry]] = [[]]
    size = 0
    for entry in table.entries:
        own = itemsize * math.prod(entry.shape)
        size += own
        if groups[-1] and size > SHARD_BYTES:
            groups.append([])
            size = own
        groups[-1].append(entry)
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{n:05d}-of-{len(groups):05d}.safetensors": group for n, group in enumerate(groups, start=1)}


def family_of(model: ModelConfig, known: str | None) -> Family:
    """The model type that it came from, or the first whose config turns back into this very model."""
    if known in FAMILIES:
        return FAMILIES[str(known)]
    faults = {}
    kinds = {"encoder_decoder": "span_corruption", "encoder": "masked", "decoder": "causal"}
    for family in (own for own in FAMILIES.values() if own.objective == kinds.get(model.family)):
        try:
            names = ["lm_head.weight"] * (not model.tied) + family.marks(model)
            back = ModelConfig.model_validate(family.model(family.config(model), names))
        except (AssertionError, ValueError, UserError, KeyError, StopIteration):
            continue
        faults[family.model_type] = _differences(model, back)
        if not faults[family.model_type]:
            return family
    nearest = min(faults, key=lambda name: len(faults[name])) if faults else ""
    why = f"; nearest is {nearest}, but for {'; '.join(faults[nearest])}" if faults else ""
    raise UserError(f"no model type of Transformers known here ({KNOWN}) holds this model{why}")


def _differences(model: ModelConfig, other: ModelConfig) -> list[str]:
    ours, theirs = resolved(model), resolved(other)
    return [
        f"{key} {ours.get(key)!r} instead of {theirs.get(key)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and NOT_COMPARED.isdisjoint(key.split("."))
    ]
