"""Beam search: equal to an exhaustive search, and to greedy decoding where both must agree."""

import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t5x_lite
from t5x_lite.api import Model
from t5x_lite.cli import main
from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.decode.beam import Beam
from t5x_lite.decode.generate import Generator, decoding_settings
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import model_spec

VOCAB = 4
EOS = 3
LENGTH = 4
ALL = 40
"""More hypotheses than there are before the last token (36), so that none of the best 40 is lost."""
PROMPT = np.array([0, 1, 2], np.int32)

CONFIG = ModelConfig.model_validate({"layers": 1, "embed": 8, "heads": 2, "vocab": VOCAB, "positions": "rotary"})
SPEC = model_spec(CONFIG)

LogProbs = dict[tuple[int, ...], float]


@pytest.fixture(scope="module")
def generator() -> Generator:
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), SPEC.shapes)
    tokenizer = Bytes()
    tokenizer.eos = EOS
    return Generator(CONFIG, SPEC, params, tokenizer)


@pytest.fixture(scope="module")
def all_log_probs(generator: Generator) -> LogProbs:
    """Return the log-probability of every continuation that EOS ends or that has the full length, without a cache."""
    rows = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)))
    module = SPEC.model(generator.params)
    inputs = np.concatenate([np.repeat(PROMPT[None], len(rows), 0), rows[:, :-1]], axis=1)
    log_probs = np.asarray(jax.nn.log_softmax(module.logits(module(inputs))))[:, len(PROMPT) - 1 :]
    token_log_probs = np.take_along_axis(log_probs, rows[..., None], axis=-1)[..., 0]
    totals = {}
    for row, values in zip(rows.tolist(), token_log_probs, strict=True):
        length = row.index(EOS) + 1 if EOS in row else LENGTH
        totals[tuple(row[:length])] = float(values[:length].sum())
    return totals


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_the_search_finds_what_gnmts_formula_ranks_first(
    alpha: float, generator: Generator, all_log_probs: LogProbs
) -> None:
    """score = log P / ((5 + |Y|) / 6)^alpha (Wu et al. 2016, eq. 14) of all 121 continuations."""
    scores = {row: log_prob / ((5 + len(row)) / 6) ** alpha for row, log_prob in all_log_probs.items()}
    assert len(scores) == 1 + 3 + 9 + 27 * 4
    expected = sorted(scores, key=lambda row: -scores[row])[:ALL]
    tokens, beam_scores = generator.search_beams([PROMPT], Beam(LENGTH, beams=ALL, length_penalty=alpha))
    padded = [row + (0,) * (LENGTH - len(row)) for row in expected]
    assert [tuple(row) for row in tokens[0].tolist()] == padded
    np.testing.assert_allclose(beam_scores[0], [scores[row] for row in expected], atol=1e-5)
    if alpha:  # the penalty changes the order
        assert expected != sorted(all_log_probs, key=lambda row: -all_log_probs[row])[:ALL]


def test_a_few_beams_score_their_hypotheses_exactly_and_no_better_than_the_best(
    generator: Generator, all_log_probs: LogProbs
) -> None:
    tokens, scores = generator.search_beams([PROMPT], Beam(LENGTH, beams=2, length_penalty=0))
    for row, score in zip(tokens[0].tolist(), scores[0], strict=True):
        hypothesis = tuple(row[: row.index(EOS) + 1] if EOS in row else row)
        assert score == pytest.approx(all_log_probs[hypothesis], abs=1e-5)
    assert scores[0, 0] <= max(all_log_probs.values()) + 1e-5


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Model:
    return t5x_lite.load(tiny_run)


def test_one_beam_is_greedy_and_stop_strings_cut_its_text(model: Model) -> None:
    prompts = ["the quick", "seven wizards mix black opal"]
    greedy = model.generate(prompts, tokens=8, temperature=0)
    assert model.generate(prompts, tokens=8, beams=1) == greedy
    stop = greedy[0][3:5]
    stopped = model.generate(prompts, tokens=8, beams=1, stop=[stop])
    assert stopped == [text.partition(stop)[0] for text in greedy]


def test_a_setting_of_the_other_kind_of_decoding_is_refused_by_name() -> None:
    assert decoding_settings(tokens=3, length_penalty=1.0) == Beam(3, length_penalty=1.0)
    for settings, message in (
        ({"beams": 2, "temperature": 0.5}, "temperature is not a setting of beam search; those are tokens, stop"),
        ({"temprature": 1}, "temprature is not a setting of generation"),
        ({"beams": 0}, "beams must be at least 1"),
        ({"length_penalty": -1}, "length_penalty not negative"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number above 0"),
        ({"repetition_penalty": math.nan}, "repetition_penalty must be a number above 0"),
        ({"temperature": math.nan}, "temperature must be a number from 0 on"),
        ({"min_p": 1.5}, "min_p must be from 0 to 1"),
        ({"stop": "ab"}, r"stop is a list of texts; write \['ab'\]"),
    ):
        with pytest.raises(UserError, match=message):
            decoding_settings(**settings)


def test_the_command_searches_with_beams(tiny_run: Path, model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", str(tiny_run), "--prompt", "the quick", "--tokens", "8", "--beams", "2"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"the quick{model.generate('the quick', tokens=8, beams=2)[0]}\n"
    assert main([*command, "--top-k", "3"]) == 2
    assert "top_k is not a setting of beam search" in capsys.readouterr().err
