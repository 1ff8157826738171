"""Convert a SentencePiece model to a tokenizer of the `tokenizers` library that returns the same ids.

`tokenizers` has the same models and normalisations under other names. Comments below explain how differences between
the two libraries are bridged. Two remain: of several divisions of a text into unigrams that have the same score, as in
long rows of hyphens, each library chooses one by rounding; and accents in an unusual order are put in the usual one.
"""

from collections.abc import Sequence

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from t5x_lite.errors import UserError

SPACE = "\u2581"
"""SentencePiece's symbol for a space."""
UNREACHABLE = -1e6
"""Score of the pieces of special tokens and of bytes, which text must not become by their names."""
NAME_OF_BYTE = tokenizers.Regex("<(?=0x[0-9A-F]{2}>)")
"""Place to cut a text that spells the piece of a byte, <0x0A>, so that it does not become this piece."""
USER_SYMBOL_DISCOUNT = 0.1
"""SentencePiece scores a user symbol by its bytes times the best score, less this."""


def to_tokenizers(model: bytes, first_normalizers: Sequence[normalizers.Normalizer] = ()) -> tokenizers.Tokenizer:
    """Return the tokenizer. Its special tokens can be spelled in a text, as Transformers' users expect.

    Args:
        model: content of a `.model` file.
        first_normalizers: normalisation before that of the model, such as ALBERT's.

    Raises:
        UserError: `tokenizers` has nothing that returns the same ids.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]
    tokenizer = tokenizers.Tokenizer(_build_model(proto))
    is_unigram = proto.trainer_spec.model_type == proto.trainer_spec.UNIGRAM
    tokenizer.normalizer = normalizers.Sequence([*first_normalizers, *_normalizers(proto.normalizer_spec)])
    if is_unigram and proto.trainer_spec.byte_fallback:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(NAME_OF_BYTE, "merged_with_previous")
    tokenizer.decoder = _decoder(proto)
    special: list[AddedToken] = []
    symbols: list[AddedToken] = []
    for piece in proto.pieces:
        if piece.type in (piece.CONTROL, piece.UNKNOWN):
            special.append(AddedToken(piece.piece, normalized=False, special=True))
        elif piece.type == piece.USER_DEFINED and not is_unigram:
            symbols.append(AddedToken(piece.piece, normalized=False, special=False))
    if symbols and proto.normalizer_spec.add_dummy_prefix:
        raise UserError("`tokenizers` cannot express user symbols of a BPE that puts a space before every text")
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(symbols)
    return tokenizer


def _build_model(proto: sentencepiece_model_pb2.ModelProto) -> models.Model:  # type: ignore[name-defined]
    trainer = proto.trainer_spec
    pieces = [piece.piece for piece in proto.pieces]
    unknown = next(number for number, piece in enumerate(proto.pieces) if piece.type == piece.UNKNOWN)
    if trainer.model_type == trainer.UNIGRAM:
        scores = _unigram_scores(proto)
        return models.Unigram(list(zip(pieces, scores, strict=True)), unknown, trainer.byte_fallback)
    merges: list[tuple[str, str]] = []
    if trainer.model_type == trainer.BPE:
        merges = _merges(proto)
    return models.BPE(
        {piece: number for number, piece in enumerate(pieces)},
        merges,
        unk_token=pieces[unknown],
        fuse_unk=True,
        byte_fallback=trainer.byte_fallback,
    )


def _unigram_scores(proto: sentencepiece_model_pb2.ModelProto) -> list[float]:  # type: ignore[name-defined]
    """Return the score of each piece. `tokenizers` has no types of pieces, so that scores must do what types do."""
    best = max((piece.score for piece in proto.pieces if piece.type == piece.NORMAL), default=0.0)
    scores = []
    for piece in proto.pieces:
        if piece.type == piece.NORMAL:
            scores.append(piece.score)
        elif piece.type == piece.USER_DEFINED:
            scores.append(len(piece.piece.encode()) * best - USER_SYMBOL_DISCOUNT)
        else:
            scores.append(UNREACHABLE)
    return scores


def _merges(proto: sentencepiece_model_pb2.ModelProto) -> list[tuple[str, str]]:  # type: ignore[name-defined]
    """Return the merges of a BPE: every division of a piece into two others, pieces of higher scores first."""
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    merges = []
    for piece in sorted(scores, key=scores.__getitem__, reverse=True):
        for border in range(1, len(piece)):
            left = piece[:border]
            right = piece[border:]
            if left in scores and right in scores:
                merges.append((left, right))
    return merges


def _normalizers(spec: sentencepiece_model_pb2.NormalizerSpec) -> list[normalizers.Normalizer]:  # type: ignore[name-defined]
    steps: list[normalizers.Normalizer] = []
    # `tokenizers` applies a map to whole graphemes: it would compose no longer ones (Korean jamo, kana with a voicing
    # mark, letters with two accents), and lose the accent of a capital that it lowers.
    if "nfkc" in spec.name:
        steps.append(normalizers.NFC())
    if spec.name.endswith("_cf"):
        steps.append(normalizers.Lowercase())
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(tokenizers.Regex(r"\A +"), ""))
        steps.append(normalizers.Replace(tokenizers.Regex(" {2,}"), " "))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(tokenizers.Regex(SPACE + r"+\z"), ""))
    return steps


def _decoder(proto: sentencepiece_model_pb2.ModelProto) -> decoders.Decoder:  # type: ignore[name-defined]
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
