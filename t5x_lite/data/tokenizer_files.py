"""Load tokenizers from the files of several libraries, and append sentinels to a SentencePiece model."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers
from sentencepiece import sentencepiece_model_pb2

from t5x_lite.data.config import TokenizerFile
from t5x_lite.data.tokenizer import EOS_NAMES, PAD_NAMES, UNK_NAMES, Bytes, HuggingFace, SentencePiece, Tokenizer
from t5x_lite.errors import UserError
from t5x_lite.files import read_json_object

FILES = ("tokenizer.model", "tokenizer.json")
"""Names that a run's tokenizer may have; the first that exists is loaded."""


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

    Raises:
        UserError: there is no such file, or it is not a tokenizer.
    """
    path = Path(config.path)
    if not path.is_file():
        raise UserError(f"tokenizer.file.path: {path} is not there")
    if config.extra_ids and path.suffix != ".model":
        raise UserError("tokenizer.file.extra_ids: sentinels can be appended only to a SentencePiece .model")
    try:
        if path.suffix == ".model":
            return SentencePiece(with_extra_ids(path.read_bytes(), config.extra_ids))
        if path.suffix == ".txt":
            return HuggingFace(_build_word_piece(path, lowercase=config.lowercase))
        return _from_json(path, config.merges)
    except UserError:
        raise
    except Exception as error:  # the two libraries raise RuntimeError, ValueError and Exception itself
        raise UserError(f"{path}: not a tokenizer that can be read: {str(error).splitlines()[0]}") from None


def _from_json(path: Path, merges: str) -> Tokenizer:
    model = read_json_object(path).get("model")
    if model == "bytes":
        return Bytes()
    if isinstance(model, dict):  # in GPT-2's vocab.json "model" is a token, with a number
        return HuggingFace(path.read_bytes())
    merges_file = path.with_name("merges.txt")
    if merges:
        merges_file = Path(merges)
    return HuggingFace(_build_byte_level(path, merges_file))


def _build_byte_level(vocab: Path, merges: Path) -> bytes:
    """Build GPT-2's byte-level BPE from its two files (Radford et al. 2019, §2.2)."""
    if not merges.is_file():
        raise UserError(f"tokenizer.file.merges: {merges} is not there; a vocab.json needs its merges")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocab), str(merges)))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return _serialise(tokenizer, special_names=[*PAD_NAMES, *EOS_NAMES, *UNK_NAMES])


def _build_word_piece(vocab: Path, *, lowercase: bool) -> bytes:
    """Build BERT's WordPiece from its vocabulary (Devlin et al. 2019, §3)."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece.from_file(str(vocab), unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    return _serialise(tokenizer, special_names=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])


def _serialise(tokenizer: tokenizers.Tokenizer, special_names: Sequence[str]) -> bytes:
    """Mark the special tokens that the vocabulary has, and return the content of a `tokenizer.json`."""
    present = [name for name in special_names if tokenizer.token_to_id(name) is not None]
    tokenizer.add_special_tokens(present)
    return tokenizer.to_str().encode()


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
