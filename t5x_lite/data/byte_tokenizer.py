"""UTF-8 bytes as token ids (ByT5)."""

from collections.abc import Sequence

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32

from t5x_lite.data.tokenizer import Tokenizer


class Bytes(Tokenizer):
    """UTF-8 bytes: byte b has the id b + 3, after pad 0, EOS 1 and unk 2 (Xue et al. 2022, §3.1)."""

    file_name = "tokenizer.json"
    first = 3
    sentinel_count = 100

    def __init__(self, serialised: bytes = b'{"model": "bytes"}') -> None:
        super().__init__(serialised, self.first + 256, {"<pad>": 0, "</s>": 1, "<unk>": 2})

    def to_tokenizers(self) -> tokenizers.Tokenizer:
        """Return a byte-level BPE without merges."""
        vocabulary = dict(self.special)
        for byte in range(256):
            vocabulary[_byte_symbol(byte)] = byte + self.first
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        tokenizer.add_special_tokens(list(self.special))
        return tokenizer

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, "_"]]:
        batch: list[np.ndarray] = []
        for text in texts:
            utf8 = text.encode("utf-8", errors="replace")
            batch.append(np.frombuffer(utf8, np.uint8).astype(np.int32) + self.first)
        return batch

    @property
    def sentence_border(self) -> str:
        return " "

    def encode_placed(self, text: str) -> tuple[Int32[np.ndarray, "tokens"], Int32[np.ndarray, "tokens 2"]]:
        byte_counts = [len(character.encode("utf-8", errors="replace")) for character in text]
        starts = np.repeat(np.arange(len(text), dtype=np.int32), byte_counts)
        return self.encode(text), np.stack([starts, starts + 1], axis=1)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        token_ids = np.asarray(ids, np.int64)
        is_byte = (token_ids >= self.first) & (token_ids < self.first + 256)
        utf8 = bytes((token_ids[is_byte] - self.first).tolist())
        return utf8.decode("utf-8", errors="replace")

    def id_of(self, token: str) -> int | None:
        return self.special.get(token)

    def piece(self, token: int) -> str:
        """Return a token as text: `b'a'` for a byte."""
        if self.first <= token < self.vocab:
            return repr(bytes([token - self.first]))
        return f"<{token}>"

    def begins_word(self) -> Bool[np.ndarray, "vocab"]:
        # White space does, which comes before its word.
        return np.isin(np.arange(self.vocab), [self.first + byte for byte in b" \t\n\r\v\f"])

    def sentinels(self) -> tuple[int, ...]:
        """Return the last hundred byte ids, downwards: bytes that valid text rarely has (Xue et al. 2022, §3.1)."""
        return tuple(range(self.vocab - 1, self.vocab - 1 - self.sentinel_count, -1))


def _byte_symbol(byte: int) -> str:
    """Return the character that stands for a byte in a byte-level BPE (Radford et al. 2019, GPT-2's encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    if byte in printable:
        return chr(byte)
    earlier = sum(other not in printable for other in range(byte))
    return chr(256 + earlier)
