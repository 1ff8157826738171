"""What a run says: metrics.jsonl and TensorBoard for programs, a progress bar for people, and the arithmetic of MFU."""

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.progress import BarColumn

from t5x_lite.adapt.trainable import TrainableSplit
from t5x_lite.files import disk_error
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import ModelSpec
from t5x_lite.objectives.objective import ExampleLengths
from t5x_lite.parallel.chips import CHIPS, chip_name
from t5x_lite.progress import print_line, progress_bar
from t5x_lite.trees import flatten_names


def flops_per_row(
    model: ModelConfig,
    blueprint: ModelSpec,
    lengths: ExampleLengths,
    *,
    causal_half: bool = True,
    parts: TrainableSplit | None = None,
) -> float:
    """FLOPs of forward and backward for one example: 6 per matrix weight and token that passes it, and attention.

    The formula of PaLM (Chowdhery et al. 2022, appendix B), 12·layers·heads·head_dim·queries·keys for attention, with
    causal attention counted half and a band as far as it reaches: the rest is never looked at. Looked-up tables are
    left out, the output matrix counts the predicted tokens, an expert those that are sent to it in balance.
    Recomputation (remat) and room that capacity leaves empty are not counted. Of `parts`, frozen weights need no
    gradient (4 a weight), and where a head alone trains nothing goes back through them (2).
    """
    shapes = flatten_names(blueprint.shapes)
    first = dict.fromkeys(shapes, 0) if parts is None else parts.first_trained_repeat
    back = any(at is not None and not name.startswith("head.") for name, at in first.items())

    def per_weight(name: str) -> float:
        at = first[name]
        return 2.0 + 2.0 * back + (0.0 if at is None else 2.0 * (1 - at / max(shapes[name].shape[0], 1)))

    matrices = sum(
        per_weight(name) * math.prod(shapes[name].shape) * axes.active_share * _passes(model, name, lengths)
        for name, axes in flatten_names(blueprint.axes).items()
        if axes.inputs or (axes.is_table and "vocab" in axes.names and model.tied)
    )
    attention = (1.0 if back else 1 / 3) * _attention_flops(model, lengths, causal_half=causal_half)
    return lengths.texts * (matrices + attention)


def _passes(model: ModelConfig, name: str, lengths: ExampleLengths) -> int:
    """Tokens of an example that are multiplied with one weight."""
    whole = name.removeprefix("generator.").removeprefix("discriminator.")
    repeats = model.layers // len(model.pattern) if model.shared_layers and ".stack.layers." in name else 1
    if whole.startswith(("sentence.", "head.")):
        return 1
    if whole.startswith(("output.", "tokens.", "span.")):
        return lengths.predicted
    if not whole.startswith("decoder.") or model.family == "decoder":
        return repeats * lengths.tokens
    if ".cross_attention.key." in name or ".cross_attention.value." in name:
        return repeats * lengths.tokens
    both = lengths.tokens if model.shared_stacks and ".cross_" not in name else 0
    return repeats * (lengths.targets + both)


def _attention_flops(model: ModelConfig, lengths: ExampleLengths, *, causal_half: bool) -> float:
    if model.family == "electra":
        pair = (model.discriminator_model, model.generator_model)
        return sum(_attention_flops(one, lengths, causal_half=causal_half) for one in pair)
    width, n, m = 12.0 * model.heads * model.head_dim, lengths.tokens, lengths.targets

    def pairs(layers: int, length: int, *, causal: bool) -> float:
        half = causal and causal_half
        period = sum(layer.attention.pairs(length, causal=half) for layer in model.pattern)
        return layers // len(model.pattern) * period

    if model.family == "decoder":
        return width * pairs(model.layers, n, causal=True)
    across = 0.0
    if model.family == "encoder_decoder":
        across = pairs(model.decoder_layers, m, causal=True) + model.decoder_layers * m * n
    return width * (pairs(model.layers, n, causal=False) + across)


def peak_flops(device: Any, given: float | None) -> tuple[float, str]:
    """FLOP/s that MFU is measured against, and where the figure is from."""
    if given is not None:
        return given, "train.peak_flops"
    name = chip_name(device.device_kind)
    if name is not None:
        return CHIPS[name].flops, f"bfloat16 data sheet of {name}"
    measured = 2 * 1024**3 / product_seconds(device, 1024, 5)
    return measured, "the best of a few float32 matrix products of 1024, measured here"


_product = jax.jit(jnp.matmul)


def product_seconds(device: Any, side: int, times: int) -> float:
    """The least of some times that a device takes for a float32 product of matrices of this `side`."""
    taken = []
    with jax.set_mesh(Mesh([device], ("alone",))):  # whatever mesh the run is on
        x = jax.device_put(np.ones((side, side), np.float32), device)
        _product(x, x).block_until_ready()
        for _ in range(times):
            start = time.perf_counter()
            _product(x, x).block_until_ready()
            taken.append(time.perf_counter() - start)
    return min(taken)


class MetricsWriter:
    """Appends to `RUN/metrics.jsonl` and `RUN/tensorboard/`.

    Steps after `resumed` were lost with the process that made them and come again; their lines, and a line that a kill
    has torn, are cut off, so that each step stands once.
    """

    def __init__(self, run_dir: Path, resumed: int) -> None:
        self.path = run_dir / "metrics.jsonl"
        self.lost_seconds = cut_after(self.path, resumed)
        self._file = self.path.open("a", encoding="utf-8")
        self._resumed = resumed

    @cached_property
    def _board(self) -> Any:
        # It imports PyTorch where that is installed: the first step does not wait for that.
        from tensorboardX import SummaryWriter

        logging.getLogger("tensorboardX").setLevel(logging.ERROR)
        return SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=self._resumed + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line; a value that is not finite is written as null, which JSON can hold."""
        record = {"step": step, **{name: _plain(value) for name, value in values.items()}}
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise disk_error(self.path.parent, error, "the run goes on from its last checkpoint") from error
        for name, value in values.items():
            parts = {f"{name}/{n}": part for n, part in enumerate(value)} if isinstance(value, list) else {name: value}
            for tag, part in parts.items():
                self._board.add_scalar(tag, part, step)

    def close(self) -> None:
        """Flush both, where they can be written."""
        with suppress(OSError):
            self._file.close()
        if "_board" in vars(self):
            with suppress(OSError):
                self._board.close()


def _plain(value: Any) -> Any:
    if isinstance(value, int):
        return value
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return float(f"{value:.8g}") if math.isfinite(value) else None


def cut_after(path: Path, step: int) -> float:
    """Shorten a metrics file to its whole lines of steps up to `step`; the seconds of the steps cut off."""
    if not path.is_file():
        return 0.0
    keep, lost, cutting = 0, 0.0, False
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
                cutting = cutting or not line.endswith(b"\n") or record["step"] > step
                lost += record.get("seconds_per_step", 0.0) if cutting else 0.0
            except (ValueError, KeyError, TypeError):
                break
            keep += 0 if cutting else len(line)
    os.truncate(path, keep)
    return lost


class Display:
    """A progress bar where there is a terminal, a line now and then where there is none."""

    def __init__(self, steps: int, *, enabled: bool = True) -> None:
        self.steps, self.enabled = steps, enabled
        columns = "step {task.completed}/{task.total}", BarColumn(20), "{task.fields[values]}"
        self._bar = progress_bar(*columns, enabled=enabled)
        self._console = self._bar.console
        self._task = self._bar.add_task("", total=steps, values="")
        self._evaluation = self._end = ""
        self._spoke, self._started = time.monotonic(), (0, time.monotonic())

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, step: int) -> None:
        """Where this process begins to count: resumed steps are not part of the estimate."""
        self._started = (step, time.monotonic())
        self._bar.reset(self._task, total=self.steps, completed=step, values="")

    def say(self, message: str) -> None:
        """A line above the bar."""
        if self.enabled:
            print_line(self._console, message)

    def evaluated(self, step: int, found: Mapping[str, float]) -> None:
        """The newest evaluation: said once, and its loss shown until the next."""
        self._evaluation = f" · validation {found['loss']:.4f}"
        shown = [f"validation loss {found['loss']:.4f}", f"perplexity {found['perplexity']:.2f}"]
        if "bits_per_byte" in found:
            shown.append(f"{found['bits_per_byte']:.4f} bits per byte")
        shown += [
            f"{name.removesuffix('_accuracy')} accuracy {found[name]:.1%}" for name in found if "_accuracy" in name
        ]
        self.say(f"step {step}: {', '.join(shown)}")

    def foretold(self, found: Mapping[str, float]) -> None:
        """Where the loss will end, shown until the next."""
        if found:
            value, low, high = (found[f"predicted/{name}"] for name in ("loss", "low", "high"))
            self._end = f" · ends at {value:.3f} ({low:.3f} to {high:.3f})"

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """One step is done."""
        values = (
            f"loss {metrics['loss']:.4f} · {format_si(metrics['tokens_per_second'])} tok/s · MFU {metrics['mfu']:.1%}"
        )
        self._bar.update(self._task, completed=step, values=values + self._evaluation + self._end)
        now = time.monotonic()
        quiet = now - self._spoke < 30 and step % max(self.steps // 20, 1)
        if self._console.is_terminal or quiet:
            return
        self._spoke = now
        first, began = self._started
        left = (now - began) / max(step - first, 1) * (self.steps - step)
        self.say(f"step {step}/{self.steps} · {values} · {format_duration(left)} left{self._evaluation}{self._end}")


def format_si(number: float) -> str:
    """12345 → 12.3k."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def format_duration(seconds: float) -> str:
    """4000 → 1h06m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}m{seconds:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
