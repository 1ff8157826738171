"""The runs of a sweep: every combination of its axes, with N, D and C counted for the real model."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from t5x_lite import config as configuration
from t5x_lite import schema
from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.storage import is_remote, join
from t5x_lite.sweep.axes import combinations, normalise_name
from t5x_lite.sweep.branches import share_stable_phases
from t5x_lite.sweep.config import Sweep
from t5x_lite.sweep.expression import evaluate
from t5x_lite.sweep.model_counts import ModelCounts, count_model
from t5x_lite.sweep.planned_run import PlannedRun, job_name, override_words
from t5x_lite.sweep.rules import batch_tokens_by_rule, learning_rate_by_rule

STEPS_KEY = "train.steps"
BATCH_KEYS = ("train.batch_size", "train.seq_len")
"""Keys that D and C are counted with, beside those of the model and `STEPS_KEY`."""
UNLIMITED_STEPS = 10**9
"""train.steps until it is determined: high enough for every setting that must not exceed it."""


def expand(sweep: Sweep) -> list[PlannedRun]:
    """Return every run of a sweep: trunks first, then the others, cheapest first.

    Raises:
        UserError: a key, a value, an expression or a combination is not valid.
    """
    shared_settings = dict(schema.dotted(sweep.config.set))
    runs = []
    for base in sweep.bases:
        for combination in combinations(sweep.config):
            settings = {**shared_settings, **combination.settings}
            name = combination.name
            if len(sweep.bases) > 1:
                name = normalise_name(f"{base.stem}-{combination.name}")
            runs.append(plan_run(sweep, base, name, settings, combination.budget))
    _check_unique_names(runs)
    _check_checkpoint_folders(sweep, runs)
    if sweep.config.branches:
        runs = share_stable_phases(sweep, runs)
    return sorted(runs, key=lambda run: (not run.trunk, run.computed_flops))


def _check_unique_names(runs: list[PlannedRun]) -> None:
    for name, count in Counter(run.name for run in runs).items():
        if count > 1:
            raise UserError(
                f"two runs would be named {name}: values of the axes must differ by 3 digits, configs by their names"
            )


def _check_checkpoint_folders(sweep: Sweep, runs: list[PlannedRun]) -> None:
    """Refuse one folder for the checkpoints of several runs, unless it is on the disks of their own machines."""
    folders = Counter(configuration.load(run.config, run.words).checkpoint.folder for run in runs)
    for folder, count in folders.items():
        is_shared = folder is not None and (is_remote(folder) or sweep.config.where in {"local", "slurm"})
        if count > 1 and is_shared:
            raise UserError(
                f"checkpoint.folder {folder} would have the checkpoints of {count} runs; leave it out, and they are in "
                "the run directories, which `dir` may put into a bucket"
            )


def plan_run(sweep: Sweep, base: Path, name: str, settings: Mapping[str, object], budget: float) -> PlannedRun:
    """Plan one run: model and batch, then steps, then the settings that are derived from N, D and C.

    Args:
        sweep: the sweep.
        base: the config that the settings change.
        name: the run's name.
        settings: dotted keys and values.
        budget: FLOPs that determine the number of steps; 0 keeps that of the config.

    Raises:
        UserError: the settings are not valid, or the budget is too small for one step.
    """
    planner = _RunPlanner(sweep, base, name, settings)
    derived_keys = sweep.config.derived.keys()
    counted_keys = [key for key in derived_keys if key.startswith("model.") or key in BATCH_KEYS]
    planner.derive(counted_keys)
    extra = {}
    if budget or STEPS_KEY in derived_keys:
        extra[STEPS_KEY] = UNLIMITED_STEPS
    config = planner.resolve(extra)
    counts = count_model(config, sweep.config)
    planner.symbols.update(N=counts.parameters)
    if STEPS_KEY in derived_keys:
        planner.derive([STEPS_KEY])
        config = planner.resolve({})
    batch_tokens = planner.choose_batch(config, counts, budget)
    steps = planner.choose_steps(config, counts, budget, batch_tokens)
    tokens = float(steps * batch_tokens)
    flops = steps * batch_tokens * counts.flops
    planner.symbols.update(D=tokens, C=flops)
    planner.choose_learning_rate(counts, flops)
    planner.derive([key for key in derived_keys if key not in {*counted_keys, STEPS_KEY}])
    planner.resolve({})
    mixtures = config.model.mixtures
    experts = mixtures[0].experts if mixtures else 1
    return PlannedRun(
        name=name,
        config=str(base),
        overrides=planner.overrides,
        run_dir=join(sweep.runs_folder, job_name(sweep, name)),
        parameters=float(counts.parameters),
        tokens=tokens,
        flops=flops,
        budget=budget,
        experts=experts,
        steps=steps,
        computed_steps=steps,
        step_flops=batch_tokens * counts.model_flops,
    )


class _RunPlanner:
    """The overrides of one run while they are chosen. `symbols` holds N, D and C as soon as they are known."""

    def __init__(self, sweep: Sweep, base: Path, name: str, settings: Mapping[str, object]) -> None:
        self.sweep = sweep
        self.base = base
        self.name = name
        self.overrides = dict(settings)
        self.symbols: dict[str, float] = {}
        self.base_settings = dict(schema.dotted(schema.read(RunConfig, base).values))

    def value_of(self, name: str) -> object:
        """Return the value of a name in an expression, or raise KeyError."""
        for values in (self.symbols, self.overrides, self.base_settings):
            if name in values:
                return values[name]
        raise KeyError(name)

    def derive(self, keys: Iterable[str]) -> None:
        """Evaluate the expressions of some keys of `derived`."""
        for key in keys:
            try:
                self.overrides[key] = evaluate(self.sweep.config.derived[key], self.value_of)
            except UserError as error:
                raise UserError(f"derived.{key}: {error}") from None

    def resolve(self, extra: Mapping[str, object]) -> RunConfig:
        """Load the run's config with the overrides, and with some more."""
        try:
            config = configuration.load(self.base, override_words({**self.overrides, **extra}))
            shape = (config.train.batch_size, config.train.seq_len)
            if any(stage.shape != shape for stage in config.stages):
                raise UserError(
                    "data.schedule changes seq_len or batch_size, but the points of a law are of steps of one size; "
                    "leave these out of its stages"
                )
            return config
        except UserError as error:
            message = str(error).replace("command line: ", "")
            raise UserError(f"run {self.name} of the sweep: {message}") from None

    def choose_batch(self, config: RunConfig, counts: ModelCounts, budget: float) -> int:
        """Set the batch size if there is a rule for it; return the tokens of a batch."""
        settings = self.sweep.config
        batch_size = config.train.batch_size
        if settings.batch_size is not None:
            if not budget:
                raise UserError("batch_size by rule needs `budgets`: the number of steps follows from the batch")
            tokens = batch_tokens_by_rule(settings.batch_size, float(counts.non_embedding), budget)
            sequences = tokens / config.train.seq_len
            batch_size = max(round(sequences / settings.batch_multiple), 1) * settings.batch_multiple
            self.overrides["train.batch_size"] = batch_size
        return batch_size * config.train.seq_len

    def choose_steps(self, config: RunConfig, counts: ModelCounts, budget: float, batch_tokens: int) -> int:
        """Set the number of steps if there is a budget; return it."""
        if not budget:
            return config.train.steps
        steps = round(budget / counts.flops / batch_tokens)
        if steps < 1:
            raise UserError(
                f"run {self.name}: {budget:.3g} FLOPs are less than one step of {batch_tokens} tokens; raise the budget"
            )
        self.overrides[STEPS_KEY] = steps
        return steps

    def choose_learning_rate(self, counts: ModelCounts, flops: float) -> None:
        """Set the learning rate if there is a rule for it."""
        rule = self.sweep.config.learning_rate
        if rule is not None:
            learning_rate = learning_rate_by_rule(rule, float(counts.non_embedding), flops)
            self.overrides["optimizer.learning_rate"] = float(f"{learning_rate:.6g}")
