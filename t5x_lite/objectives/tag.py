"""A label for every word, told from its first token (Devlin et al. 2019, §5.3)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from t5x_lite.models.config import HeadConfig, ModelConfig
from t5x_lite.objectives.objective import ExampleContext, Features, Losses
from t5x_lite.objectives.supervised import Coder, Record, Supervised, framed, label_index, states
from t5x_lite.schema import Strings, setting


class Tag(Supervised):
    """Roles `words` and `tags`, lists of one length.

    Features: those of `framed`, and `[seq_len]`: `targets`, `loss_weights` (1 at the first token of a word), `words`
    (the word's number there, else -1). Words beyond the row are not learnt, and are predicted as the first label.
    """

    name: ClassVar[str] = "tag"
    roles: ClassVar[tuple[str, ...]] = ("words", "tags")

    labels: Strings = setting(
        ..., "names of the tags, such as O B-PER I-PER; data may hold their numbers", min_length=2
    )

    def head(self, model: ModelConfig) -> HeadConfig:
        return HeadConfig(outputs=len(self.labels), pool="none")

    def examples(self, record: Record, coder: Coder, context: ExampleContext) -> list[Features]:
        words = [str(word) for word in record["words"]]
        if len(words) != len(record["tags"]):
            raise ValueError(f"{len(words)} words but {len(record['tags'])} tags")
        ids, places = coder.encode_placed(" ".join(words))
        starts = np.cumsum([0, *(len(word) + 1 for word in words)])
        row = framed([ids], context)
        # Where a token ends tells its word: what stands before it may be the space that it begins with.
        word_of = np.searchsorted(starts, np.maximum(places[:, 1] - 1, 0), side="right") - 1
        first = np.flatnonzero(np.diff(word_of, prepend=-1))
        lead = context.placeholders + (context.family == "encoder")
        first = first[first < context.seq_len - lead - 1]
        targets, numbers = np.zeros(context.seq_len, np.int32), np.full(context.seq_len, -1, np.int32)
        numbers[first + lead] = word_of[first]
        targets[first + lead] = [label_index(record["tags"][word], self.labels) for word in word_of[first]]
        return [{**row, "targets": targets, "loss_weights": (numbers >= 0).astype(np.float32), "words": numbers}]

    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, losses: Losses) -> Mapping[str, Any]:
        """Cross-entropy over the tags of first tokens."""
        scores = self.scores(model, batch, key)["scores"]
        return {"loss": losses.tokens(lambda x: x, scores, batch["targets"], batch["loss_weights"])}

    def scores(self, model: Any, batch: Mapping[str, Any], key: Any = None) -> dict[str, Any]:
        """Of each token."""
        return {"scores": model.head(states(model, batch, key), key)}

    def prediction(self, record: Record, examples: Sequence[Features], scores: Sequence[Features]) -> list[str]:
        """A tag for every word."""
        tags = [self.labels[0]] * len(record["words"])
        numbers = examples[0]["words"]
        for place in np.flatnonzero(numbers >= 0):
            tags[numbers[place]] = self.labels[int(scores[0]["scores"][place].argmax())]
        return tags

    def reference(self, record: Record) -> list[str]:
        """The tags' names."""
        return [self.labels[label_index(tag, self.labels)] for tag in record["tags"]]
