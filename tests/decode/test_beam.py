"""Beam search: equal to trying everything out, and the same text as greedy where both must agree."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t5x_lite
from t5x_lite.api import Model
from t5x_lite.cli import main
from t5x_lite.decode.beam import Beam
from t5x_lite.decode.generate import Generator, decoding_settings
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.transformer import model_spec

VOCAB, EOS, LENGTH = 4, 3, 4
ALL = 40
"""More hypotheses than there are at the last token but one (36), so that nothing of the best 40 is lost."""
PROMPT = np.array([0, 1, 2], np.int32)


CONFIG = ModelConfig.model_validate({"layers": 1, "embed": 8, "heads": 2, "vocab": VOCAB, "positions": "rotary"})
PLAN = model_spec(CONFIG)


@pytest.fixture(scope="module")
def generator() -> Generator:
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), PLAN.shapes)
    tokenizer: Any = SimpleNamespace(eos=EOS)
    return Generator(CONFIG, PLAN, params, tokenizer)


@pytest.fixture(scope="module")
def everything(generator: Generator) -> dict[tuple[int, ...], float]:
    """Every continuation that EOS ends, or that is as long as it may be, with its log-probability (one pass each)."""
    rows = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)))
    model = PLAN.model(generator.params)
    inputs = np.concatenate([np.repeat(PROMPT[None], len(rows), 0), rows[:, :-1]], axis=1)
    log_p = np.asarray(jax.nn.log_softmax(model.logits(model(inputs))))[:, len(PROMPT) - 1 :]
    chosen = np.take_along_axis(log_p, rows[..., None], axis=-1)[..., 0]
    found = {}
    for row, values in zip(rows.tolist(), chosen, strict=True):
        length = row.index(EOS) + 1 if EOS in row else LENGTH
        found[tuple(row[:length])] = float(values[:length].sum())
    return found


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_the_search_finds_what_gnmts_formula_ranks_first(
    alpha: float, generator: Generator, everything: dict[tuple[int, ...], float]
) -> None:
    """score = log P / ((5 + |Y|) / 6)^alpha (Wu et al. 2016, eq. 14) of all 121 continuations."""
    scores = {row: log_p / ((5 + len(row)) / 6) ** alpha for row, log_p in everything.items()}
    assert len(scores) == 1 + 3 + 9 + 27 * 4
    expected = sorted(scores, key=lambda row: -scores[row])[:ALL]
    tokens, found = generator.beams([PROMPT], Beam(LENGTH, beams=ALL, length_penalty=alpha))
    assert [tuple(row) for row in tokens[0].tolist()] == [row + (0,) * (LENGTH - len(row)) for row in expected]
    np.testing.assert_allclose(found[0], [scores[row] for row in expected], atol=1e-5)
    if alpha:  # the penalty matters here
        assert expected != sorted(everything, key=lambda row: -everything[row])[:ALL]


def test_few_beams_find_less_than_many_and_score_it_truly(
    generator: Generator, everything: dict[tuple[int, ...], float]
) -> None:
    tokens, scores = generator.beams([PROMPT], Beam(LENGTH, beams=2, length_penalty=0))
    for row, score in zip(tokens[0].tolist(), scores[0], strict=True):
        hypothesis = tuple(row[: row.index(EOS) + 1] if EOS in row else row)
        assert score == pytest.approx(everything[hypothesis], abs=1e-5)
    assert scores[0, 0] <= max(everything.values()) + 1e-5


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Model:
    return t5x_lite.load(tiny_run)


def test_one_beam_is_greedy_and_stop_strings_cut_its_text(model: Model) -> None:
    prompts = ["the quick", "seven wizards mix black opal"]
    greedy = model.generate(prompts, tokens=8, temperature=0)
    assert model.generate(prompts, tokens=8, beams=1) == greedy
    stop = greedy[0][3:5]
    cut = model.generate(prompts, tokens=8, beams=1, stop=[stop])
    assert cut == [text.partition(stop)[0] for text in greedy]


def test_settings_of_another_way_are_refused_by_name() -> None:
    assert decoding_settings(tokens=3, length_penalty=1.0) == Beam(3, length_penalty=1.0)
    for given, said in (
        ({"beams": 2, "temperature": 0.5}, "temperature is not a setting of beam search; those are tokens, stop"),
        ({"temprature": 1}, "temprature is not a setting of generation"),
        ({"beams": 0}, "beams must be at least 1"),
        ({"length_penalty": -1}, "length_penalty not negative"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"min_p": 1.5}, "min_p must be from 0 to 1"),
        ({"stop": "ab"}, r"stop is a list of texts; write \['ab'\]"),
    ):
        with pytest.raises(UserError, match=said):
            decoding_settings(**given)


def test_the_command_searches(tiny_run: Path, model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", str(tiny_run), "--prompt", "the quick", "--tokens", "8", "--beams", "2"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"the quick{model.generate('the quick', tokens=8, beams=2)[0]}\n"
    assert main([*command, "--top-k", "3"]) == 2
    assert "top_k is not a setting of beam search" in capsys.readouterr().err
