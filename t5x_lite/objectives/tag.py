"""A label for every word, predicted from its first token (Devlin et al. 2019, §5.3)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Int

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.head_config import HeadConfig
from t5x_lite.models.mixers import MIXERS, Mixer
from t5x_lite.objectives.model_protocols import Array, Batch, DropoutKey, LossSettings, LossSums, TaskModel
from t5x_lite.objectives.objective import ExampleContext, Features
from t5x_lite.objectives.special_tokens import build_text_features, task_template
from t5x_lite.objectives.supervised import Record, Supervised, TaskTokenizer, label_index, pooled_states
from t5x_lite.schema import OneOf, Strings, setting

NO_WORD = -1
"""Word number of a token that is not the first of a word."""


class Tag(Supervised):
    """Predict a tag for each word, by cross-entropy.

    Roles: `words` and `tags`, lists of one length.

    Features: those of `build_text_features`, and `[seq_len]`: `targets` int32, `loss_weights` float32 (1 at the first
    token of a word), `words` int32 (the word's number there, else -1). Words beyond the row are not learnt, and are
    predicted as the first label.
    """

    name: ClassVar[str] = "tag"
    roles: ClassVar[tuple[str, ...]] = ("words", "tags")

    labels: Strings = setting(
        ..., "names of the tags, such as O B-PER I-PER; the data may hold their numbers", min_length=2
    )

    mixer: Annotated[Mixer | None, OneOf(MIXERS)] = setting(
        None,
        "a recurrence of the head over the model's states, such as {lstm: {bidirectional: true}}",
        source="Peters et al. 2017",
    )
    crf: bool = setting(
        False, "predict the tags of a text together, with scores of neighbouring tags", source="Huang et al. 2015"
    )

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(self.labels)

    def head(self, model: ModelConfig) -> HeadConfig:
        return HeadConfig(outputs=len(self.labels), pool="none", mixer=self.mixer, crf=self.crf)

    def check_record(self, record: Record) -> None:
        """Refuse a record with another number of tags than words, or with an unknown tag."""
        if len(record["words"]) != len(record["tags"]):
            raise ValueError(f"{len(record['words'])} words but {len(record['tags'])} tags")
        super().check_record(record)

    def examples(self, record: Record, tokenizer: TaskTokenizer, context: ExampleContext) -> list[Features]:
        self.check_record(record)
        words = [str(word) for word in record["words"]]
        tags = record["tags"]
        token_ids, offsets = tokenizer.encode_with_offsets(" ".join(words))
        word_of_token = _word_of_token(words, offsets)
        first_tokens = np.flatnonzero(np.diff(word_of_token, prepend=NO_WORD))

        template = task_template(context)
        text_start = context.num_virtual_tokens + len(template.start)
        first_tokens = first_tokens[first_tokens < context.seq_len - text_start - 1 - len(template.last)]
        word_numbers = np.full(context.seq_len, NO_WORD, np.int32)
        word_numbers[text_start + first_tokens] = word_of_token[first_tokens]
        targets = np.zeros(context.seq_len, np.int32)
        for token in first_tokens:
            targets[text_start + token] = label_index(tags[word_of_token[token]], self.labels)
        features = {
            **build_text_features([token_ids], context),
            "targets": targets,
            "loss_weights": (word_numbers != NO_WORD).astype(np.float32),
            "words": word_numbers,
        }
        return [features]

    def loss(self, model: TaskModel, batch: Batch, key: DropoutKey, settings: LossSettings) -> Mapping[str, LossSums]:
        """Return the cross-entropy over the tags at the first token of each word, with a CRF that of all together."""
        from t5x_lite.models import crf, losses

        scores = self.scores(model, batch, key)["scores"]
        targets = batch["targets"]
        if self.crf:
            transitions = model.head.transitions[...]
            return {"loss": crf.tag_sequence_loss(scores, transitions, targets, batch["loss_weights"])}
        weights = batch["loss_weights"].reshape(-1)
        return {"loss": losses.class_cross_entropy(scores.reshape(-1, scores.shape[-1]), targets.reshape(-1), weights)}

    def scores(self, model: TaskModel, batch: Batch, key: DropoutKey = None) -> dict[str, Array]:
        """Return the scores of each token, and with a CRF those of a tag after another."""
        import jax.numpy as jnp

        scores = model.head(pooled_states(model, batch, key), key)
        if not self.crf:
            return {"scores": scores}
        transitions = model.head.transitions[...]
        return {"scores": scores, "transitions": jnp.broadcast_to(transitions, (len(scores), *transitions.shape))}

    def prediction(self, record: Record, examples: Sequence[Features], scores: Sequence[Features]) -> list[str]:
        """Return a tag for every word."""
        tags = [self.labels[0]] * len(record["words"])
        word_numbers = examples[0]["words"]
        first_tokens = np.flatnonzero(word_numbers != NO_WORD)
        word_scores = scores[0]["scores"][first_tokens]
        if self.crf:
            from t5x_lite.models.crf import best_tags

            labels = best_tags(word_scores, scores[0]["transitions"])
        else:
            labels = word_scores.argmax(-1).tolist()
        for token, label in zip(first_tokens, labels, strict=True):
            tags[word_numbers[token]] = self.labels[label]
        return tags

    def reference(self, record: Record) -> list[str]:
        """Return the names of the tags."""
        return [self.labels[label_index(tag, self.labels)] for tag in record["tags"]]


def _word_of_token(words: Sequence[str], offsets: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, "n"]:
    """Return the number of the word of each token of the words joined by spaces.

    The last character of a token decides, because the first may be the space before the word.
    """
    word_starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    last_characters = np.maximum(offsets[:, 1] - 1, 0)
    return np.searchsorted(word_starts, last_characters, side="right") - 1
