"""Configs of tokenizers. This module does not import JAX."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from t5x_lite.schema import Config, Int, Strings, setting

Normalization = Literal["identity", "nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf"]
RESERVED_PIECES = ("<pad>", "</s>", "<unk>")
"""Pieces that every SentencePiece model begins with."""
TAKEN_NAME = re.compile(r"|<pad>|</s>|<unk>|<extra_id_\d+>|<0x[0-9A-F]{2}>")
"""Names that are those of other pieces: the reserved ones, sentinels and bytes."""
SENTINEL_NAME = re.compile(r"<extra_id_\d+>")
"""Names of T5's sentinels, which `extra_ids` adds."""


def name_problems(controls: Sequence[str], symbols: Sequence[str] = ()) -> Iterator[str]:
    """Yield what is wrong with the names of special tokens of a SentencePiece model."""
    names = (*controls, *symbols)
    yield from _repeated_names(names, "controls and symbols")
    reserved = [repr(name) for name in dict.fromkeys(names) if TAKEN_NAME.fullmatch(name)]
    if reserved:
        yield f"{', '.join(reserved)}: no name of a control or symbol, for every such tokenizer has it; remove it"


def control_problems(controls: Sequence[str], extra_ids: int) -> Iterator[str]:
    """Yield what is wrong with the special tokens of a vocabulary that `tokenizers` trains."""
    yield from _repeated_names(controls, "controls")
    sentinels = [name for name in controls if SENTINEL_NAME.fullmatch(name)]
    if extra_ids > 0 and sentinels:
        yield f"{', '.join(sentinels)}: extra_ids adds the sentinels; remove them from controls, or set extra_ids to 0"


def _repeated_names(names: Sequence[str], where: str) -> Iterator[str]:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        yield f"{', '.join(repeated)}: named twice among {where}; remove one"


class _SentencePieceConfig(Config):
    vocab: Int = setting(
        8192, "size of the vocabulary, with special tokens and extra_ids", unit="tokens", ge=8, le=2**24
    )
    normalization: Normalization = setting("identity", "SentencePiece normalisation rule; T5 used nmt_nfkc")
    byte_fallback: bool = setting(True, "encode characters outside the vocabulary as bytes, never as <unk>")
    symbols: Strings = setting((), "user symbols: strings that are always one token")
    controls: Strings = setting((), "special tokens that text cannot spell, such as [CLS] [SEP] [MASK]")
    extra_ids: Int = setting(0, "number of T5's sentinels <extra_id_0> …, at the end of the vocabulary", ge=0)
    sample_megabytes: float = setting(32.0, "amount of text that the vocabulary is trained on", unit="MB", gt=0)

    def problems(self) -> Iterator[str]:
        yield from name_problems(self.controls, self.symbols)
        special_tokens = len(RESERVED_PIECES) + len(self.controls) + len(self.symbols) + self.extra_ids
        if special_tokens >= self.vocab:
            yield f"vocab {self.vocab} has no room beside {special_tokens} special tokens and extra_ids; raise it"


class Unigram(_SentencePieceConfig):
    """SentencePiece unigram language model (Kudo 2018)."""


class BPE(_SentencePieceConfig):
    """SentencePiece byte-pair encoding (Sennrich et al. 2016)."""


class Character(Config):
    """A vocabulary of the characters of the text: every character is a token."""

    symbols: Strings = setting((), "user symbols: strings that are always one token")
    controls: Strings = setting((), "special tokens that text cannot spell, such as [CLS] [SEP] [MASK]")
    extra_ids: Int = setting(0, "number of T5's sentinels, at the end of the vocabulary", ge=0)

    def problems(self) -> Iterator[str]:
        yield from name_problems(self.controls, self.symbols)


class ByteBPE(Config):
    """Byte-level byte-pair encoding of GPT-2 (Radford et al. 2019, §2.2), trained by `tokenizers`. It decodes every
    text exactly as it was.
    """

    vocab: Int = setting(8192, "size of the vocabulary, with special tokens and extra_ids", unit="tokens", ge=8)
    controls: Strings = setting(
        ("<|endoftext|>",),
        "special tokens in the order of their ids, from 0; text cannot spell them; RoBERTa's are <s> <pad> </s> <unk> "
        "<mask>",
    )
    split: Literal["gpt2", "gpt4"] = setting(
        "gpt2",
        "regular expression that divides text into words before the merges: GPT-2's, or GPT-4's, which Llama 3 and "
        "OLMo 2 have",
    )
    extra_ids: Int = setting(0, "number of T5's sentinels <extra_id_0> …, at the end of the vocabulary", ge=0)
    sample_megabytes: float = setting(32.0, "amount of text that the vocabulary is trained on", unit="MB", gt=0)

    def problems(self) -> Iterator[str]:
        yield from control_problems(self.controls, self.extra_ids)


class WordPiece(Config):
    """WordPiece of BERT (Devlin et al. 2019, §3), trained by `tokenizers`: pieces inside a word begin with ##."""

    vocab: Int = setting(8192, "size of the vocabulary, with special tokens and extra_ids", unit="tokens", ge=8)
    lowercase: bool = setting(True, "lower-case and strip accents first, as BERT uncased does")
    controls: Strings = setting(
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        "special tokens in the order of their ids, from 0; text cannot spell them; [UNK] must be among them",
    )
    alphabet: Int = setting(
        1000, "number of characters in the vocabulary, the most frequent ones; a word with another is [UNK]", ge=1
    )
    extra_ids: Int = setting(0, "number of T5's sentinels <extra_id_0> …, at the end of the vocabulary", ge=0)
    sample_megabytes: float = setting(32.0, "amount of text that the vocabulary is trained on", unit="MB", gt=0)

    def problems(self) -> Iterator[str]:
        yield from control_problems(self.controls, self.extra_ids)
        if "[UNK]" not in self.controls:
            yield f"controls must hold [UNK], which words with unknown characters become; found {list(self.controls)}"


class Words(Config):
    """Words as tokens: the most frequent ones of the text, or the first ones of a file. Others are <unk>."""

    vocab: Int = setting(8192, "size of the vocabulary, with special tokens", unit="tokens", ge=8)
    file: str = setting(
        "", "text file of the words, one a line, the most frequent first; empty counts those of the text"
    )
    lowercase: bool = setting(False, "lower-case the text first")
    split: Literal["spaces", "punctuation"] = setting(
        "spaces", "words end at white space, as in text that is tokenised already, or at each punctuation mark too"
    )
    controls: Strings = setting(
        ("<unk>", "<s>", "</s>"), "special tokens, which text cannot spell; <unk> must be among them and has the id 0"
    )
    sample_megabytes: float = setting(32.0, "amount of text whose words are counted", unit="MB", gt=0)

    def problems(self) -> Iterator[str]:
        if "<unk>" not in self.controls:
            yield f"controls must hold <unk>, which other words become; found {list(self.controls)}"


class Bytes(Config):
    """UTF-8 bytes as tokens, after pad, EOS and unk.

    The last hundred byte ids serve as sentinels too (ByT5: Xue et al. 2022).
    """


class TokenizerFile(Config):
    """An existing tokenizer: SentencePiece `.model`, Hugging Face `tokenizer.json`, `vocab.json` or `vocab.txt`."""

    path: str = setting(..., "the file; vocab.json needs merges.txt in the same folder")
    merges: str = setting("", "merges of a byte-level BPE, if they are not in the same folder as merges.txt")
    lowercase: bool = setting(
        True, "for a WordPiece vocab.txt: lower-case and strip accents first, as BERT uncased does"
    )
    extra_ids: Int = setting(0, "number of T5's sentinels to append to a SentencePiece model", ge=0)


TrainedTokenizer: TypeAlias = Unigram | BPE | ByteBPE | WordPiece | Words | Character
TokenizerConfig: TypeAlias = TrainedTokenizer | Bytes | TokenizerFile

TOKENIZERS: dict[str, type[Config]] = {
    "unigram": Unigram,
    "bpe": BPE,
    "byte_bpe": ByteBPE,
    "wordpiece": WordPiece,
    "words": Words,
    "character": Character,
    "bytes": Bytes,
    "file": TokenizerFile,
}
