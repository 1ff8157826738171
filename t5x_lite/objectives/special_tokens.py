"""Special tokens around texts: `[CLS] A [SEP] B [SEP]` in an encoder, `A EOS B EOS` in a decoder.

A decoder and an encoder_decoder also read what their tokenizer puts around every text, such as Llama's `<s>`.
Objectives use it for their examples, and the functions that query a trained model for their inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from t5x_lite.errors import UserError
from t5x_lite.objectives.features import pad, positions_in, stacked, token_features
from t5x_lite.objectives.objective import ExampleContext, Features, TokenRow, Vocabulary

CLS = ("[CLS]", "<s>")
"""Names of the token before the first text, in BERT's and in RoBERTa's tokenizers."""
SEP = ("[SEP]", "</s>")
"""Names of the token after each text."""
LAST_CLS = ("<cls>",)
"""Name of the token after the last text, in XLNet's tokenizer."""
LAST_SEP = ("<sep>",)
"""Name of the token after each text, in XLNet's tokenizer."""
LAST_TYPE = 2
"""Type of the token after the last text, in XLNet."""


@dataclass(frozen=True)
class SpecialTokensTemplate:
    """The special tokens around one text or a pair of texts.

    Attributes:
        start: ids before the first text.
        end: id after each text.
        last: ids after the last one.
        between: ids between two texts, after the `end` of the first.
    """

    start: tuple[int, ...]
    end: int
    last: tuple[int, ...] = ()
    between: tuple[int, ...] = ()

    def size(self, texts: int) -> int:
        """Return the number of special tokens around so many texts."""
        return len(self.start) + texts + len(self.last) + (texts - 1) * len(self.between)

    def tokens(self, texts: Sequence[np.ndarray]) -> Int[np.ndarray, "l"]:
        """Return int32 ids of the texts with the special tokens."""
        parts = [np.array(self.start, np.int32)]
        for number, text in enumerate(texts):
            if number:
                parts.append(np.array(self.between, np.int32))
            parts.append(text.astype(np.int32))
            parts.append(np.array([self.end], np.int32))
        parts.append(np.array(self.last, np.int32))
        return np.concatenate(parts)

    def token_types(self, texts: Sequence[np.ndarray]) -> Int[np.ndarray, "l"]:
        """Return 0 for the first text with its special tokens, 1 for the second, 2 for the tokens that come last."""
        sizes = [len(text) + 1 for text in texts]
        sizes[0] += len(self.start)
        sizes[:-1] = [size + len(self.between) for size in sizes[:-1]]
        of_texts = np.repeat(np.arange(len(texts), dtype=np.int32), sizes)
        return np.concatenate([of_texts, np.full(len(self.last), LAST_TYPE, np.int32)])


def encoder_template(vocabulary: Vocabulary, user: str) -> SpecialTokensTemplate:
    """Return BERT's special tokens: [CLS] and [SEP], or <s> and </s>; or XLNet's, where <cls> comes last.

    Raises:
        UserError: the tokenizer has no such token; the message names `user`.
    """
    if not vocabulary.named.keys().isdisjoint(LAST_CLS):
        sep = vocabulary.require_token(user, *LAST_SEP)
        return SpecialTokensTemplate((), sep, (vocabulary.require_token(user, *LAST_CLS),))
    cls = vocabulary.require_token(user, *CLS)
    sep = vocabulary.require_token(user, *SEP)
    return SpecialTokensTemplate((cls,), sep, between=vocabulary.pair_separator)


def num_encoder_special_tokens(vocabulary: Vocabulary, texts: int) -> int:
    """Return the number of special tokens around this many texts in an encoder."""
    return 1 + texts + (texts - 1) * len(vocabulary.pair_separator)


def check_room(objective: str, room: int, context: ExampleContext) -> None:
    """Refuse rows that hold nothing but special tokens.

    Args:
        objective: its name.
        room: tokens of a row beside the special ones.
        context: its settings.

    Raises:
        UserError: there is no room.
    """
    if room < 1:
        raise UserError(
            f"objective {objective}: train.seq_len {context.seq_len} leaves no room for a text; make it larger"
        )


def task_template(context: ExampleContext, user: str = "a task") -> SpecialTokensTemplate:
    """Return the special tokens of the texts of a task: BERT's in an encoder, EOS after each text in a decoder.

    A decoder also reads what its tokenizer puts before every text.

    Raises:
        UserError: the tokenizer has no such token; the message names `user`.
    """
    if context.is_encoder_only:
        return encoder_template(context.vocabulary, user)
    return SpecialTokensTemplate(text_start(context), context.vocabulary.require_eos(user))


def text_start(context: ExampleContext) -> tuple[int, ...]:
    """Return the ids before every text of a decoder or an encoder_decoder; an encoder has `encoder_template`."""
    return () if context.is_encoder_only else context.vocabulary.prefix_tokens


def text_end(context: ExampleContext) -> tuple[int, ...]:
    """Return the ids after every text that an encoder_decoder reads; a decoder goes on with what it predicts."""
    return context.vocabulary.suffix_tokens if context.family == "encoder_decoder" else ()


def target_start(context: ExampleContext) -> tuple[int, ...]:
    """Return the ids before every target of an encoder_decoder, as in BART's labels.

    A token that the decoder begins with anyway is no target.
    """
    if context.family != "encoder_decoder" or text_start(context) == (context.start_token,):
        return ()
    return text_start(context)


def target_tokens(tokens: Int[np.ndarray, "_"], length: int, eos: int, context: ExampleContext) -> Int[np.ndarray, "_"]:
    """Return int32 ids of a target with `target_start` before it and EOS after it, cut to `length`."""
    started = np.concatenate([target_start(context), tokens])
    return np.append(started[: length - 1], eos).astype(np.int32)


def input_start(context: ExampleContext) -> Int[np.ndarray, "n"]:
    """Return the ids before the input of a task in a model that is no encoder: `virtual_tokens`, then `text_start`."""
    start = np.array(text_start(context), np.int32)
    return np.concatenate([virtual_tokens(context.num_virtual_tokens), start])


def split_start(
    ids: Int[np.ndarray, "n"], context: ExampleContext
) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "k"]]:
    """Return what comes before every text in a prompt, virtual tokens and those of `text_start`, and the rest."""
    size = int((ids < 0).sum())
    start = text_start(context)
    if tuple(ids[size : size + len(start)]) == start:
        size += len(start)
    return ids[:size], ids[size:]


def virtual_tokens(num_virtual_tokens: int) -> Int[np.ndarray, "n"]:
    """Return the ids -1, -2, … of so many virtual tokens, which an adaptation puts before each text of a task."""
    return -1 - np.arange(num_virtual_tokens, dtype=np.int32)


def build_row_features(row: TokenRow, context: ExampleContext, token_type: int = 0) -> Features:
    """Add special tokens to a row of one or several documents, as to one text.

    The documents stay segments of their own. A token before them is in the segment of the first, those after them are
    in that of the last. An empty row stays empty.

    Returns:
        `tokens`, `positions`, `segment_ids` and `token_types` (`token_type` and those of the special tokens; 0 in the
        padding), int32 `[seq_len]`.
    """
    count = int((row.segments > 0).sum())
    tokens = row.tokens[:count]
    segments = row.segments[:count]
    token_types = np.zeros(0, np.int32)
    if count:
        template = encoder_template(context.vocabulary, "this objective")
        token_types = template.token_types([tokens])
        tokens = template.tokens([tokens])
        before = len(template.start)
        after = len(tokens) - count - before
        segments = np.concatenate([segments[:1].repeat(before), segments, segments[-1:].repeat(after)])
    features = token_features(tokens, segments, context.seq_len)
    features["token_types"] = pad(token_type + token_types, context.seq_len)
    return features


def build_pair_features(
    first: np.ndarray, second: np.ndarray, context: ExampleContext, *, restart_positions: bool = False
) -> Features:
    """Join two texts, which must fit, to one segment with special tokens.

    If `first` is empty, the row stays empty. With `restart_positions`, the positions of `second` begin from 0 again
    (XLM: Conneau & Lample 2019, §3.3).

    Returns:
        `tokens`, `positions`, `segment_ids` and `token_types`, int32 `[seq_len]`.
    """
    tokens = np.zeros(0, np.int32)
    token_types = np.zeros(0, np.int32)
    if len(first):
        template = encoder_template(context.vocabulary, "this objective")
        tokens = template.tokens([first, second])
        token_types = template.token_types([first, second])
    features = token_features(tokens, np.ones(len(tokens), np.int32), context.seq_len)
    features["token_types"] = pad(token_types, context.seq_len)
    if restart_positions:
        features["positions"] = positions_in(features["segment_ids"] + features["token_types"])
    return features


def build_text_features(texts: Sequence[np.ndarray], context: ExampleContext) -> Features:
    """Join one text or a pair of a task to one segment, with special tokens and after the virtual tokens.

    Long texts are cut, the longer first.

    Returns:
        `tokens`, `positions` and `segment_ids`, int32 `[seq_len]`; in an encoder also `token_types`.
    """
    template = task_template(context)
    soft = virtual_tokens(context.num_virtual_tokens)
    texts = _truncate_to_fit(texts, context.seq_len - len(soft) - template.size(len(texts)))
    tokens = np.concatenate([soft, template.tokens(texts)])
    features = token_features(tokens, np.ones(len(tokens), np.int32), context.seq_len)
    if context.family == "encoder":
        token_types = np.concatenate([np.zeros_like(soft), template.token_types(texts)])
        features["token_types"] = pad(token_types, context.seq_len)
    return features


def build_batch_features(examples: Sequence[Sequence[np.ndarray]], context: ExampleContext) -> dict[str, np.ndarray]:
    """Apply `build_text_features` to each text or pair and stack the features, `[examples, seq_len]`."""
    return stacked([build_text_features(texts, context) for texts in examples])


def _truncate_to_fit(texts: Sequence[np.ndarray], room: int) -> list[np.ndarray]:
    """Cut the texts at their ends, always the longest, until they have at most `room` tokens together."""
    sizes = np.array([len(text) for text in texts])
    while sizes.sum() > room:
        longest = int(sizes.argmax())
        other_sizes = np.delete(sizes, longest)
        second_longest = 0
        if len(other_sizes):
            second_longest = int(other_sizes.max())
        excess = sizes.sum() - room
        # Down to the length of the next longest text in one step, by at least one token.
        target = min(second_longest, sizes[longest] - 1)
        sizes[longest] = max(target, sizes[longest] - excess, 0)
    return [text[:size] for text, size in zip(texts, sizes, strict=True)]
