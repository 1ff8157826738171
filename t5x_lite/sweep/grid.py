"""The runs that a sweep stands for, with N, D and C counted for the real model."""

import hashlib
import json
import math
import re
from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

from t5x_lite import config as configuration
from t5x_lite import schema
from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.files import write_file
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.objectives import Objective
from t5x_lite.planner.example import example_context
from t5x_lite.sweep.config import Sweep, SweepConfig, combinations
from t5x_lite.sweep.expression import evaluate
from t5x_lite.train.config import WarmupStableDecay
from t5x_lite.train.metrics import flops_per_row
from t5x_lite.trees import flatten_names


@dataclass(frozen=True)
class PlannedRun:
    """One run: its config and overrides, and what it counts for a law (see `SweepConfig.parameters` and `.flops`).

    `own_steps` are those it computes itself, `step_flops` those of a step, counted for the model. A `trunk` is the
    stable phase that others branch off, `after` the trunk that this one waits for.
    """

    name: str
    config: str
    overrides: dict[str, Any]
    run_dir: str
    parameters: float
    tokens: float
    flops: float
    budget: float
    experts: int
    steps: int
    own_steps: int
    step_flops: float
    trunk: bool = False
    after: str | None = None

    @property
    def own_flops(self) -> float:
        """Those that the run computes itself."""
        return self.own_steps * self.step_flops

    @property
    def words(self) -> list[str]:
        """The overrides as the command line takes them; none holds a blank."""
        return _words({**self.overrides, "run_dir": self.run_dir})


def _words(settings: Mapping[str, Any]) -> list[str]:
    plain = {key: json.dumps(value, separators=(",", ":"), ensure_ascii=False) for key, value in settings.items()}
    for word in plain.values():
        if any(sign.isspace() for sign in word):
            raise UserError(f"a sweep's value cannot hold blanks, found {word!r}: put it into a config of its own")
    return [f"{key}={word}" for key, word in plain.items()]


@dataclass(frozen=True)
class Counts:
    """N as a sweep counts it and without embeddings; FLOPs of a token of training by the model and as counted."""

    parameters: int
    inner: int
    model_flops: float
    flops: float


def counts(config: RunConfig, sweep: SweepConfig) -> Counts:
    """Count a model.

    Raises:
        UserError: its vocabulary is not known.
    """
    weights, flops = _counted(sized(config).model, config.require_objective(), config.train.seq_len)
    chosen = weights[sweep.parameters]
    return Counts(chosen, weights["non_embedding"], flops, flops if sweep.flops == "model" else 6.0 * chosen)


def sized(config: RunConfig) -> RunConfig:
    """The config with the vocabulary that its tokenizer is to be trained to.

    Raises:
        UserError: that is not known before the tokenizer is read.
    """
    vocab = config.model.vocab or getattr(config.tokenizer, "vocab", None)
    if vocab is None:
        raise UserError("a sweep counts parameters before a tokenizer is read: give model.vocab under `set`")
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab": vocab})})


@cache
def _counted(model: ModelConfig, objective: Objective, length: int) -> tuple[dict[str, int], float]:
    """Weights by the way of counting them (see `SweepConfig.parameters`), and FLOPs of a token of training."""
    structure = model_spec(model)
    shapes, active = flatten_names(structure.shapes), structure.active_parameters
    outer = sum(
        axes.active_share * math.prod(shapes[name].shape)
        for name, axes in flatten_names(structure.axes).items()
        if axes.is_table or ("vocab" in axes.names and axes.inputs)
    )
    weights = {"all": structure.parameters, "active": active, "non_embedding": active - round(outer)}
    return weights, flops_per_row(model, structure, objective.lengths(example_context(model, length))) / length


def learning_rate(rule: str, parameters: float, flops: float) -> float:
    """Kaplan et al. 2020, eq. D.1, by N without embeddings; DeepSeek LLM 2024, eq. 1, by C."""
    if rule == "deepseek":
        return 0.3118 * flops**-0.1250
    return 0.003239 - 0.0001395 * math.log(parameters)


def batch_tokens(rule: str, parameters: float, flops: float) -> float:
    """DeepSeek LLM 2024, eq. 1, by C; Kaplan et al. 2020, the critical batch (eq. 1.4) of the loss at N (eq. 1.1).

    N is without embeddings.
    """
    if rule == "deepseek":
        return 0.2920 * flops**0.3271
    loss = (8.8e13 / parameters) ** 0.076
    return 2e8 / loss ** (1 / 0.21)


def expand(sweep: Sweep) -> list[PlannedRun]:
    """Every run of a sweep, trunks before their branches, otherwise the cheapest first.

    Raises:
        UserError: a key, value, expression or combination that cannot be had.
    """
    shared = dict(schema.dotted(sweep.config.set))
    runs = [planned(sweep, name, shared | own, budget) for name, own, budget in combinations(sweep.config)]
    if twice := [name for name, times in Counter(run.name for run in runs).items() if times > 1]:
        raise UserError(f"two runs would be named {twice[0]}: values of the axes must differ by 3 digits")
    if sweep.config.branches:
        runs = [*_trunks(sweep, runs)]
    return sorted(runs, key=lambda run: (not run.trunk, run.own_flops))


def planned(sweep: Sweep, name: str, settings: Mapping[str, Any], budget: float) -> PlannedRun:
    """One run: model, then rules and steps, then what is derived from them."""
    config, rules, figures = sweep.config, dict(settings), dict[str, float]()
    known: ChainMap[str, Any] = ChainMap(figures, rules, dict(schema.dotted(schema.read(RunConfig, sweep.base).values)))

    def derive(model: bool) -> None:
        for key, text in config.derived.items():
            if key.startswith("model.") == model:
                try:
                    rules[key] = evaluate(text, known.__getitem__)
                except UserError as error:
                    raise UserError(f"derived.{key}: {error}") from None

    def resolved(**more: Any) -> RunConfig:
        try:
            return configuration.load(sweep.base, _words({**rules, **more}))
        except UserError as error:
            raise UserError(f"run {name} of the sweep: {error}".replace("command line: ", "")) from None

    derive(model=True)
    first = resolved(**({"train.steps": 10**9} if budget else {}))
    own = counts(first, config)
    if config.batch_size:
        if not budget:
            raise UserError("batch_size by rule needs `budgets`: the number of steps follows from the batch")
        sequences = batch_tokens(config.batch_size, own.inner, budget) / first.train.seq_len
        rules["train.batch_size"] = max(round(sequences / config.batch_multiple), 1) * config.batch_multiple
    batch = rules.get("train.batch_size", first.train.batch_size) * first.train.seq_len
    if budget:
        steps = round(budget / own.flops / batch)
        if steps < 1:
            raise UserError(
                f"run {name}: {budget:.3g} FLOPs are less than one step of {batch} tokens; raise the budget"
            )
        rules["train.steps"] = steps
    steps = rules.get("train.steps", first.train.steps)
    figures |= {"N": own.parameters, "D": float(steps * batch), "C": steps * batch * own.flops}
    if config.learning_rate:
        rules["optimizer.learning_rate"] = float(f"{learning_rate(config.learning_rate, own.inner, figures['C']):.6g}")
    derive(model=False)
    resolved()
    return PlannedRun(
        name=name,
        config=str(sweep.base),
        overrides=rules,
        run_dir=str(sweep.runs_folder / job_name(sweep, name)),
        parameters=float(own.parameters),
        tokens=figures["D"],
        flops=figures["C"],
        budget=budget,
        experts=first.model.mixtures[0].experts if first.model.mixtures else 1,
        steps=steps,
        own_steps=steps,
        step_flops=batch * own.model_flops,
    )


def _trunks(sweep: Sweep, runs: Sequence[PlannedRun]) -> Iterator[PlannedRun]:
    """Runs that differ in their steps alone as branches of one long run, which stands before them."""
    groups: dict[str, list[PlannedRun]] = {}
    for run in runs:
        groups.setdefault(str({**run.overrides, "train.steps": 0}), []).append(run)
    if all(len(own) == 1 for own in groups.values()):
        raise UserError("branches: no two runs of the sweep differ in train.steps alone (batch by rule? derived keys?)")
    for own in groups.values():
        longest = max(own, key=lambda run: run.steps)
        config = configuration.load(sweep.base, _words(longest.overrides))
        schedule = config.optimizer.schedule
        if not isinstance(schedule, WarmupStableDecay):
            raise UserError(
                f"branches: need optimizer.schedule wsd, whose stable phase they share; set it in {sweep.base}"
            )
        stable = {run.name: math.floor((1 - schedule.decay) * run.steps) for run in own}
        if min(stable.values()) <= config.optimizer.warmup_steps:
            short = min(stable, key=lambda name: stable[name])
            raise UserError(f"run {short}: decays from step {stable[short]}, before its warm-up is over")
        steps, name = stable[longest.name], f"{min(own, key=lambda run: run.steps).name}-trunk"
        trunk = replace(
            longest,
            name=name,
            run_dir=str(sweep.runs_folder / job_name(sweep, name)),
            overrides={
                **longest.overrides,
                "train.steps": steps,
                "optimizer.schedule": "constant",
                "checkpoint.keep_steps": sorted(set(stable.values())),
            },
            steps=steps,
            own_steps=steps,
            tokens=longest.tokens * steps / longest.steps,
            flops=longest.flops * steps / longest.steps,
            trunk=True,
        )
        yield trunk
        for run in own:
            begins = stable[run.name]
            branch = {"branch.from": trunk.run_dir, "branch.step": begins}
            yield replace(run, overrides=run.overrides | branch, own_steps=run.steps - begins, after=trunk.name)


def job_name(sweep: Sweep, run: str) -> str:
    """A run's name; on clusters, whose names are of 32 lower case letters and digits at most, with the sweep's."""
    if sweep.config.where not in {"gke", "tpu_vm"}:
        return run
    whole = re.sub(r"[^a-z0-9]+", "-", f"{sweep.name}-{run}".lower()).strip("-")
    whole = whole if whole[0].isalpha() else f"s{whole}"
    return whole if len(whole) <= 32 else f"{whole[:23].rstrip('-')}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def write_plan(sweep: Sweep, runs: Sequence[PlannedRun]) -> None:
    """`planner.plan.json`: what `sweep fit` needs to know, with no need of the model.

    Raises:
        UserError: it cannot be written.
    """
    record = {"sweep": sweep.name, "settings": sweep.config.model_dump(mode="json"), "runs": [asdict(r) for r in runs]}
    write_file(sweep.folder / "plan.json", json.dumps(record, indent=1) + "\n")
