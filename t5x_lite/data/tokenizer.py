"""Text to token ids and back: the interface of tokenizers, and SentencePiece models."""

import hashlib
import itertools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import sentencepiece
import tokenizers
from jaxtyping import Bool, Int32
from sentencepiece import sentencepiece_model_pb2

from t5x_lite.data import sentencepiece_conversion
from t5x_lite.data.sentencepiece_conversion import SPACE
from t5x_lite.files import write_file
from t5x_lite.objectives import Vocabulary

BLOCK_CHARACTERS = 2**16
"""Characters passed to SentencePiece at a time: its time grows faster than linearly on texts beyond a megabyte."""
END_OF_WORD = re.compile(r"(?<=[^ ]) ")
"""Borders at which texts are cut for SentencePiece: the spaces after words."""
BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")
"""Borders at which texts are cut for `tokenizers`, whose words may begin with, or be, several spaces and lines."""
PAD_NAMES = ("<pad>", "[PAD]")
EOS_NAMES = ("</s>", "<|endoftext|>", "[SEP]", "<|end_of_text|>", "<eos>")
UNK_NAMES = ("<unk>", "[UNK]")
SENTINEL = re.compile(f"{SPACE}?(<extra_id_[0-9]+>)")
"""T5's sentinels. In mT5's file a space belongs to their names."""
SETTINGS_FILE = "tokenizer_config.json"
Settings: TypeAlias = dict[str, Any]
"""The content of a `tokenizer_config.json`: special tokens by their use, a chat template, and so on."""


class Tokenizer(ABC):
    """Encodes text as token ids and decodes them.

    Attributes:
        file_bytes: content of the tokenizer's file.
        vocab: size of the vocabulary; all ids are below it.
        special: ids of the special tokens, those that no text is made of, by name.
        pad: id of the padding token, or None if the vocabulary has none.
        eos: id of the end-of-text token, or None.
        bos: id of the token that begins every text, where the tokenizer's file does not say so itself, or None.
        unk: id of the token for unknown text, or None.
        settings: the content of the `tokenizer_config.json` that belongs to the tokenizer; empty if it has none.
    """

    file_name: str

    def __init__(self, file_bytes: bytes, vocab: int, special: dict[str, int]) -> None:
        self.file_bytes = file_bytes
        self.vocab = vocab
        self.special = special
        self.pad = self._first_id(PAD_NAMES)
        self.eos = self.usual_eos
        self.bos: int | None = None
        self.unk = self._first_id(UNK_NAMES)
        self.settings: Settings = {}

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[object, ...], dict[str, object]]:
        return type(self), (self.file_bytes,), {"eos": self.eos, "bos": self.bos, "settings": self.settings}

    @abstractmethod
    def to_tokenizers(self) -> tokenizers.Tokenizer:
        """Return a tokenizer of the `tokenizers` library with the same ids, except that text can name special tokens.

        Raises:
            UserError: the library has none.
        """

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, "_"]]:
        """Return the ids of each text, without EOS."""

    @abstractmethod
    def encode_placed(self, text: str) -> tuple[Int32[np.ndarray, "tokens"], Int32[np.ndarray, "tokens 2"]]:
        """Return the ids of a text, and the characters that each id stands for, as start and stop."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids, without special tokens."""

    @abstractmethod
    def id_of(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary, or None if there is no such token."""

    @abstractmethod
    def piece(self, token: int) -> str:
        """Return the text that the vocabulary has for a token id."""

    @abstractmethod
    def begins_word(self) -> Bool[np.ndarray, "vocab"]:
        """Return whether each id begins a word: with white space, or as a whole piece of WordPiece."""

    def ends_word(self) -> Bool[np.ndarray, "vocab"]:
        """Return whether each id ends with white space, so that the next one begins a word."""
        return np.zeros(self.vocab, bool)

    @property
    def sentence_border(self) -> str:
        """White space before a sentence that follows another one, if `encode` puts none before every text."""
        return ""

    def prefix_tokens(self) -> Int32[np.ndarray, "tokens"]:
        """Return the ids that come before every text, such as Llama's <s>; `encode` leaves them out."""
        return np.array([] if self.bos is None else [self.bos], np.int32)

    def suffix_tokens(self) -> Int32[np.ndarray, "tokens"]:
        """Return the ids that come after every text that an encoder_decoder reads, such as T5's </s>."""
        if self.eos is None or self.settings.get("add_eos_token") is False:
            return np.zeros(0, np.int32)
        return np.array([self.eos], np.int32)

    def pair_separator(self) -> Int32[np.ndarray, "tokens"]:
        """Return the ids between two texts that an encoder reads, beside the token after the first."""
        return np.zeros(0, np.int32)

    def sentinels(self) -> tuple[int, ...]:
        """Return the ids of T5's <extra_id_0>, <extra_id_1>, … in this order."""
        ids: list[int] = []
        while (name := f"<extra_id_{len(ids)}>") in self.special:
            ids.append(self.special[name])
        return tuple(ids)

    def vocabulary(self) -> Vocabulary:
        """Return what objectives need to know about the tokenizer."""
        is_special = np.zeros(self.vocab, bool)
        is_special[list(self.special.values())] = True
        return Vocabulary(
            size=self.vocab,
            eos=self.eos,
            named=self.special,
            sentinels=self.sentinels(),
            special=is_special,
            begins_word=self.begins_word(),
            ends_word=self.ends_word(),
            prefix_tokens=tuple(self.prefix_tokens().tolist()),
            suffix_tokens=tuple(self.suffix_tokens().tolist()),
            pair_separator=tuple(self.pair_separator().tolist()),
        )

    def encode(self, text: str) -> Int32[np.ndarray, "tokens"]:
        """Return the ids of one text, without EOS."""
        return self.encode_batch([text])[0]

    def encode_named(self, text: str) -> Int32[np.ndarray, "tokens"]:
        """Return the ids of a text that may name special tokens, such as a prompt with sentinels."""
        if not self.special:
            return self.encode(text)
        longest_first = sorted(self.special, key=len, reverse=True)
        any_name = "|".join(map(re.escape, longest_first))
        ids = [np.zeros(0, np.int32)]
        for piece in re.split(f"({any_name})", text):
            if piece in self.special:
                ids.append(np.array([self.special[piece]], np.int32))
            elif piece:
                ids.append(self.encode(piece))
        return np.concatenate(ids)

    @property
    def usual_eos(self) -> int | None:
        """The end-of-text token by its usual name, which `eos` is unless settings beside the file name another."""
        return self._first_id(EOS_NAMES)

    @property
    def fingerprint(self) -> str:
        """A hash that differs between tokenizers that could return different ids."""
        return hashlib.sha256(self.file_bytes).hexdigest()[:16]

    def save(self, folder: Path) -> Path:
        """Write `tokenizer.model` (SentencePiece) or `tokenizer.json` into `folder`, after its settings if it has any.

        Returns:
            The path of the tokenizer's file.
        """
        if self.settings:
            write_file(folder / SETTINGS_FILE, json.dumps(self.settings, indent=2) + "\n")
        return write_file(folder / self.file_name, self.file_bytes)

    def _first_id(self, names: Sequence[str]) -> int | None:
        for name in names:
            token_id = self.id_of(name)
            if token_id is not None:
                return token_id
        return None


class SentencePiece(Tokenizer):
    """A SentencePiece model (Kudo & Richardson 2018).

    Args:
        model: content of a `.model` file.
        block_characters: characters passed to the library at a time. The ids do not depend on it.
    """

    file_name = "tokenizer.model"

    def __init__(self, model: bytes, block_characters: int = BLOCK_CHARACTERS) -> None:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._processor = processor
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
        self._strips_spaces = proto.normalizer_spec.remove_extra_whitespaces
        self._adds_space = proto.normalizer_spec.add_dummy_prefix
        proto.normalizer_spec.add_dummy_prefix = False
        self._processor_within_text = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        self._block_characters = block_characters
        special: dict[str, int] = {}
        for token_id in range(processor.get_piece_size()):
            piece = processor.id_to_piece(token_id)
            sentinel = SENTINEL.fullmatch(piece)
            if sentinel is not None:
                special[sentinel[1]] = token_id
            elif processor.is_control(token_id) or processor.is_unknown(token_id):
                special[piece] = token_id
        super().__init__(model, processor.get_piece_size(), special)
        self._sentinels = np.array(self.sentinels(), np.int64)

    def to_tokenizers(self) -> tokenizers.Tokenizer:
        return sentencepiece_conversion.to_tokenizers(self.file_bytes)

    def encode_batch(self, texts: Sequence[str]) -> list[Int32[np.ndarray, "_"]]:
        blocks: list[str] = []
        block_counts: list[int] = []
        cut_words: list[int] = []
        for text in texts:
            text_blocks = list(cut_blocks(text, self._block_characters))
            for number, block in enumerate(text_blocks[1:], start=len(blocks) + 1):
                if not (self._strips_spaces and block.startswith(" ")):
                    cut_words.append(number)
            blocks += text_blocks
            block_counts.append(len(text_blocks))
        block_ids = self._processor.encode(blocks, num_threads=1)
        for number in cut_words:  # the processor would put a space before them
            block_ids[number] = self._processor_within_text.encode(blocks[number])
        block_ends = np.cumsum([0, *map(len, block_ids)])
        ids = np.fromiter(itertools.chain.from_iterable(block_ids), np.int32, block_ends[-1])
        text_ends = block_ends[np.cumsum([0, *block_counts])].tolist()
        return [ids[start:stop] for start, stop in itertools.pairwise(text_ends)]

    def encode_placed(self, text: str) -> tuple[Int32[np.ndarray, "tokens"], Int32[np.ndarray, "tokens 2"]]:
        ids: list[int] = []
        byte_places: list[tuple[int, int]] = []
        for piece in self._processor.encode(text, return_type="proto").pieces:
            ids.append(piece.id)
            byte_places.append((piece.begin, piece.end))
        # SentencePiece counts bytes; continuation bytes (10xxxxxx) do not begin a character.
        utf8 = np.frombuffer(text.encode("utf-8", errors="replace"), np.uint8)
        begins_character = (utf8 & 0xC0) != 0x80
        character_of_byte = np.concatenate([[0], np.cumsum(begins_character)]).astype(np.int32)
        return np.array(ids, np.int32), character_of_byte[np.array(byte_places, np.int64).reshape(-1, 2)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        token_ids = np.asarray(ids, np.int64)
        # The library prints sentinels that are no control pieces, as in mT5's file, and has no piece for an id beyond
        # its vocabulary, which that of a model may exceed.
        is_printed = (token_ids < self.vocab) & ~np.isin(token_ids, self._sentinels)
        return self._processor.decode(token_ids[is_printed].tolist())

    @property
    def sentence_border(self) -> str:
        return "" if self._adds_space or self._strips_spaces else " "

    def id_of(self, token: str) -> int | None:
        token_id = self._processor.piece_to_id(token)
        if self._processor.id_to_piece(token_id) != token:  # the library returns the id of <unk>
            return None
        return token_id

    def piece(self, token: int) -> str:
        if token >= self.vocab:
            return f"<{token}>"
        return self._processor.id_to_piece(token)

    def begins_word(self) -> Bool[np.ndarray, "vocab"]:
        return np.array([text[:1].isspace() for text in self._texts_of_pieces()])

    def ends_word(self) -> Bool[np.ndarray, "vocab"]:
        return np.array([text[-1:].isspace() for text in self._texts_of_pieces()])

    def _texts_of_pieces(self) -> Iterator[str]:
        """Yield the text of each piece; of a byte (`<0x0A>`), the ASCII character."""
        for token_id in range(self.vocab):
            piece = self._processor.id_to_piece(token_id)
            if self._processor.is_byte(token_id):
                yield chr(int(piece[1:-1], base=16))
            else:
                yield piece.replace(SPACE, " ")


def cut_blocks(text: str, block_characters: int, borders: re.Pattern[str] = END_OF_WORD) -> Iterator[str]:
    """Cut a text before a space that ends a word. No piece spans such a border, so the ids stay those of the text.

    Blocks have up to twice `block_characters`. A stretch of text without such a space is cut anywhere.
    """
    start = 0
    while len(text) - start > block_characters:
        earliest = start + block_characters
        latest = earliest + block_characters
        border = borders.search(text, earliest, latest)
        end = earliest
        if border is not None:
            end = border.start()
        elif len(text) < latest:
            break
        yield text[start:end]
        start = end
    yield text[start:]
