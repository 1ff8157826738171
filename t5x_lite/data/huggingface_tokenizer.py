"""Text to token ids and back by the Hugging Face `tokenizers` library."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32

from t5x_lite.data.sentencepiece_conversion import SPACE
from t5x_lite.data.tokenizer import Settings, Tokenizer
from t5x_lite.errors import UserError

WHITE_SPACE = (SPACE, "Ġ", "Ċ", "ĉ", "č")
"""Symbols for white space in `tokenizer.json`: SentencePiece's, and byte-level space, line feed, tab and return."""
SPLITS_SPECIAL_TOKENS = "split_special_tokens"
"""Transformers' setting of a tokenizer that encodes names of special tokens as text."""
LARGEST_VOCAB = 2**24
"""Ids of the largest vocabulary. XLM-V has 901,629; a larger id in a file is damage."""


class HuggingFace(Tokenizer):
    """A tokenizer of the Hugging Face `tokenizers` library.

    Args:
        serialised: content of a `tokenizer.json`.
        settings: content of its `tokenizer_config.json`. With `split_special_tokens`, as in tokenizers that are trained
            here, text cannot spell a special token; in those of others it can, as in Transformers.

    Raises:
        ValueError: an id is beyond `LARGEST_VOCAB`, or what surrounds a text has an id that the vocabulary lacks.
    """

    file_name = "tokenizer.json"

    def __init__(self, serialised: bytes, settings: Settings | None = None) -> None:
        tokenizer = tokenizers.Tokenizer.from_str(serialised.decode())
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        special: dict[str, int] = {}
        for token_id, token in tokenizer.get_added_tokens_decoder().items():
            if token.special:
                special[token.content] = token_id
        vocab = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if vocab > LARGEST_VOCAB:
            raise ValueError(f"its largest token id is {vocab - 1}")
        surrounding = tokenizer.encode("", add_special_tokens=True).ids
        if any(token_id >= vocab for token_id in surrounding):
            raise ValueError(f"it puts {surrounding} around a text, but its vocabulary has only {vocab} ids")
        super().__init__(serialised, vocab, special)
        self.settings = settings or {}
        tokenizer.encode_special_tokens = self._splits_special_tokens

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[object, ...], dict[str, object]]:
        return type(self), (self.file_bytes, self.settings), {"eos": self.eos, "bos": self.bos}

    @property
    def _splits_special_tokens(self) -> bool:
        return self.settings.get(SPLITS_SPECIAL_TOKENS) is True

    @property
    def fingerprint(self) -> str:
        if self._splits_special_tokens:
            return hashlib.sha256(self.file_bytes + SPLITS_SPECIAL_TOKENS.encode()).hexdigest()[:16]
        return super().fingerprint

    def to_tokenizers(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self.file_bytes.decode())

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, "_"]]:
        with _explained():
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def encode_placed(self, text: str) -> tuple[Int32[np.ndarray, "tokens"], Int32[np.ndarray, "tokens 2"]]:
        with _explained():
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int32).reshape(-1, 2)

    @property
    def sentence_border(self) -> str:
        """A space for a byte-level BPE, in which words that follow others begin with Ġ."""
        pieces = [self.piece(token) for token in self.encode("a")[:1].tolist()]
        adds_space = any(piece.startswith(WHITE_SPACE) for piece in pieces)
        is_byte_level = isinstance(self._tokenizer.decoder, tokenizers.decoders.ByteLevel)
        return " " if is_byte_level and not adds_space else ""

    def prefix_tokens(self) -> Int32[np.ndarray, "tokens"]:
        return super().prefix_tokens() if self._template is None else self._template[0]

    def suffix_tokens(self) -> Int32[np.ndarray, "tokens"]:
        return super().suffix_tokens() if self._template is None else self._template[1]

    def pair_separator(self) -> Int32[np.ndarray, "tokens"]:
        with _explained():
            encoding = self._tokenizer.encode("a", "a", add_special_tokens=True)
        texts = np.array([-1 if text is None else text for text in encoding.sequence_ids])
        if not (texts == 0).any() or not (texts == 1).any():
            return np.zeros(0, np.int32)
        end_of_first = np.flatnonzero(texts == 0)[-1] + 1
        return np.array(encoding.ids[end_of_first : np.flatnonzero(texts == 1)[0]][1:], np.int32)

    @cached_property
    def _template(self) -> tuple[Int32[np.ndarray, "_"], Int32[np.ndarray, "_"]] | None:
        """Return the ids that the file puts before and after every text; None if it puts none on either side."""
        with _explained():
            encoding = self._tokenizer.encode("a", add_special_tokens=True)
        ids = np.array(encoding.ids, np.int32)
        (text,) = np.nonzero(np.array(encoding.special_tokens_mask) == 0)
        if len(text) in {0, len(ids)}:
            return None
        return ids[: text[0]], ids[text[-1] + 1 :]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode(np.asarray(ids, np.int64).tolist(), skip_special_tokens=True)

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def piece(self, token: int) -> str:
        return self._tokenizer.id_to_token(token) or f"<{token}>"

    def begins_word(self) -> Bool[np.ndarray, "vocab"]:
        begins = np.zeros(self.vocab, bool)
        model = self._tokenizer.model
        for piece, token_id in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if isinstance(model, tokenizers.models.WordPiece):
                begins[token_id] = not piece.startswith(model.continuing_subword_prefix)
            elif isinstance(model, tokenizers.models.WordLevel):
                begins[token_id] = True
            else:
                begins[token_id] = piece.startswith(WHITE_SPACE)
        return begins

    def ends_word(self) -> Bool[np.ndarray, "vocab"]:
        ends = np.zeros(self.vocab, bool)
        for piece, token_id in self._tokenizer.get_vocab(with_added_tokens=True).items():
            ends[token_id] = piece.endswith(WHITE_SPACE)
        return ends


@contextmanager
def _explained() -> Iterator[None]:
    """Turn the library's errors into one of the user's tokenizer: its file refers to tokens that it lacks."""
    try:
        yield
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"the tokenizer cannot encode a text: {error}; its tokenizer.json is damaged") from None
