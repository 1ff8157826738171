"""Pseudo-log-likelihood: models of Transformers in a loop over hidden tokens, and a count by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import t5x_lite
from t5x_lite import config as configuration
from t5x_lite.errors import UserError
from t5x_lite.evaluate.masked_tokens import InfilledTokens, MaskedTokens
from t5x_lite.objectives import UL2
from t5x_lite.objectives.span_corruption import corrupt
from t5x_lite.objectives.special_tokens import SpecialTokensTemplate
from tests.objectives.vocabulary import vocabulary

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

import tokenizers  # noqa: E402
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

from t5x_lite.convert.huggingface import import_hf  # noqa: E402

TEXT = "the quick brown fox jumps over a lazy dog, while seven wizards mix black opal quartz in vain."
CONTEXT = "the quick brown fox"
CONTINUATION = " jumps, over wizards"
SENTENCES = ("fox", "the lazy wizards vain in quartz.", "seven dogs mix opals, brown black")
POSITIONS = 40
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
}
SPECIAL = {
    "BERT": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "RoBERTa": ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"],
    "ELECTRA's generator": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "T5": ["[PAD]", "</s>", "[UNK]", "<extra_id_0>", "<extra_id_1>"],
}
"""The first ids of the vocabulary: the padding is 1 in RoBERTa and 0 in the others."""

FAMILIES: dict[str, Callable[[int], Any]] = {
    "BERT": lambda vocab: transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=vocab, **SIZES)),
    "RoBERTa": lambda vocab: transformers.RobertaForMaskedLM(
        transformers.RobertaConfig(vocab_size=vocab, type_vocab_size=1, **SIZES)
    ),
    "ELECTRA's generator": lambda vocab: transformers.ElectraForMaskedLM(
        transformers.ElectraConfig(vocab_size=vocab, embedding_size=16, **SIZES)
    ),
    "T5": lambda vocab: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=vocab,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=3,
            n_positions=POSITIONS,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    ),
}


def train_word_piece(special: list[str], template: str) -> Any:
    """Train a WordPiece vocabulary so small that words are several tokens."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    names = [name for name in special if name in template]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(name, special.index(name)) for name in names]
    )
    return tokenizer


SLOW = {"RoBERTa", "ELECTRA's generator"}


def import_random_model(family: str, folder: Path) -> tuple[Any, tokenizers.Tokenizer, Path]:
    """Return a model of Transformers with random weights, its tokenizer, and the run that it was imported to."""
    template = "$A </s>" if family == "T5" else "[CLS] $A [SEP]"
    tokenizer = train_word_piece(SPECIAL[family], template)
    torch.manual_seed(3)
    hf_model = FAMILIES[family](tokenizer.get_vocab_size()).eval()
    with torch.no_grad():
        for parameter in hf_model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    hf_model.save_pretrained(folder / "hf")
    tokenizer.save(str(folder / "hf/tokenizer.json"))
    import_hf(folder / "hf", folder / "run")
    return hf_model, tokenizer, folder / "run"


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in FAMILIES]
)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Return a model of Transformers with random weights, and the run directory that it was imported to."""
    hf_model, _, run = import_random_model(request.param, tmp_path_factory.mktemp("both"))
    return hf_model, run


def brute_force(hf_model: Any, tokenizer: Any, context: str, text: str, *, by_word: bool) -> float:
    """Return the sum over the tokens of a text of the log-probability of each, one row and one token at a time."""
    encoding = tokenizer.encode(f"{context}{text}", add_special_tokens=False)
    first = len(tokenizer.encode(context, add_special_tokens=False).ids)
    ids = encoding.ids
    total = 0.0
    for position in range(first, len(ids)):
        hidden = [position]
        if by_word:  # the words are those of BERT's tokenizer itself
            word = encoding.word_ids[position]
            hidden = [place for place in range(position, len(ids)) if encoding.word_ids[place] == word]
        with torch.no_grad():
            if hf_model.config.is_encoder_decoder:
                sentinel = tokenizer.token_to_id("<extra_id_0>")
                end = tokenizer.token_to_id("</s>")
                row = [*ids[:position], sentinel, *ids[hidden[-1] + 1 :], end]
                decoder_row = torch.tensor([[0, sentinel]])
                logits = hf_model(torch.tensor([row]), decoder_input_ids=decoder_row).logits[0, -1]
            else:
                row = [tokenizer.token_to_id("[CLS]"), *ids, tokenizer.token_to_id("[SEP]")]
                for place in hidden:
                    row[place + 1] = tokenizer.token_to_id("[MASK]")
                logits = hf_model(torch.tensor([row])).logits[0, position + 1]
        total += float(torch.log_softmax(logits.double(), -1)[ids[position]])
    return total


@pytest.mark.parametrize("kind", ["pseudo_word", pytest.param("pseudo", marks=pytest.mark.slow)])
def test_scores_equal_a_loop_over_hidden_tokens_in_transformers(both: tuple[Any, Path], kind: str) -> None:
    hf_model, run = both
    model = t5x_lite.load(run, overrides=[f"eval.likelihood={kind}", "eval.batch_size=8"])
    tokenizer = tokenizers.Tokenizer.from_str(model.tokenizer.file_bytes.decode())
    is_by_word = kind == "pseudo_word"
    expected = [brute_force(hf_model, tokenizer, "", text, by_word=is_by_word) for text in SENTENCES]
    assert model.score(SENTENCES) == pytest.approx(expected, abs=2e-3)
    (after_context,) = model.score([CONTINUATION], [CONTEXT])
    assert after_context == pytest.approx(
        brute_force(hf_model, tokenizer, CONTEXT, CONTINUATION, by_word=is_by_word), abs=2e-3
    )


@pytest.mark.slow
def test_hiding_the_rest_of_a_word_changes_the_score(both: tuple[Any, Path]) -> None:
    totals = []
    for kind in ("pseudo", "pseudo_word"):
        totals.append(sum(t5x_lite.load(both[1], overrides=[f"eval.likelihood={kind}"]).score(SENTENCES)))
    assert abs(totals[0] - totals[1]) > 0.02  # ten times the tolerance of the comparison with Transformers


def test_the_harness_scores_the_same_texts(both: tuple[Any, Path]) -> None:
    """Its loglikelihood equals `score`, with a context and without, and a long text is scored window by window."""
    pytest.importorskip("lm_eval", reason="needs the extra eval: pip install -e '.[eval]'")
    from lm_eval.api.instance import Instance

    from t5x_lite.evaluate.harness import build_harness_model

    model = t5x_lite.load(both[1], overrides=["eval.likelihood=pseudo"])
    harness_model = build_harness_model(model, None)
    pairs = [(CONTEXT, CONTINUATION), ("", SENTENCES[1])]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    scores = [score.log_likelihood for score in harness_model.loglikelihood(requests)]
    expected = model.score([text for _, text in pairs], [context for context, _ in pairs])
    assert scores == pytest.approx(expected, abs=1e-4)
    short, long = harness_model.loglikelihood_rolling(
        [Instance("loglikelihood_rolling", {}, (text,), 0) for text in (SENTENCES[2], f"{TEXT} {TEXT}")]
    )
    assert short == pytest.approx(model.score([SENTENCES[2]])[0], abs=1e-4)
    token_ids = model.tokenizer.encode(f"{TEXT} {TEXT}")
    special = {"[CLS]", "[SEP]"} if model.config.model.is_encoder_only else {"</s>"}
    room = model.window - len(special)
    nothing = token_ids[:0]
    windows = [(nothing, token_ids[start : start + room]) for start in range(0, len(token_ids), room)]
    assert len(windows) > 1
    assert long == pytest.approx(
        sum(score.log_likelihood for score in model.likelihood(windows, model.window)), abs=1e-3
    )


def test_a_window_without_room_for_a_text_is_refused(both: tuple[Any, Path]) -> None:
    """[CLS] and [SEP], or T5's </s>, fill a window of two tokens, or of one."""
    pytest.importorskip("lm_eval", reason="needs the extra eval: pip install -e '.[eval]'")
    from lm_eval.api.instance import Instance

    from t5x_lite.evaluate.harness import build_harness_model

    model = t5x_lite.load(both[1], overrides=["eval.likelihood=pseudo"])
    special = 2 if model.config.model.is_encoder_only else 1
    request = Instance("loglikelihood_rolling", {}, ("a text",), 0)
    with pytest.raises(UserError, match=f"window={special} leaves no room.*set window to {special + 1} or more"):
        build_harness_model(model, special).loglikelihood_rolling([request])


def test_long_inputs_lose_their_beginning_and_long_texts_are_refused(both: tuple[Any, Path]) -> None:
    model = t5x_lite.load(both[1], overrides=["eval.likelihood=pseudo"])
    scorer = model.likelihood
    inputs = model.tokenizer.encode(f"{TEXT} {TEXT}")
    targets = model.tokenizer.encode("lazy dog")
    special_tokens = scorer.tokens_read((inputs[:0], inputs[:0]))
    room = model.window - special_tokens - len(targets)
    cut, uncut = scorer([(inputs, targets), (inputs[-room:], targets)], model.window)
    assert cut == uncut
    assert scorer.truncated_inputs == 1
    with pytest.raises(UserError, match=f"more than the window of {model.window}"):
        scorer([(inputs[:0], inputs)], model.window)


def test_a_text_hides_one_token_at_a_time_by_hand() -> None:
    """`[CLS] 10 [MASK] 12 [SEP]`, and for T5 `10 <extra_id_0> 12 </s>`."""
    tokens = np.array([10, 11, 12], np.int32)
    masked = MaskedTokens(SpecialTokensTemplate((3,), 4), 5).features(tokens, slice(1, 2))
    assert masked["tokens"].tolist() == [3, 10, 5, 12, 4]
    assert masked["position"].tolist() == [2]
    infilled = InfilledTokens(SpecialTokensTemplate((), 1), 199)
    assert infilled.features(tokens, slice(1, 2))["tokens"].tolist() == [10, 199, 12, 1]
    assert infilled.features(tokens, slice(1, 3))["tokens"].tolist() == [10, 199, 1]


def test_t5_reads_what_span_corruption_trains() -> None:
    """The inputs are those of a text whose only span is the hidden token; its targets begin with sentinel and token."""
    tokens = np.array([10, 11, 12, 13], np.int32)
    words = vocabulary(sentinels=3)
    inputs, targets = corrupt(tokens, np.array([False, False, True, False]), words.sentinels, eos=1)
    features = InfilledTokens(SpecialTokensTemplate((), 1), words.sentinels[0]).features(tokens, slice(2, 3))
    assert features["tokens"].tolist() == inputs.tolist()
    assert targets[:2].tolist() == [words.sentinels[0], 12]


def test_ul2_fills_in_a_token_in_its_mode_for_short_spans() -> None:
    words = vocabulary(sentinels=3)
    assert UL2().infilling_prefix(words) == (words.named["[R]"],)  # Tay et al. 2023, §3.1.1: R has short spans


def test_likelihoods_that_a_model_cannot_have_are_refused(tiny_config: Path) -> None:
    encoder = ("model.family=encoder", "model.output_transform=true", "objective=masked")
    both_sides = ("model.family=encoder_decoder", "model.positions=relative")
    for overrides, message in (
        (("eval.likelihood=pseudo",), "eval.likelihood: pseudo is for models that read a text both ways"),
        ((*encoder, "eval.likelihood=conditional"), "conditional is not for a model of family encoder"),
        (
            (*both_sides, "objective=prefix", "eval.likelihood=pseudo"),
            "hides tokens, which objective prefix does not fill in",
        ),
    ):
        with pytest.raises(UserError, match=message):
            configuration.load(tiny_config, list(overrides))
    configuration.load(tiny_config, [*both_sides, "objective=span_corruption", "eval.likelihood=pseudo_word"])


def test_the_default_is_left_to_right_where_a_decoder_is(tiny_config: Path) -> None:
    assert configuration.load(tiny_config).scores_left_to_right
    encoder = ["model.family=encoder", "model.output_transform=true", "objective=masked"]
    assert not configuration.load(tiny_config, encoder).scores_left_to_right
