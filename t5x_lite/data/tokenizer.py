"""Text to token ids and back: SentencePiece, trained here or elsewhere, and Hugging Face `tokenizers` files."""

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from t5x_lite.config import BPE, Character, RunConfig, TokenizerFile, Unigram
from t5x_lite.config import Bytes as ByteLevel
from t5x_lite.data import sources
from t5x_lite.errors import UserError
from t5x_lite.objectives import Vocabulary

BLOCK = 2**16
"""Characters given to SentencePiece at a time: strings beyond about a megabyte take it more than linear time."""
SPACE = "\u2581"
"""SentencePiece's sign for a space."""
SENTENCE_CHARACTERS = 1000
"""SentencePiece's trainer leaves out sentences above 4192 bytes: a character has four at most."""
FILES = ("tokenizer.model", "tokenizer.json")
"""A run's tokenizer is in one of these."""
_SPECIAL = {
    "pad": ("<pad>", "[PAD]"),
    "eos": ("</s>", "<|endoftext|>", "[SEP]", "<|end_of_text|>", "<eos>"),
    "unk": ("<unk>", "[UNK]"),
}


class Tokenizer(ABC):
    """Ids are below `vocab`; `pad`, `eos` and `unk` are ids, or None where the vocabulary has no such token.

    `special` maps the tokens that text is not made of to their ids.
    """

    vocab: int
    pad: int | None
    eos: int | None
    unk: int | None
    special: dict[str, int]
    file_name: str
    file_bytes: bytes

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
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.file_name
        handle, temporary = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(self.file_bytes)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        return path

    def _find_special(self) -> None:
        for role, names in _SPECIAL.items():
            ids = (self.id_of(name) for name in names)
            setattr(self, role, next((i for i in ids if i is not None), None))


class SentencePiece(Tokenizer):
    """A SentencePiece model (Kudo & Richardson 2018)."""

    file_name = "tokenizer.model"

    def __init__(self, model: bytes) -> None:
        self.file_bytes = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab = self._processor.get_piece_size()
        named = (i for i in range(self.vocab) if self._processor.is_control(i) or self._processor.is_unknown(i))
        self.special = {self._processor.id_to_piece(i): i for i in named}
        self._find_special()

    def __reduce__(self) -> tuple[type["SentencePiece"], tuple[bytes]]:
        return SentencePiece, (self.file_bytes,)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        blocks = [list(_blocks(text)) for text in texts]
        encoded = iter(self._processor.encode([block for own in blocks for block in own], num_threads=1))
        return [np.array([i for _ in own for i in next(encoded)], dtype=np.int32) for own in blocks]

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

    def __init__(self, serialised: str) -> None:
        self.file_bytes = serialised.encode()
        self._tokenizer = tokenizers.Tokenizer.from_str(serialised)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocab = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        added = self._tokenizer.get_added_tokens_decoder()
        self.special = {token.content: i for i, token in added.items() if token.special}
        self._find_special()

    def __reduce__(self) -> tuple[type["HuggingFace"], tuple[str]]:
        return HuggingFace, (self.file_bytes.decode(),)

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
    file_bytes = b'{"model": "bytes"}'
    first = 3
    reused = 100

    def __init__(self) -> None:
        self.vocab = self.first + 256
        self.special = {"<pad>": 0, "</s>": 1, "<unk>": 2}
        self._find_special()

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
            return SentencePiece(_with_extra_ids(path.read_bytes(), config.extra_ids))
        if config.extra_ids:
            raise UserError("tokenizer.file.extra_ids: sentinels can be appended to a SentencePiece .model alone")
        if path.suffix == ".txt":
            return HuggingFace(_word_piece(path, lowercase=config.lowercase))
        described = json.loads(path.read_text(encoding="utf-8")).get("model")
        if described == "bytes":
            return Bytes()
        if isinstance(described, dict):  # "model" is a GPT-2 token too
            return HuggingFace(path.read_text(encoding="utf-8"))
        return HuggingFace(_byte_level(path, Path(config.merges) if config.merges else path.with_name("merges.txt")))
    except UserError:
        raise
    except Exception as error:  # the two libraries raise RuntimeError, ValueError and bare Exception alike
        raise UserError(f"{path}: not a tokenizer that can be read: {str(error).splitlines()[0]}") from None


def _byte_level(vocab: Path, merges: Path) -> str:
    """GPT-2's byte-level BPE from its two files (Radford et al. 2019, §2.2)."""
    if not merges.is_file():
        raise UserError(f"tokenizer.file.merges: {merges} is not there; a vocab.json needs its merges")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocab), str(merges)))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    known = [name for names in _SPECIAL.values() for name in names if tokenizer.token_to_id(name) is not None]
    tokenizer.add_special_tokens(known)
    return tokenizer.to_str()


def _word_piece(vocab: Path, *, lowercase: bool) -> str:
    """BERT's WordPiece from its vocabulary (Devlin et al. 2019, §3)."""
    model = tokenizers.models.WordPiece.from_file(str(vocab), unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    special = [
        name for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if tokenizer.token_to_id(name) is not None
    ]
    tokenizer.add_special_tokens(special)
    return tokenizer.to_str()


def _with_extra_ids(model: bytes, count: int, controls: Sequence[str] = ()) -> bytes:
    """Control pieces at the end, T5's <extra_id_0> last of all: text can never spell one (Raffel et al. 2020)."""
    if not count and not controls:
        return model
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    for name in (*controls, *(f"<extra_id_{number}>" for number in reversed(range(count)))):
        proto.pieces.add(piece=name, score=0.0, type=proto.SentencePiece.CONTROL)
    return proto.SerializeToString()


def train(config: Unigram | BPE | Character, texts: Iterable[str]) -> SentencePiece:
    """Train a SentencePiece model with T5's special ids: pad 0, eos 1, unk 2.

    Under `identity` the model gives every text back exactly, byte for byte where `byte_fallback` is on, but for U+2581,
    which is SentencePiece's own sign for a space.

    Raises:
        UserError: no text, or a vocabulary larger than the text supports (the largest possible is named).
    """
    if isinstance(config, Character):
        kind, pieces = "char", 2**20
        options: dict[str, Any] = {"hard_vocab_limit": False, "normalization_rule_name": "identity"}
        texts = _with_alphabet(texts)
    else:
        kind = "unigram" if isinstance(config, Unigram) else "bpe"
        pieces = config.vocab - config.extra_ids - len(config.controls)
        options = {"byte_fallback": config.byte_fallback, "normalization_rule_name": config.normalization}
    identity = options["normalization_rule_name"] == "identity"
    sentences = (cut for text in texts for cut in _sentences(text))
    first = next(sentences, None)
    if first is None:
        raise UserError("the corpus holds no text to train a tokenizer on")
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_chain(first, sentences),
            model_writer=written,
            model_type=kind,
            vocab_size=pieces,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            user_defined_symbols=list(config.symbols),
            character_coverage=1.0 if kind == "char" else 0.9995,
            remove_extra_whitespaces=not identity,
            add_dummy_prefix=not identity,
            allow_whitespace_only_pieces=identity,
            num_threads=os.cpu_count() or 1,
            minloglevel=2,
            **options,
        )
    except (RuntimeError, ValueError) as error:
        raise _explained(error, kind, config.extra_ids + len(config.controls)) from None
    return SentencePiece(_with_extra_ids(written.getvalue(), config.extra_ids, config.controls))


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _explained(error: Exception, kind: str, extra_ids: int) -> UserError:
    most = re.search(r"<= (\d+)", str(error))
    if most:
        return UserError(f"tokenizer.{kind}.vocab is more than this text supports: at most {int(most[1]) + extra_ids}")
    least = re.search(r"\d+ vs (\d+)", str(error))
    if least:
        return UserError(
            f"tokenizer.{kind}.vocab is less than the text's characters and the special pieces; "
            f"{int(least[1]) + extra_ids} is the smallest possible"
        )
    return UserError(f"tokenizer.{kind}: SentencePiece cannot be trained: {str(error).splitlines()[-1]}")


def _with_alphabet(texts: Iterable[str]) -> Iterator[str]:
    """The texts, and every character that they hold once more, so that cut sentences lose none."""
    alphabet: set[str] = set()
    for text in texts:
        alphabet.update(text)
        yield text[: 10 * SENTENCE_CHARACTERS]
    if alphabet:
        yield "".join(sorted(alphabet))


def _sentences(text: str) -> Iterator[str]:
    """Pieces that the trainer takes whole: it leaves out long sentences and those with a NUL."""
    for start in range(0, len(text), SENTENCE_CHARACTERS):
        yield text[start : start + SENTENCE_CHARACTERS].replace("\0", " ")


def obtain(config: RunConfig) -> Tokenizer:
    """The run's tokenizer: a file's, or one trained on its text and kept in the cache under a fingerprint of both."""
    if isinstance(config.tokenizer, TokenizerFile):
        return from_file(config.tokenizer)
    if isinstance(config.tokenizer, ByteLevel):
        return Bytes()
    pieces = [unit for source in config.data.sources for unit in sources.units(source)]
    key = hashlib.sha256("\n".join([repr(config.tokenizer), *(unit.identity for unit in pieces)]).encode())
    folder = Path(config.data.cache_dir) / f"tokenizer-{key.hexdigest()[:16]}"
    if (folder / SentencePiece.file_name).is_file():
        return load(folder)
    limit = np.inf if isinstance(config.tokenizer, Character) else config.tokenizer.sample_megabytes * 1e6
    print(f"tokenizer: training on {len(pieces)} pieces of text", file=sys.stderr, flush=True)
    tokenizer = train(config.tokenizer, _sample(pieces, limit))
    print(f"tokenizer: {tokenizer.vocab} pieces, in {tokenizer.save(folder)}", file=sys.stderr, flush=True)
    return tokenizer


def _sample(pieces: Sequence[sources.Unit], limit: float) -> Iterator[str]:
    """The beginning of every piece, an equal share of `limit` bytes for each."""
    for unit in pieces:
        left = limit / len(pieces)
        with contextlib.closing(sources.documents(unit)) as texts:  # type: ignore[type-var]
            for _, text in texts:
                yield text[: int(min(left, len(text)))].replace(sources.FIELD_BORDER, " ")
                left -= len(text.encode())
                if left <= 0:
                    break
