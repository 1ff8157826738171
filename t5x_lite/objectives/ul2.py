"""UL2: a mixture of denoisers, each told to the model by a mode token (Tay et al. 2023, §3.1)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Strict

from t5x_lite.errors import UserError
from t5x_lite.models.config import Family
from t5x_lite.objectives.features import Pair, segments_of, text_to_text, text_to_text_loss
from t5x_lite.objectives.objective import Features, Lengths, Losses, Objective, Row, Task
from t5x_lite.objectives.span_corruption import check_sentinels, corrupt, corrupted_lengths, noise_mask, spans_in
from t5x_lite.schema import Config, setting


class Denoiser(Config):
    """Span corruption of one strength; `sequential` predicts the end of the text instead."""

    mode: str = setting(..., "token before the inputs; it must be in the tokenizer")
    noise_density: float = setting(..., "share of tokens to predict", gt=0, lt=1)
    mean_span: float = setting(3.0, "mean length of a span", unit="tokens", ge=1)
    sequential: bool = setting(False, "one span at the end, of 1 to twice the density of the text")


PUBLISHED = (
    Denoiser(mode="[R]", noise_density=0.15, mean_span=3.0),
    Denoiser(mode="[R]", noise_density=0.15, mean_span=8.0),
    Denoiser(mode="[S]", noise_density=0.25, sequential=True),
    Denoiser(mode="[X]", noise_density=0.5, mean_span=3.0),
    Denoiser(mode="[X]", noise_density=0.5, mean_span=8.0),
    Denoiser(mode="[X]", noise_density=0.15, mean_span=64.0),
    Denoiser(mode="[X]", noise_density=0.5, mean_span=64.0),
)
"""Tay et al. 2023, Table 1: seven denoisers, mixed equally."""


class UL2(Objective):
    """Each text by one denoiser, drawn uniformly. Features: see `features.text_to_text`."""

    name: ClassVar[str] = "ul2"
    families: ClassVar[tuple[Family, ...]] = ("encoder_decoder", "decoder")
    one_text: ClassVar[bool] = True

    denoisers: Annotated[tuple[Denoiser, ...], Strict(False)] = setting(
        PUBLISHED, "the mixture", min_length=1, source="Tay et al. 2023, Table 1"
    )

    def check_task(self, task: Task) -> None:
        """Refuse a tokenizer without the mode tokens or with too few sentinels."""
        for denoiser in self.denoisers:
            task.vocabulary.one_of(self.name, denoiser.mode)
            if not denoiser.sequential:
                spans = spans_in(self.row_length(task), denoiser.noise_density, denoiser.mean_span)[1]
                check_sentinels(self.name, spans, task)

    def row_length(self, task: Task) -> int:
        """The most tokens that fit under every denoiser."""
        for length in range(task.seq_len, 1, -1):
            if all(size <= room for size, room in zip(self._longest(length, task), self._room(task), strict=True)):
                return length
        raise UserError(f"train.seq_len {task.seq_len} leaves no room for UL2's spans; make it larger")

    def _longest(self, length: Any, task: Task) -> tuple[Any, ...]:
        """Inputs and targets, or both together, under the denoiser that needs most."""
        inputs, targets = zip(*(self._size(length, denoiser) for denoiser in self.denoisers), strict=True)
        if task.family == "encoder_decoder":
            return np.max(inputs, axis=0), np.max(targets, axis=0)
        return (np.max(np.add(inputs, targets) - 1, axis=0),)

    def _size(self, length: Any, denoiser: Denoiser) -> tuple[Any, Any]:
        if denoiser.sequential:
            return length, _longest_end(length, denoiser) + 1
        inputs, targets = corrupted_lengths(length, denoiser.noise_density, denoiser.mean_span)
        return inputs + 1, targets

    def _room(self, task: Task) -> tuple[int, ...]:
        return (task.seq_len, task.seq_len) if task.family == "encoder_decoder" else (task.seq_len,)

    def _target_length(self, task: Task) -> int:
        return int(self._longest(self.row_length(task), task)[-1])

    def sizes(self, lengths: np.ndarray, task: Task) -> np.ndarray:
        """Room of each packed document under the denoiser that needs most."""
        return np.stack(self._longest(lengths.sum(1), task), 1)

    def capacity(self, task: Task) -> tuple[int, ...]:
        """Room of a row."""
        return (task.seq_len, self._target_length(task)) if task.family == "encoder_decoder" else (task.seq_len,)

    def lengths(self, task: Task) -> Lengths:
        """What an example costs."""
        if task.family == "decoder":
            return Lengths(task.seq_len, task.seq_len)
        return Lengths(task.seq_len, self._target_length(task), self._target_length(task))

    def example(self, row: Row, task: Task, rng: np.random.Generator) -> Features:
        """Each segment of the row under a denoiser of its own."""
        pairs = [self._pair(row.tokens[part], task, rng) for part in segments_of(row.segments)]
        target_length = task.seq_len if task.family == "decoder" else self._target_length(task)
        return text_to_text(pairs, task.family, task.seq_len, target_length)

    def _pair(self, tokens: np.ndarray, task: Task, rng: np.random.Generator) -> Pair:
        denoiser = self.denoisers[int(rng.integers(len(self.denoisers)))]
        mode = [task.vocabulary.named[denoiser.mode]]
        if denoiser.sequential:
            end = int(rng.integers(1, int(_longest_end(len(tokens), denoiser)) + 1)) if len(tokens) > 1 else 0
            cut = len(tokens) - end
            eos = [task.vocabulary.end(self.name)]
            inputs, targets = tokens[:cut], np.concatenate([tokens[cut:], eos])
        else:
            noise = noise_mask(len(tokens), denoiser.noise_density, denoiser.mean_span, rng)
            inputs, targets = corrupt(tokens, noise, task.vocabulary)
        return np.concatenate([mode, inputs]).astype(np.int32), targets.astype(np.int32)

    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, losses: Losses) -> Mapping[str, Any]:
        """Cross-entropy of the targets."""
        return text_to_text_loss(model, batch, key, losses)


def _longest_end(length: Any, denoiser: Denoiser) -> Any:
    wanted = np.maximum(np.floor(2 * denoiser.noise_density * np.asarray(length)).astype(np.int64), 1)
    return np.minimum(wanted, np.maximum(np.asarray(length) - 1, 1))
