"""Text to token ids and back: SentencePiece models, Hugging Face `tokenizers` files, and bytes."""

import hashlib
import itertools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from t5x_lite.data.config import TokenizerFile
from t5x_lite.errors import UserError
from t5x_lite.files import write_file
from t5x_lite.objectives import Vocabulary

BLOCK = 2**16
"""Characters given to SentencePiece at a time: strings beyond about a megabyte take it more than linear time."""
SPACE = "\u2581"
"""SentencePiece's sign for a space."""
FILES = ("tokenizer.model", "tokenizer.json")
"""A run's tokenizer is in one of these."""
PAD, EOS, UNK = (
    ("<pad>", "[PAD]"),
    ("</s>", "<|endoftext|>", "[SEP]", "<|end_of_text|>", "<eos>"),
    ("<unk>", "[UNK]"),
)


class Tokenizer(ABC):
    """Ids are below `vocab`; `pad`, `eos` and `unk` are ids, or None where the vocabulary has no such token.

    `special` maps the tokens that text is not made of to their ids.
    """

    file_name: str

    def __init__(self, file_bytes: bytes, vocab: int, special: dict[str, int]) -> None:
        self.file_bytes, self.vocab, self.special = file_bytes, vocab, special
        found = ((self.id_of(name) for name in names) for names in (PAD, EOS, UNK))
        self.pad, self.eos, self.unk = (next((i for i in ids if i is not None), None) for ids in found)

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes]]:
        return type(self), (self.file_bytes,)

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 ids of each text, without EOS."""

    @abstractmethod
    def encode_placed(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """int32 ids of one text and the characters that each stands for, `[n, 2]` start and stop."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out."""

    @abstractmethod
    def id_of(self, token: str) -> int | None:
        """The id of one token of the vocabulary, by its name."""

    @abstractmethod
    def piece(self, token: int) -> str:
        """One token as it stands in the vocabulary."""

    @abstractmethod
    def begins_word(self) -> np.ndarray:
        """Whether each id begins a word, bool `[vocab]`."""

    def beginning(self) -> np.ndarray:
        """int32 ids that the tokenizer's own file puts before every text, such as Llama's <s>; `encode` does not."""
        return np.zeros(0, np.int32)

    def sentinels(self) -> tuple[int, ...]:
        """T5's <extra_id_0>, <extra_id_1>, … in this order."""
        found = (self.special.get(f"<extra_id_{n}>") for n in itertools.count())
        return tuple(itertools.takewhile(lambda i: i is not None, found))  # type: ignore[arg-type]

    def vocabulary(self) -> Vocabulary:
        """What objectives are told."""
        special = np.zeros(self.vocab, bool)
        special[list(self.special.values())] = True
        return Vocabulary(self.vocab, self.eos, self.special, self.sentinels(), special, self.begins_word())

    def encode_named(self, text: str) -> np.ndarray:
        """int32 ids of a text in which the names of special tokens stand for them, as in a prompt with sentinels."""
        names = sorted(self.special, key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
        ids = [[self.special[piece]] if piece in self.special else self.encode(piece) for piece in pieces if piece]
        return np.concatenate([np.zeros(0, np.int32), *ids]).astype(np.int32)

    def encode(self, text: str) -> np.ndarray:
        """int32 ids of one text, without EOS."""
        return self.encode_batch([text])[0]

    @property
    def fingerprint(self) -> str:
        """Differs between tokenizers that could make different ids."""
        return hashlib.sha256(self.file_bytes).hexdigest()[:16]

    def save(self, folder: Path) -> Path:
        """Write `tokenizer.model` (SentencePiece) or `tokenizer.json` (Hugging Face) into `folder`, atomically."""
        return write_file(folder / self.file_name, self.file_bytes)


class SentencePiece(Tokenizer):
    """A SentencePiece model (Kudo & Richardson 2018)."""

    file_name = "tokenizer.model"

    def __init__(self, model: bytes) -> None:
        self._processor = own = sentencepiece.SentencePieceProcessor(model_proto=model)
        named = (i for i in range(own.get_piece_size()) if own.is_control(i) or own.is_unknown(i))
        super().__init__(model, own.get_piece_size(), {own.id_to_piece(i): i for i in named})

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        blocks = [list(_blocks(text)) for text in texts]
        encoded = self._processor.encode([block for own in blocks for block in own], num_threads=1)
        ends = np.cumsum([0, *map(len, encoded)])
        ids = np.fromiter(itertools.chain.from_iterable(encoded), np.int32, ends[-1])
        borders = ends[np.cumsum([0, *map(len, blocks)])].tolist()
        return [ids[start:stop] for start, stop in itertools.pairwise(borders)]

    def encode_placed(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        pieces = self._processor.encode(text, return_type="proto").pieces
        # It counts bytes, of which the first of each character tells the character.
        first = [byte < 0x80 or byte >= 0xC0 for byte in text.encode("utf-8", errors="replace")]
        character = np.concatenate([[0], np.cumsum(first)]).astype(np.int32)
        places = character[np.array([(piece.begin, piece.end) for piece in pieces], np.int64).reshape(-1, 2)]
        return np.array([piece.id for piece in pieces], np.int32), places

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(i) for i in ids])

    def id_of(self, token: str) -> int | None:
        found = self._processor.piece_to_id(token)
        return found if self._processor.id_to_piece(found) == token else None

    def piece(self, token: int) -> str:
        return self._processor.id_to_piece(token) if token < self.vocab else f"<{token}>"

    def begins_word(self) -> np.ndarray:
        return np.array([self._processor.id_to_piece(i).startswith(SPACE) for i in range(self.vocab)])


def _blocks(text: str) -> Iterator[str]:
    """Cut before a space that ends a word: no piece spans that place, so the ids are those of the whole text."""
    while len(text) > BLOCK:
        cut = re.search(r"(?<=[^ ]) ", text[BLOCK:])
        end = BLOCK + cut.start() if cut else len(text)
        end = end if end < 2 * BLOCK else BLOCK
        yield text[:end]
        text = text[end:]
    yield text


class HuggingFace(Tokenizer):
    """A tokenizer of the Hugging Face `tokenizers` library."""

    file_name = "tokenizer.json"

    def __init__(self, serialised: bytes) -> None:
        self._tokenizer = own = tokenizers.Tokenizer.from_str(serialised.decode())
        own.no_padding()
        own.no_truncation()
        vocab = max(own.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        special = {token.content: i for i, token in own.get_added_tokens_decoder().items() if token.special}
        super().__init__(serialised, vocab, special)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int32) for one in encoded]

    def encode_placed(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        one = self._tokenizer.encode(text, add_special_tokens=False)
        return np.array(one.ids, np.int32), np.array(one.offsets, np.int32).reshape(-1, 2)

    def beginning(self) -> np.ndarray:
        whole = self._tokenizer.encode("a", add_special_tokens=True)
        count = next((n for n, special in enumerate(whole.special_tokens_mask) if not special), 0)
        return np.array(whole.ids[:count], np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def piece(self, token: int) -> str:
        return self._tokenizer.id_to_token(token) or f"<{token}>"

    def begins_word(self) -> np.ndarray:
        pieces = self._tokenizer.get_vocab(with_added_tokens=True)
        continued = any(piece.startswith("##") for piece in pieces)
        found = np.zeros(self.vocab, bool)
        for piece, i in pieces.items():
            found[i] = not piece.startswith("##") if continued else piece.startswith(("Ġ", "Ċ", SPACE))
        return found


class Bytes(Tokenizer):
    """UTF-8 bytes, byte b as id b + 3 after pad 0, EOS 1 and unk 2 (Xue et al. 2022, §3.1)."""

    file_name = "tokenizer.json"
    first = 3
    reused = 100

    def __init__(self, described: bytes = b'{"model": "bytes"}') -> None:
        super().__init__(described, self.first + 256, {"<pad>": 0, "</s>": 1, "<unk>": 2})

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = (text.encode("utf-8", errors="replace") for text in texts)
        return [np.frombuffer(one, np.uint8).astype(np.int32) + self.first for one in encoded]

    def encode_placed(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        sizes = [len(character.encode("utf-8", errors="replace")) for character in text]
        starts = np.repeat(np.arange(len(text), dtype=np.int32), sizes)
        return self.encode(text), np.stack([starts, starts + 1], axis=1)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(int(i) - self.first for i in ids if i >= self.first).decode("utf-8", errors="replace")

    def id_of(self, token: str) -> int | None:
        return self.special.get(token)

    def piece(self, token: int) -> str:
        return repr(bytes([token - self.first])) if self.first <= token < self.vocab else f"<{token}>"

    def begins_word(self) -> np.ndarray:
        return np.arange(self.vocab) == self.first + ord(" ")

    def sentinels(self) -> tuple[int, ...]:
        """The last hundred byte ids, downwards: bytes that end no valid text so soon (Xue et al. 2022, §3.1)."""
        return tuple(range(self.vocab - 1, self.vocab - 1 - self.reused, -1))


def load(path: Path) -> Tokenizer:
    """The tokenizer of a file, or of a folder (a run) that holds `tokenizer.model` or `tokenizer.json`.

    Raises:
        UserError: no such file, or not a tokenizer.
    """
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise UserError(f"{path}: neither {' nor '.join(FILES)} is there")
        path = found[0]
    return from_file(TokenizerFile(path=str(path)))


def from_file(config: TokenizerFile) -> Tokenizer:
    """A SentencePiece `.model`, `tokenizer.json`, `vocab.json` with merges, or WordPiece `vocab.txt`."""
    path = Path(config.path)
    if not path.is_file():
        raise UserError(f"tokenizer.file.path: {path} is not there")
    try:
        if path.suffix == ".model":
            return SentencePiece(with_extra_ids(path.read_bytes(), config.extra_ids))
        if config.extra_ids:
            raise UserError("tokenizer.file.extra_ids: sentinels can be appended to a SentencePiece .model alone")
        if path.suffix == ".txt":
            return HuggingFace(_word_piece(path, lowercase=config.lowercase))
        described = json.loads(path.read_text(encoding="utf-8")).get("model")
        if described == "bytes":
            return Bytes()
        if isinstance(described, dict):  # "model" is a GPT-2 token too
            return HuggingFace(path.read_text(encoding="utf-8").encode())
        return HuggingFace(_byte_level(path, Path(config.merges) if config.merges else path.with_name("merges.txt")))
    except UserError:
        raise
    except Exception as error:  # the two libraries raise RuntimeError, ValueError and bare Exception alike
        raise UserError(f"{path}: not a tokenizer that can be read: {str(error).splitlines()[0]}") from None


def _byte_level(vocab: Path, merges: Path) -> bytes:
    """GPT-2's byte-level BPE from its two files (Radford et al. 2019, §2.2)."""
    if not merges.is_file():
        raise UserError(f"tokenizer.file.merges: {merges} is not there; a vocab.json needs its merges")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocab), str(merges)))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return _with_special(tokenizer, [*PAD, *EOS, *UNK])


def _word_piece(vocab: Path, *, lowercase: bool) -> bytes:
    """BERT's WordPiece from its vocabulary (Devlin et al. 2019, §3)."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece.from_file(str(vocab), unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    return _with_special(tokenizer, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])


def _with_special(tokenizer: tokenizers.Tokenizer, names: Sequence[str]) -> bytes:
    tokenizer.add_special_tokens([name for name in names if tokenizer.token_to_id(name) is not None])
    return tokenizer.to_str().encode()


def with_extra_ids(model: bytes, count: int, controls: Sequence[str] = ()) -> bytes:
    """Control pieces at the end, T5's <extra_id_0> last of all: text can never spell one (Raffel et al. 2020)."""
    if not count and not controls:
        return model
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    for name in (*controls, *(f"<extra_id_{number}>" for number in reversed(range(count)))):
        proto.pieces.add(piece=name, score=0.0, type=proto.SentencePiece.CONTROL)
    return proto.SerializeToString()
