"""Generation: equal to the model's own logits, the same for the same seed, cut where told."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t5x_lite
from t5x_lite.api import Model
from t5x_lite.cli import main
from t5x_lite.decode.generate import Sampling, choose, print_growing
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
    print_growing("fox", model.generator.stream(["fox"], sampling), written.append)
    assert "".join(written) == "fox" + model.generator.generate(["fox"], sampling)[0] + "\n"


def test_half_a_character_waits_for_its_other_half() -> None:
    written: list[str] = []
    print_growing("", iter([["a"], ["a\ufffd"], ["aü"], ["aüb"]]), written.append)
    assert written[1:] == ["a", "", "ü", "b", "\n"]


def drawn(sampling: Sampling, logits: list[float], count: int = 4000) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), count)
    rows = jnp.broadcast_to(jnp.array(logits), (count, len(logits)))
    return np.bincount(np.asarray(choose(rows, sampling, keys)), minlength=len(logits)) / count


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


def test_settings_out_of_range_and_texts_too_long_are_refused(model: Model) -> None:
    for settings in ({"tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"tokens": 32}):
        with pytest.raises(UserError):
            model.generate("x", **settings)
    with pytest.raises(UserError, match="more than the model's 32 learned positions"):
        model.logits(np.zeros((1, 33), np.int32))


def test_a_prompt_longer_than_the_context_loses_its_beginning(model: Model) -> None:
    assert len(model.generate("the quick brown fox " * 40, tokens=5)) == 1


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
    from t5x_lite.data.corpus import Corpus, prepare

    config = model.config
    corpus = Corpus.open(prepare(config.data.sources[0], config.data, model.tokenizer), "validation")
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
