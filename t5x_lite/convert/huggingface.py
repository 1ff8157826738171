"""Hugging Face folders (config.json, safetensors, tokenizer files) to runs and back, one tensor in memory at a time."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors

from t5x_lite import config as configuration
from t5x_lite import schema
from t5x_lite.checkpoint import Checkpoints, flat
from t5x_lite.config import CheckpointConfig, MeshConfig, RunConfig
from t5x_lite.convert import FAMILIES, Family
from t5x_lite.convert.family import resolved
from t5x_lite.convert.tensors import Entry, Table, compare
from t5x_lite.data import tokenizer as tokenizers
from t5x_lite.data.config import TokenizerFile
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.errors import UserError
from t5x_lite.models.components import Learned
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.transformer import Blueprint, blueprint
from t5x_lite.parallel import mesh as meshes
from t5x_lite.run import FOREIGN_CONFIG, Run, open_run
from t5x_lite.start import merged

SHARD_BYTES = 5 * 10**9
"""Size of one file of an export at most, as Transformers has it."""
INDEX = "model.safetensors.index.json"
NOT_COMPARED = ("dropout", "init", "compute", "remat", "unroll", "kernel")
"""Settings of a model that its config in another format need not hold."""

KNOWN = ", ".join(FAMILIES)
Progress = Callable[[str, int, int], None]


class Weights:
    """The tensors of a folder by name, read one at a time from one file or from the files of an index.

    `shapes` are theirs; `dtype` is that of most of them, as safetensors spells it (F32, BF16, F16).
    """

    def __init__(self, folder: Path, family: Family) -> None:
        found: dict[str, tuple[Path, tuple[int, ...]]] = {}
        kinds: list[str] = []
        paths = sorted(folder.glob("*.safetensors"))
        if (folder / INDEX).is_file():
            paths = sorted({folder / name for name in _read_json(folder / INDEX)["weight_map"].values()})
        if not paths:
            raise UserError(
                f"{folder}: no .safetensors file is there; files of other kinds (pickles) are not read: "
                "save the model with save_pretrained(..., safe_serialization=True)"
            )
        for path in paths:
            try:
                with safetensors.safe_open(path, framework="np") as file:
                    for name in file.keys():  # noqa: SIM118
                        part = file.get_slice(name)
                        found[name] = path, tuple(part.get_shape())
                        kinds.append(part.get_dtype())
            except (OSError, safetensors.SafetensorError) as error:
                raise UserError(f"{path}: cannot be read: {error}") from None
        self.dtype = max(set(kinds), key=kinds.count, default="F32")
        bare = not any(name.startswith(family.prefix) for name in found)
        self._places, self.shapes = dict[str, tuple[Path, str]](), dict[str, tuple[int, ...]]()
        for name, (path, shape) in found.items():
            ours = family.prefix + name if bare and not name.startswith(HEADS) else name
            for old, new in family.renamed.items():
                ours = re.sub(old, new, ours)
            self._places[ours], self.shapes[ours] = (path, name), shape

    def read(self, name: str) -> np.ndarray:
        """One tensor. The file is opened for it alone, or the pages of all that was read would stay in memory."""
        path, theirs = self._places[name]
        with safetensors.safe_open(path, framework="np") as file:
            return file.get_slice(theirs)[...]


HEADS = ("lm_head", "cls.", "predictions.", "sop_classifier.", "generator_", "discriminator_")
"""Modules that stand beside the base model, whose own prefix some files leave out."""
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def import_hf(folder: Path, run_dir: Path, progress: Progress) -> Run:
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
    weights = Weights(folder, family)
    ignored = {name for name in weights.shapes if any(re.fullmatch(pattern, name) for pattern in family.ignored)}
    try:
        settings = family.model(hf, weights.shapes.keys() - ignored)
    except KeyError as error:
        raise UserError(f"{folder / 'config.json'}: {error} is missing or not known here") from None
    model = schema.validate(ModelConfig, schema.Sources(settings, {"": str(folder / "config.json")}))
    structure = blueprint(model)
    table = family.table(model, structure)
    expected = table.expected()
    # What is ignored because it is a copy may also be a tensor of its own.
    found = {name: shape for name, shape in weights.shapes.items() if name not in ignored or name in expected}
    compare(str(folder), expected, found)
    params = params_of(structure, table, weights.read, progress)
    hf["dtype"] = DTYPES.get(weights.dtype, "float32")
    tokenizer = tokenizer_of(folder, model)
    return write_run(run_dir, model, family.objective_of(model), params, structure, tokenizer, hf)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def params_of(structure: Blueprint, table: Table, read: Callable[[str], np.ndarray], progress: Progress) -> Any:
    """Our arrays, on the devices; each is filled on the host from theirs and given away before the next."""
    mesh = meshes.make_mesh(MeshConfig())
    names = list(flat(structure.shapes))
    placed = jax.tree.leaves(meshes.shardings(mesh, structure.axes, structure.shapes))
    leaves = []
    for number, (name, sharding) in enumerate(zip(names, placed, strict=True)):
        leaves.append(jax.device_put(table.to_ours(name, read), sharding))
        progress(name, number + 1, len(names))
    return jax.tree.unflatten(jax.tree.structure(structure.shapes), leaves)


def write_run(
    run_dir: Path,
    model: ModelConfig,
    objective: Any,
    params: Any,
    structure: Blueprint,
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
    config = schema.validate(RunConfig, schema.Sources(settings, {"": "import"}))
    run_dir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(run_dir / "checkpoints", CheckpointConfig())
    checkpoints.write(0, {"params": params}, {"config": configuration.dump(config)})
    checkpoints.close()
    if tokenizer is not None:
        tokenizer.save(run_dir)
    if foreign is not None:
        (run_dir / FOREIGN_CONFIG).write_text(json.dumps(foreign, indent=2) + "\n", encoding="utf-8")
    (run_dir / "config.yaml").write_text(configuration.dump(config), encoding="utf-8")
    return Run(run_dir, config, structure, tokenizer)


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


def export_hf(run_dir: Path, folder: Path, progress: Progress, step: int | None = None) -> Path:
    """Write a run's weights, config and tokenizer as Transformers reads them; of ELECTRA's pair, the discriminator.

    Raises:
        UserError: a model that none of the known model types can hold, with what stands in the way.
    """
    run = open_run(run_dir)
    hf = _read_json(run_dir / FOREIGN_CONFIG) if (run_dir / FOREIGN_CONFIG).is_file() else {}
    model, pair = run.config.model, run.config.model.family == "electra"
    model = model.model_of_discriminator if pair else model
    family = family_of(model, hf.get("model_type"))
    table = family.table(model, blueprint(model))
    dtype = np.dtype(hf.get("dtype", "float32"))
    arrays = merged(run, meshes.make_mesh(MeshConfig()), step)[1]
    if pair:
        arrays = {name.removeprefix("discriminator."): value for name, value in arrays.items()}
    folder.mkdir(parents=True, exist_ok=True)
    files = _shards(table, dtype.itemsize)
    done = 0

    @lru_cache(maxsize=1)  # the experts of an array are written one after the other
    def array_of(name: str) -> np.ndarray:
        return np.asarray(arrays[name])

    for name, entries in files.items():
        with _safetensors(folder / name, table, entries, dtype) as write:
            for entry in entries:
                write(entry.theirs, table.to_theirs(entry, array_of).astype(dtype))
                done += 1
                progress(entry.theirs, done, len(table.entries))
    if len(files) > 1:
        places = {entry.theirs: name for name, entries in files.items() for entry in entries}
        total = sum(dtype.itemsize * int(np.prod(shape)) for shape in table.expected().values())
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


@contextmanager
def _safetensors(
    path: Path, table: Table, entries: Sequence[Entry], dtype: np.dtype
) -> Iterator[Callable[[str, np.ndarray], None]]:
    """A function that writes one tensor of a new file: the library's own writer wants all of them in memory.

    The format is a length, a JSON header padded to eight bytes, and the tensors in the order of their names, without
    gaps (the library's README).
    """
    shapes, kinds = table.expected(), {ours: theirs for theirs, ours in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(entry.theirs for entry in entries):
        start, end = end, end + dtype.itemsize * int(np.prod(shapes[name]))
        header[name] = {"dtype": kinds[str(dtype)], "shape": list(shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)

        def write(name: str, tensor: np.ndarray) -> None:
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(np.ascontiguousarray(tensor).view(np.uint8).data)

        yield write


def _special_ids(run: Run) -> dict[str, int]:
    """Ids that Transformers' generation goes by, of a run that was trained here."""
    if run.own_tokenizer is None:
        return {}
    found = {"eos_token_id": run.tokenizer.eos, "bos_token_id": run.tokenizer.eos, "pad_token_id": run.tokenizer.pad}
    return {name: value for name, value in found.items() if value is not None}


def _shards(table: Table, itemsize: int) -> dict[str, list[Any]]:
    """File names and what each holds, at most `SHARD_BYTES`, in the table's order."""
    groups: list[list[Any]] = [[]]
    size = 0
    expected = table.expected()
    for entry in table.entries:
        own = itemsize * int(np.prod(expected[entry.theirs]))
        if groups[-1] and size + own > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += own
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
        if ours.get(key) != theirs.get(key) and key.split(".")[-1] not in NOT_COMPARED and key.split(".")[0] != "init"
    ]
