"""Read the vocabulary files of GPT-2 and BERT as tokenizers of the `tokenizers` library."""

from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from t5x_lite.data.huggingface_tokenizer import HuggingFace
from t5x_lite.data.tokenizer import EOS_NAMES, PAD_NAMES, Settings
from t5x_lite.data.tokenizer_settings import added_tokens, token_name
from t5x_lite.errors import UserError

GPT4_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Words of GPT-4's tokenizer, `cl100k_base` of tiktoken; also those of Llama 3 (Grattafiori et al. 2024, §3.2)."""
QWEN2_WORDS = GPT4_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
"""Words of Qwen's tokenizer: every digit is one (Bai et al. 2023, §2.2)."""
BERT_NAMES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_NAMES = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def byte_level_words(pattern: str = "", *, add_prefix_space: bool = False) -> pre_tokenizers.PreTokenizer:
    """Return what divides a text into words before a byte-level BPE: GPT-2's pattern, or another one."""
    if not pattern:
        return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    words = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def read_byte_level(vocab: Path, merges: Path, settings: Settings) -> HuggingFace:
    """Read a byte-level BPE from GPT-2's two files (Radford et al. 2019, §2.2).

    Args:
        vocab: the file of the tokens.
        merges: the file of the merges.
        settings: those of Transformers, which name the special tokens and what surrounds a text. Where they name none,
            these have their usual names.

    Raises:
        UserError: there are no merges.
    """
    if not merges.is_file():
        raise UserError(f"{merges}: no such file; a vocab.json needs its merges")
    tokenizer = tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    tokenizer.pre_tokenizer = byte_level_words(add_prefix_space=settings.get("add_prefix_space") is True)
    tokenizer.decoder = decoders.ByteLevel()
    class_name = str(settings.get("tokenizer_class")).removesuffix("Fast")
    if class_name == "Qwen2Tokenizer":
        tokenizer.pre_tokenizer = byte_level_words(QWEN2_WORDS)
        tokenizer.normalizer = normalizers.NFC()
    mark_special_tokens(tokenizer, list(added_tokens(settings)) or _usual_special_tokens(tokenizer))
    if class_name in {"BartTokenizer", "RobertaTokenizer"}:
        sep = token_name(settings.get("sep_token"))
        add_special_tokens(tokenizer, token_name(settings.get("cls_token")), sep, between=sep)
    elif class_name == "DebertaTokenizer":
        add_special_tokens(tokenizer, token_name(settings.get("cls_token")), token_name(settings.get("sep_token")))
    elif settings.get("add_bos_token") is True:
        add_special_tokens(tokenizer, token_name(settings.get("bos_token")), None)
    return HuggingFace(tokenizer.to_str().encode(), settings)


def read_word_piece(vocab: Path, settings: Settings) -> HuggingFace:
    """Read BERT's WordPiece from its vocabulary (Devlin et al. 2019, §3).

    Args:
        vocab: the file of the tokens.
        settings: as for `read_byte_level`; they also say how texts are normalised.
    """
    tokenizer = tokenizers.Tokenizer(models.WordPiece.from_file(str(vocab), unk_token="[UNK]"))
    strip_accents = settings.get("strip_accents")
    tokenizer.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=settings.get("tokenize_chinese_chars") is not False,
        strip_accents=strip_accents if isinstance(strip_accents, bool) else None,
        lowercase=settings.get("do_lower_case") is not False,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    mark_special_tokens(tokenizer, list(added_tokens(settings)) or _usual_special_tokens(tokenizer))
    add_special_tokens(tokenizer, token_name(settings.get("cls_token")), token_name(settings.get("sep_token")))
    return HuggingFace(tokenizer.to_str().encode(), settings)


def _usual_special_tokens(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Return the special tokens that a vocabulary has under their usual names, where no settings tell them.

    `<unk>` is special in RoBERTa's vocabulary, which a mask token reveals; in OPT's it is text like any other.
    """
    names: Iterable[str] = (*PAD_NAMES, *EOS_NAMES)
    if isinstance(tokenizer.model, models.WordPiece):
        names = BERT_NAMES
    elif tokenizer.token_to_id("<mask>") is not None:
        names = ROBERTA_NAMES
    return [name for name in names if tokenizer.token_to_id(name) is not None]


def mark_special_tokens(tokenizer: tokenizers.Tokenizer, special: Iterable[str | AddedToken]) -> None:
    """Mark the special tokens, and append those that the vocabulary lacks."""
    for token in special:
        if isinstance(token, AddedToken) and not token.special:
            tokenizer.add_tokens([token])
        else:
            tokenizer.add_special_tokens([token])


def add_special_tokens(
    tokenizer: tokenizers.Tokenizer,
    first: str | None,
    last: str | None,
    between: str | None = None,
    end: str | None = None,
) -> None:
    """Set the special tokens around a text, and around a pair of texts, as `processors.TemplateProcessing`.

    Args:
        tokenizer: is changed.
        first: token before the first text; without `last`, before each text.
        last: token after each text.
        between: token after the first text of a pair, in addition to `last`. Without it the second text has the token
            type 1, as in BERT.
        end: token after everything, of the token type 2, as in XLNet.
    """
    text = ["$A:0"]
    if first:
        text.insert(0, f"{first}:0")
    if last:
        text.append(f"{last}:0")
    second = ["$B:1"]
    if between:
        second = [f"{between}:0", "$B:0", f"{last}:0"]
    elif last:
        second = ["$B:1", f"{last}:1"]
    elif first:
        second = [f"{first}:1", "$B:1"]
    after = [f"{end}:2"] if end else []
    names = {name for name in (first, last, between, end) if name}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*text, *after],
        pair=[*text, *second, *after],
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in sorted(names)],
    )
