"""Generation: equal to the model's own logits, the same for the same seed, cut where told."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t5x_lite
from t5x_lite.api import Model
from t5x_lite.cli import main
from t5x_lite.decode.beam import Beam
from t5x_lite.decode.generate import stream_text
from t5x_lite.decode.sampling import Sampling, apply_repetition_penalty, mark_tokens, sample_token
from t5x_lite.errors import UserError


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Model:
    return t5x_lite.load(tiny_run)


def test_greedy_tokens_are_the_argmax_of_uncached_logits(model: Model) -> None:
    ids = model.tokenizer.encode("the quick").tolist()
    expected = []
    for _ in range(8):
        expected.append(int(model.logits([ids])[0, -1].argmax()))
        ids.append(expected[-1])
    ends = expected.index(model.tokenizer.eos) if model.tokenizer.eos in expected else len(expected)
    assert model.generate("the quick", tokens=8, temperature=0) == [model.tokenizer.decode(expected[:ends])]


def test_a_batch_of_unequal_prompts_gives_what_each_gives_alone(model: Model) -> None:
    prompts = ["the", "seven wizards mix black", "a lazy dog while seven wizards"]
    together = model.generate(prompts, tokens=10, temperature=0)
    assert together == [model.generate(prompt, tokens=10, temperature=0)[0] for prompt in prompts]


def test_the_same_seed_gives_the_same_text(model: Model) -> None:
    one, again, other = (model.generate(["fox", "dog"], tokens=12, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_a_stop_string_ends_the_text_before_it(model: Model) -> None:
    whole = model.generate("the quick", tokens=12, temperature=0)[0]
    stop = whole[3:5]
    assert model.generate("the quick", tokens=12, temperature=0, stop=(stop,)) == [whole[: whole.index(stop)]]


def test_streaming_shows_what_generation_returns(model: Model) -> None:
    sampling, written = Sampling(tokens=20, seed=3), []
    stream_text("fox", model.generator.stream(["fox"], sampling), written.append)
    assert "".join(written) == "fox" + model.generator.generate(["fox"], sampling)[0] + "\n"


def test_half_a_character_waits_for_its_other_half() -> None:
    written: list[str] = []
    stream_text("", iter([["a"], ["a\ufffd"], ["aü"], ["aüb"]]), written.append)
    assert written[1:] == ["a", "", "ü", "b", "\n"]


def drawn(sampling: Sampling, logits: list[float], count: int = 4000) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), count)
    rows = jnp.broadcast_to(jnp.array(logits), (count, len(logits)))
    return np.bincount(np.asarray(sample_token(rows, sampling, keys)), minlength=len(logits)) / count


def test_samples_follow_the_tempered_distribution() -> None:
    logits = [2.0, 1.0, 0.0, -1.0]
    for temperature in (0.5, 1.0, 2.0):
        wanted = np.exp(np.array(logits) / temperature)
        np.testing.assert_allclose(drawn(Sampling(temperature=temperature), logits), wanted / wanted.sum(), atol=0.03)


def test_top_k_and_top_p_cut_the_tail() -> None:
    logits = np.log([0.5, 0.3, 0.15, 0.05]).tolist()
    np.testing.assert_allclose(drawn(Sampling(top_k=2), logits), [0.625, 0.375, 0, 0], atol=0.03)
    # The likeliest tokens that hold 0.6: the first alone holds 0.5, so the second is needed too.
    np.testing.assert_allclose(drawn(Sampling(top_p=0.6), logits), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(drawn(Sampling(top_p=0.5), logits), [1, 0, 0, 0], atol=0.001)
    np.testing.assert_allclose(drawn(Sampling(top_k=1), logits), [1, 0, 0, 0], atol=0.001)


def test_min_p_keeps_what_has_a_share_of_the_likeliest_ones_probability() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.log(probabilities).tolist()
    # At least 0.4 · 0.5 = 0.2 (Nguyen et al. 2024, §3).
    np.testing.assert_allclose(drawn(Sampling(min_p=0.4), logits), [0.625, 0.375, 0, 0], atol=0.03)
    # After the temperature: of 0.707, 0.548, 0.387 and 0.224 those of at least 0.4 · 0.707 = 0.283.
    flat = np.sqrt(probabilities) * (1, 1, 1, 0)
    np.testing.assert_allclose(drawn(Sampling(temperature=2, min_p=0.4), logits), flat / flat.sum(), atol=0.03)
    np.testing.assert_allclose(drawn(Sampling(min_p=1), logits), [1, 0, 0, 0], atol=0.001)


def test_a_penalty_divides_positive_scores_multiplies_negative_ones_and_no_other_tokens() -> None:
    """Of ids that are no tokens of the vocabulary none is marked."""
    seen = mark_tokens(jnp.zeros((2, 4), bool), jnp.array([[0, 2, -1], [-4, 7, 3]]))
    np.testing.assert_array_equal(seen, [[True, False, True, False], [False, False, False, True]])
    found = apply_repetition_penalty(jnp.array([[3.0, 3.0, -2.0, -2.0]] * 2), seen, 2.0)
    np.testing.assert_array_equal(found, [[1.5, 3.0, -4.0, -2.0], [3.0, 3.0, -2.0, -4.0]])


def test_settings_out_of_range_and_texts_too_long_are_refused(model: Model) -> None:
    for settings in ({"tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"tokens": 32}):
        with pytest.raises(UserError):
            model.generate("x", **settings)
    with pytest.raises(UserError, match="more than the model's 32 learned positions"):
        model.logits(np.zeros((1, 33), np.int32))


def test_a_prompt_longer_than_the_context_loses_its_beginning_and_is_counted(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 32 positions 5 are for the new tokens: the last 27 tokens of the prompt are what is continued."""
    long, before = model.tokenizer.encode("the quick brown fox " * 40), model.generator.truncated
    for way in (Sampling(5, temperature=0), Beam(5, beams=2)):
        *_, (whole, _) = model.generator.tokens([long, long[-3:]], way)
        *_, (cut, _) = model.generator.tokens([long[-27:], long[-3:]], way)
        np.testing.assert_array_equal(whole, cut)
    assert model.generator.truncated - before == 2
    assert [record.message for record in caplog.records] == [
        "1 of 2 prompts have more than 27 tokens and lose the first"
    ] * 2


def test_scores_are_sums_of_log_probabilities(model: Model) -> None:
    texts = ["the quick brown fox", "fox", ""]
    for text, score in zip(texts, model.score(texts), strict=True):
        ids = [model.tokenizer.eos, *model.tokenizer.encode(text)]
        expected = 0.0
        if len(ids) > 1:
            log_p = np.asarray(jax.nn.log_softmax(model.logits([ids[:-1]])[0].astype(np.float64)))
            expected = sum(log_p[place, token] for place, token in enumerate(ids[1:]))
        assert score == pytest.approx(expected, abs=1e-3)


def test_evaluation_of_a_run_is_what_training_wrote(model: Model, tiny_run: Path) -> None:
    from tests.conftest import lines

    found, written = model.evaluate(), lines(tiny_run)[-1]
    assert found["loss"] == pytest.approx(written["eval/loss"], rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))


def test_bits_per_byte_by_hand(model: Model) -> None:
    """Total bits of the split over its bytes, with tokens and bytes counted on the texts themselves."""
    from t5x_lite.data.corpus import Corpus
    from t5x_lite.data.prepare import prepare_corpus

    config = model.config
    corpus = Corpus(prepare_corpus(config.data.sources[0], config.data, model.tokenizer), "validation")
    texts = [model.tokenizer.decode(corpus.document(n)) for n in range(corpus.documents)]
    tokens = sum(len(model.tokenizer.encode(text)) + 1 for text in texts)
    found = model.evaluate()
    expected = found["loss"] / np.log(2) * tokens / sum(len(text.encode()) for text in texts)
    assert found["bits_per_byte"] == pytest.approx(expected, rel=1e-6)


def test_the_command_streams_and_repeats_itself(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", str(tiny_run), "--prompt", "the quick", "--tokens", "8", "--seed", "4"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert main(command) == 0
    assert capsys.readouterr().out == first
    assert first.startswith("the quick")
    assert main([*command, "--prompt", "fox"]) == 0
    assert capsys.readouterr().out.count("\n\n") == 2


def test_another_step_can_be_loaded_and_a_missing_one_is_named(tiny_run: Path) -> None:
    assert t5x_lite.load(tiny_run, step=8).step == 8
    assert t5x_lite.load(tiny_run / "checkpoints/8").step == 8
    with pytest.raises(UserError, match="complete ones are: 8, 12"):
        t5x_lite.load(tiny_run, step=9)
    with pytest.raises(UserError, match="is not a run directory"):
        t5x_lite.load(tiny_run.parent)
