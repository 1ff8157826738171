"""Run directories: the resolved config, the tokenizer and the checkpoints of a run."""

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import jax
import yaml
from jax.sharding import Mesh
from jaxtyping import PyTree

from t5x_lite import config as configuration
from t5x_lite import local_copies, schema, storage
from t5x_lite.checkpoint import Checkpoints, JsonObject
from t5x_lite.config import RunConfig
from t5x_lite.data import tokenizer_files
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.tokenizer_settings import apply_settings
from t5x_lite.errors import UserError
from t5x_lite.files import read_json_object, write_file
from t5x_lite.models.character_ids import CharacterIds
from t5x_lite.models.spec import ModelSpec, model_spec
from t5x_lite.objectives.special_tokens import CLS, SEP
from t5x_lite.parallel.mesh import shape_structs, shardings
from t5x_lite.plugins import load_plugins
from t5x_lite.run_layout import CONFIG_FILE, HUGGINGFACE_CONFIG, checkpoints_folder, is_step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """An opened run directory. Its weights are still on disk.

    Attributes:
        folder: the run directory, or its local copy if it is in an object store.
        config: its resolved config.
        spec: the model that the config describes, without its weights.
        stored_tokenizer: its tokenizer; None if imported weights came without one.
    """

    folder: Path
    config: RunConfig
    spec: ModelSpec
    stored_tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer.

        Raises:
            UserError: imported weights came without one.
        """
        if self.stored_tokenizer is None:
            raise UserError(f"{self.config.run_dir}: has no tokenizer; put tokenizer.json or tokenizer.model there")
        return self.stored_tokenizer

    @cached_property
    def huggingface_config(self) -> JsonObject:
        """The Hugging Face config of imported weights; empty for a run that was trained here."""
        return _read_foreign_config(self.folder)

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        return _checkpoints_of(self.config, self.config.run_dir)

    def check_checkpoint(self, setting: str = "", step: int | None = None) -> None:
        """Refuse a run without a checkpoint, or without that of `step`, before another run needs it.

        Args:
            setting: the setting that names the run, for the message.
            step: a particular checkpoint.

        Raises:
            UserError: there is none.
        """
        name = f"{setting} {self.config.run_dir}".lstrip()
        with closing(self.checkpoints) as checkpoints:
            steps = checkpoints.steps()
        if not steps:
            raise UserError(f"{name}: has no checkpoint yet; train it first")
        if step is not None and step not in steps:
            raise UserError(f"{name}: has no checkpoint of step {step}; complete ones are {', '.join(map(str, steps))}")

    def results_folder(self, step: int) -> Path:
        """Return the folder of the results of evaluations at a step."""
        return self.folder / "eval" / str(step)

    def save(self) -> None:
        """Write the config and the tokenizer into the run directory.

        Raises:
            UserError: they cannot be written.
        """
        if jax.process_index() == 0:
            write_file(self.folder / CONFIG_FILE, configuration.dump(self.config))
            if self.stored_tokenizer is not None:
                self.stored_tokenizer.save(self.folder)
            local_copies.upload_changes()

    def trained_weights(self, mesh: Mesh, step: int | None = None) -> tuple[int, PyTree, JsonObject]:
        """Load the trainable weights of the newest intact checkpoint, or of the one of `step`.

        These are all weights of the model unless the run adapts another one (see `run_weights`).

        Returns:
            The step, the weights on the mesh, and the checkpoint's metadata.

        Raises:
            UserError: there is no checkpoint, or the one of `step` is missing or damaged.
        """
        parts = self.config.trainable_split(self.spec.axes)
        shapes = jax.eval_shape(parts.trained, self.spec.shapes)
        weight_shardings = shardings(mesh, parts.trained_leaves(self.spec.axes), shapes)
        restored = self.checkpoints.restore(shape_structs(shapes, weight_shardings), step, prefix="params.")
        if restored is None:
            raise UserError(f"{self.config.run_dir}: has no checkpoint yet; train it first")
        return restored


def with_vocab(config: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """Return the config with the size of the model's vocabulary, which defaults to the tokenizer's.

    Raises:
        UserError: the model's vocabulary is smaller than the tokenizer's.
    """
    vocab = config.model.vocab or tokenizer.vocab
    if vocab < tokenizer.vocab:
        raise UserError(
            f"model.vocab {vocab} is below the tokenizer's {tokenizer.vocab} ids; leave it out or make it larger"
        )
    return config.replace_model(vocab=vocab)


def has_begun(config: RunConfig) -> bool:
    """Return whether the run directory of a config holds a run."""
    return (local_copies.local_path(str(config.run_dir)) / CONFIG_FILE).is_file()


def check_run_dir(config: RunConfig) -> str:
    """Reject a run directory with checkpoints of another config, before any work is done.

    A run without a checkpoint starts anew, with any config.

    Returns:
        The settings that differ, each with both values, if `train.allow_changed_config` accepts them; or an empty
        string.

    Raises:
        UserError: the settings that differ, each with both values; a folder that cannot be written.
    """
    if jax.process_index() == 0:
        local_copies.check_writable(str(config.run_dir), "run_dir")
        if config.checkpoint.folder is not None:
            local_copies.check_writable(config.checkpoint.folder, "checkpoint.folder")
    path = local_copies.local_path(str(config.run_dir)) / CONFIG_FILE
    if not path.is_file():
        # A folder on the disk of one machine is seen by that machine alone.
        return _check_checkpoints_of_others(config) if jax.process_index() == 0 else ""
    try:
        existing_config = schema.validate(RunConfig, schema.read(RunConfig, path))
    except UserError:
        if config.train.allow_changed_config:
            return f"{path} cannot be read any more"
        raise
    former = _checkpoints_of(existing_config, config.run_dir)
    steps = former.steps()
    # States on local disks are not listed here.
    has_states = bool(steps) or existing_config.checkpoint.local is not None
    checkpoints = _checkpoints_of(config, config.run_dir)
    if checkpoints.folder != former.folder:
        saved = _read_saved_config(checkpoints)
        if steps and saved is None:
            raise UserError(
                f"checkpoint.folder: {checkpoints.folder} has no checkpoint, and those of {config.run_dir} are in "
                f"{former.folder}; move them there, or keep the former checkpoint.folder"
            )
        if saved is not None:
            return _check_changes(saved.config, config)
    return _check_changes(existing_config, config) if has_states else ""


def _check_changes(existing: RunConfig, config: RunConfig) -> str:
    """Return the settings that differ from those of a run that has checkpoints, or raise UserError."""
    description = describe_changes(existing, config)
    if description and not config.train.allow_changed_config:
        raise UserError(
            f"{config.run_dir}: belongs to a run with another config: {description}; choose another run_dir, or set "
            "train.allow_changed_config=true to continue with the new values"
        )
    return description


@dataclass(frozen=True)
class _SavedConfig:
    """The config in a checkpoint, and the absolute name of the run directory."""

    config: RunConfig
    run_dir: str


def _read_saved_config(checkpoints: Checkpoints) -> _SavedConfig | None:
    """Return the config in the newest checkpoint whose metadata can be read; None if there is none."""
    for step in reversed(checkpoints.steps()):
        try:
            metadata = checkpoints.meta(step)
            values = yaml.safe_load(metadata["config"])
        except (OSError, ValueError, KeyError):
            continue  # a restore reports the damage
        run_dir = str(metadata.get("run_dir", values["run_dir"]))
        return _SavedConfig(schema.validate(RunConfig, schema.Sources(values, {})), run_dir)
    return None


def _check_checkpoints_of_others(config: RunConfig) -> str:
    """Refuse the checkpoints of another run in `checkpoint.folder`, where the run directory is new or lost.

    Returns:
        The changed settings that `train.allow_changed_config` accepts, as `check_run_dir` does.
    """
    if config.checkpoint.folder is None:
        return ""
    saved = _read_saved_config(_checkpoints_of(config, config.run_dir))
    if saved is None:
        return ""
    if storage.normalised(saved.run_dir) != storage.normalised(str(config.run_dir)):
        raise UserError(
            f"checkpoint.folder {config.checkpoint.folder}: has the checkpoints of {saved.run_dir}; choose another "
            "folder, or give its run_dir to continue that run"
        )
    return _check_changes(saved.config, config)


def describe_changes(existing: RunConfig, config: RunConfig) -> str:
    """Return the settings that differ between the config of a run directory and another, each with both values.

    More steps at a constant learning rate are no change: the run goes on. They are one where stages begin after a share
    of the steps (`data.schedule`), and so would begin later.
    """
    differences = configuration.changed(existing, with_absolute_paths(config))
    differences.pop("train.allow_changed_config", None)
    if config.model.vocab is None:
        # It will be filled in from the tokenizer, whose settings are compared themselves.
        differences.pop("model.vocab", None)
    is_longer = config.train.steps > existing.train.steps
    keeps_stages = config.stages == existing.stages
    if is_longer and keeps_stages and not config.optimizer.schedule.has_end and config.adapt is None:
        differences.pop("train.steps", None)
    return "; ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in differences.items())


def new_run(config: RunConfig, tokenizer: Tokenizer) -> Run:
    """Return the run of a config, which is not saved yet.

    The places of its checkpoints and of the runs that it adapts or continues become absolute paths: the run may be
    opened from another working directory.

    Raises:
        UserError: the run directory has the file of another kind of tokenizer.
    """
    config = with_absolute_paths(with_vocab(config, tokenizer))
    folder = local_copies.local_path(str(config.run_dir))
    for name in tokenizer_files.FILES:
        if name != tokenizer.file_name and (folder / name).is_file():
            raise UserError(
                f"{config.run_dir}: has the {name} of another tokenizer; delete that file, or choose another run_dir"
            )
    return Run(folder, config, _spec_of_run(config, tokenizer), tokenizer)


def _checkpoints_of(config: RunConfig, run_dir: str | None) -> Checkpoints:
    return Checkpoints(checkpoints_folder(str(run_dir), config.checkpoint.folder), config.checkpoint)


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return the config with absolute names of folders and of other runs, as a run directory has it."""
    updates: dict[str, object] = {}
    if config.checkpoint.folder is not None:
        folder = storage.absolute(config.checkpoint.folder)
        updates["checkpoint"] = config.checkpoint.model_copy(update={"folder": folder})
    if config.adapt is not None:
        source = storage.absolute(config.adapt.source)
        method = config.adapt.method
        method = method.with_sources(tuple(storage.absolute(name) for name in method.sources))
        updates["adapt"] = config.adapt.model_copy(update={"source": source, "method": method})
    if config.objective is not None:
        sources = tuple(storage.absolute(name) for name in config.objective.sources)
        updates["objective"] = config.objective.with_sources(sources)
    if config.distillation is not None:
        teacher = storage.absolute(config.distillation.teacher)
        updates["distillation"] = config.distillation.model_copy(update={"teacher": teacher})
    if config.branch is not None:
        source = storage.absolute(config.branch.source)
        updates["branch"] = config.branch.model_copy(update={"source": source})
    return config.model_copy(update=updates)


def load_stored_tokenizer(folder: Path) -> Tokenizer | None:
    """Load the tokenizer of a run directory; None if the folder is not a run directory, or has no tokenizer."""
    if not tokenizer_files.has_tokenizer(folder) or not (folder / CONFIG_FILE).is_file():
        return None
    tokenizer = tokenizer_files.load(folder)
    apply_settings(tokenizer, tokenizer.settings, _read_foreign_config(folder))
    return tokenizer


def _read_foreign_config(folder: Path) -> JsonObject:
    path = folder / HUGGINGFACE_CONFIG
    return read_json_object(path) if path.is_file() else {}


def split_step(name: str, step: int | None = None) -> tuple[str, int | None]:
    """Return the run directory and the step that `RUN/checkpoints/STEP` names; of `RUN`, `step`.

    Raises:
        UserError: it names another step than `step`.
    """
    run_dir = name.rstrip("/")
    parent, _, last_name = f"./{run_dir}".rpartition("/checkpoints/")
    if parent and is_step(last_name):
        if step not in {None, int(last_name)}:
            raise UserError(f"{name}: names a step, and step {step} is asked for; leave out one of the two")
        return run_dir.removesuffix(f"checkpoints/{last_name}").rstrip("/") or ".", int(last_name)
    return run_dir, step


def open_run(name: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Open a run directory, local or in an object store, for evaluation or generation, with overrides of its config.

    Raises:
        UserError: it is not a run directory, or a plugin cannot be loaded.
    """
    load_plugins()
    name = storage.expand(name)
    folder = local_copies.local_path(name)
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{name}: is not a run directory (no {CONFIG_FILE}); `t5x-lite train CONFIG` creates one")
    config = schema.validate(RunConfig, schema.read(RunConfig, path, overrides))
    if overrides:
        _check_overrides(schema.validate(RunConfig, schema.read(RunConfig, path)), config)
    config = config.model_copy(update={"run_dir": name})
    tokenizer = load_stored_tokenizer(folder)
    return Run(folder, config, _spec_of_run(config, tokenizer), tokenizer)


def _check_overrides(stored: RunConfig, config: RunConfig) -> None:
    """Refuse another tokenizer than that of a run, and warn of a model that computes something else.

    Raises:
        UserError: the tokenizer differs.
    """
    differences = configuration.changed(stored, config)
    if any(key.startswith("tokenizer") for key in differences):
        raise UserError("tokenizer: the weights of a run belong to its own; remove the setting")
    changed = [
        f"{key} was {old!r}, is {new!r}"
        for key, (old, new) in differences.items()
        if key.startswith("model.") and key != "model.compute"
    ]
    if changed:
        logger.warning("the model is not that of the run: %s", "; ".join(changed))


def _spec_of_run(config: RunConfig, tokenizer: Tokenizer | None) -> ModelSpec:
    """Return the model of a run, with the characters of the tokenizer's tokens if token vectors are made of them.

    Raises:
        UserError: they are, and the run has no tokenizer.
    """
    spec = model_spec(config.model, config.method.surgery)
    characters = config.model.characters
    if characters is None:
        return spec
    if tokenizer is None or config.model.vocab is None:
        raise UserError(
            f"{config.run_dir}: has no tokenizer, and the vectors of its model are made of the characters of tokens; "
            "put tokenizer.json there"
        )
    begin = [tokenizer.special[name] for name in CLS if name in tokenizer.special]
    end = [tokenizer.special[name] for name in SEP if name in tokenizer.special]
    pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab)]
    shape = (config.model.vocab, characters.length)
    return replace(spec, character_ids=CharacterIds.of(pieces, shape, begin, end))
