"""Load tokenizers from the files of several libraries, and append sentinels to a SentencePiece model."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2

from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.huggingface_tokenizer import HuggingFace
from t5x_lite.data.tokenizer import SETTINGS_FILE, SentencePiece, Settings, Tokenizer
from t5x_lite.data.tokenizer_config import TokenizerFile
from t5x_lite.data.tokenizer_settings import CHAT_TEMPLATE_FILE, apply_settings, read_tokenizer_settings
from t5x_lite.data.vocabulary_files import read_byte_level, read_word_piece
from t5x_lite.errors import UserError, one_line
from t5x_lite.files import read_json_object
from t5x_lite.local_copies import local_file

FILES = ("tokenizer.model", "tokenizer.json")
"""Names that a run's tokenizer may have; the first that exists is loaded."""
SIBLING_FILES = ("merges.txt", SETTINGS_FILE, CHAT_TEMPLATE_FILE)
"""Files that a tokenizer's file may need in the same folder."""


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder, such as a run, has a tokenizer."""
    return any((folder / name).is_file() for name in FILES)


def load(path: Path) -> Tokenizer:
    """Load a tokenizer from its file, or from a folder (a run) with `tokenizer.model` or `tokenizer.json`.

    Raises:
        UserError: there is no such file, or it is not a tokenizer.
    """
    if not path.is_dir():
        return from_file(TokenizerFile(path=str(path)))
    for name in FILES:
        if (path / name).is_file():
            return from_file(TokenizerFile(path=str(path / name)))
    raise UserError(f"{path}: has neither {' nor '.join(FILES)}")


def from_file(config: TokenizerFile) -> Tokenizer:
    """Load a SentencePiece `.model`, a `tokenizer.json`, a `vocab.json` with merges, or a WordPiece `vocab.txt`.

    A `tokenizer_config.json` in the same folder names the special tokens, and how Transformers reads texts.

    Raises:
        UserError: there is no such file, or it is not a tokenizer.
    """
    path = local_file(config.path, siblings=SIBLING_FILES)
    if path.is_dir():
        raise UserError(f"tokenizer.file.path: {config.path} is a folder; name a file in it")
    if not path.is_file():
        raise UserError(f"tokenizer.file.path: {config.path} is not there")
    if config.extra_ids and path.suffix != ".model":
        raise UserError("tokenizer.file.extra_ids: sentinels can be appended only to a SentencePiece .model")
    settings = read_tokenizer_settings(path.parent)
    with unreadable_as_user_error(path):
        tokenizer = _read(path, config, settings)
        apply_settings(tokenizer, settings, {})
    return tokenizer


@contextlib.contextmanager
def unreadable_as_user_error(path: Path) -> Iterator[None]:
    """Turn an error of the libraries that read tokenizers into one that names the file or folder.

    Raises:
        UserError: the tokenizer cannot be read.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the two libraries raise RuntimeError, ValueError and Exception itself
        reason = one_line(error)
        raise UserError(f"{path}: not a tokenizer that can be read: {reason}") from None


def _read(path: Path, config: TokenizerFile, settings: Settings) -> Tokenizer:
    if path.suffix == ".model":
        return SentencePiece(with_extra_ids(path.read_bytes(), config.extra_ids))
    if path.suffix == ".txt":
        return read_word_piece(path, {**settings, "do_lower_case": config.lowercase})
    model = read_json_object(path).get("model")
    if model == "bytes":
        return Bytes()
    if isinstance(model, dict):  # in GPT-2's vocab.json "model" is a token, with a number
        return HuggingFace(path.read_bytes(), settings)
    if path.name == "tokenizer.json":
        raise UserError(f"{path}: is not the tokenizer.json of a tokenizer: it has no `model`")
    merges = Path(config.merges or path.with_name("merges.txt"))
    if not merges.is_file():
        raise UserError(f"tokenizer.file.merges: {merges} is not there; a vocab.json needs its merges")
    return read_byte_level(path, merges, settings)


def with_extra_ids(model: bytes, count: int, controls: Sequence[str] = ()) -> bytes:
    """Append control pieces to a SentencePiece model, and then T5's sentinels, <extra_id_0> last.

    Text cannot spell a control piece (Raffel et al. 2020).

    Args:
        model: content of a `.model` file.
        count: number of sentinels.
        controls: names of further control pieces.
    """
    if not count and not controls:
        return model
    sentinels = [f"<extra_id_{number}>" for number in reversed(range(count))]
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    for name in (*controls, *sentinels):
        proto.pieces.add(piece=name, score=0.0, type=proto.SentencePiece.CONTROL)
    return proto.SerializeToString()
