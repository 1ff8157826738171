"""Generation: equal to the model's own logits, the same for the same seed, cut at EOS and stop strings."""

import json
import shutil
from collections.abc import Iterator, Sequence
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
from t5x_lite.data import vocabulary
from t5x_lite.data.corpus import Corpus
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.tokenizer_config import Unigram
from t5x_lite.decode import fill
from t5x_lite.decode.beam import Beam
from t5x_lite.decode.command import GenerationRequest, print_results
from t5x_lite.decode.generate import Generator, TokenIds, truncate_prompt, write_stream
from t5x_lite.decode.logit_rules import apply_repetition_penalty, mark_tokens, resolve_bias
from t5x_lite.decode.sampling import Sampling, default_tokens, sample_token
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import init_params, model_spec
from tests.conftest import lines


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Model:
    return t5x_lite.load(tiny_run)


def test_greedy_tokens_are_the_argmax_of_uncached_logits(model: Model) -> None:
    token_ids = model.tokenizer.encode("the quick").tolist()
    expected = []
    for _ in range(8):
        expected.append(int(model.logits([token_ids])[0, -1].argmax()))
        token_ids.append(expected[-1])
    end = expected.index(model.tokenizer.eos) if model.tokenizer.eos in expected else len(expected)
    assert model.generate("the quick", tokens=8, temperature=0) == [model.tokenizer.decode(expected[:end])]


def test_a_batch_of_unequal_prompts_gives_the_text_of_each_prompt_alone(model: Model) -> None:
    prompts = ["the", "seven wizards mix black", "a lazy dog while seven wizards"]
    together = model.generate(prompts, tokens=10, temperature=0)
    assert together == [model.generate(prompt, tokens=10, temperature=0)[0] for prompt in prompts]


def test_blocks_of_an_encoder_begin_with_its_prompt() -> None:
    """Beside a longer prompt there is padding, which must not move the borders of blocks."""
    pattern = [{"attention": {"fixed": {"stride": 5, "summary": 1}}}]
    sizes = {"family": "encoder_decoder", "layers": 1, "embed": 16, "heads": 2, "vocab": 40}
    config = ModelConfig.model_validate({**sizes, "pattern": pattern, "decoder_attention": ["dense"]})
    spec = model_spec(config)
    params = init_params(config, jax.random.key(0))
    generator = Generator(config, spec, params, None)
    short = np.arange(10, 17)
    longer = np.arange(10, 23)
    _, alone = generator.search_beams([short], Beam(tokens=2, beams=2))
    _, beside = generator.search_beams([longer, short], Beam(tokens=2, beams=2))
    np.testing.assert_allclose(beside[1], alone[0], rtol=0, atol=1e-6)


def test_the_same_seed_gives_the_same_text(model: Model) -> None:
    first, repeated, other = (model.generate(["fox", "dog"], tokens=12, seed=seed) for seed in (1, 1, 2))
    assert first == repeated
    assert first != other


def test_a_stop_string_ends_the_text_before_it(model: Model) -> None:
    text = model.generate("the quick", tokens=12, temperature=0)[0]
    stop = text[3:5]
    assert model.generate("the quick", tokens=12, temperature=0, stop=(stop,)) == [text[: text.index(stop)]]


class Scripted(Generator):
    """A generator whose model always answers with the same tokens, which arrive three at a time."""

    def __init__(self, model: Model, tokenizer: Tokenizer, answer: TokenIds) -> None:
        super().__init__(model.config.model, model.spec, model.params, tokenizer)
        self.answer = answer

    def stream_tokens(
        self, prompts: Sequence[TokenIds], decoding: object, streams: object = None
    ) -> Iterator[np.ndarray]:
        for stop in range(3, len(self.answer) + 3, 3):
            yield self.answer[None, :stop]


@pytest.fixture(scope="module")
def adds_space(prose: Path) -> Tokenizer:
    """A tokenizer that puts a space before every text and removes it when it decodes, as T5's and Llama's do."""
    text = (prose / "00.txt").read_text()
    return vocabulary.train(Unigram(vocab=34, normalization="nmt_nfkc", byte_fallback=False), [text])


@pytest.mark.parametrize("answer", ["brown fox jumps", "ly fox"])
def test_a_continuation_keeps_its_first_space(model: Model, adds_space: Tokenizer, answer: str) -> None:
    prompt = "the quick"
    joined = f"{prompt} {answer}"
    ids = adds_space.encode(joined)
    prompt_length = len(adds_space.encode(prompt))
    scripted = Scripted(model, adds_space, ids[prompt_length:])
    texts = list(scripted.stream([prompt], Sampling(tokens=len(ids) - prompt_length)))
    assert prompt + texts[-1][0] == joined
    assert all(joined.startswith(prompt + text) for (text,) in texts)


def test_no_beginning_of_a_stop_string_is_streamed(model: Model, adds_space: Tokenizer) -> None:
    answer = adds_space.encode("the dog jumps over the lazy fox and then some more words follow")
    scripted = Scripted(model, adds_space, answer)
    texts = [text for (text,) in scripted.stream(["fox"], Sampling(tokens=len(answer), stop=("the lazy",)))]
    assert texts[-1].endswith("jumps over ")
    assert all(texts[-1].startswith(text) for text in texts)


def test_the_beginning_of_a_stop_string_at_the_end_of_the_text_is_kept(model: Model, adds_space: Tokenizer) -> None:
    answer = adds_space.encode("jumps over the")
    scripted = Scripted(model, adds_space, answer)
    texts = list(scripted.stream(["fox"], Sampling(tokens=len(answer), stop=("the lazy",))))
    assert texts[-1][0].endswith("jumps over the")


def test_a_stop_string_may_name_a_special_token(model: Model, adds_space: Tokenizer) -> None:
    words = adds_space.encode("jumps over")
    answer = np.concatenate([words, [adds_space.special["<pad>"]], words])
    scripted = Scripted(model, adds_space, answer)
    texts = list(scripted.stream(["fox"], Sampling(tokens=len(answer), stop=("<pad>",))))
    assert texts[-1][0].strip() == "jumps over"


def test_streaming_writes_what_generation_returns(model: Model) -> None:
    sampling = Sampling(tokens=20, seed=3)
    written: list[str] = []
    write_stream("fox", model.generator.stream(["fox"], sampling), written.append)
    assert "".join(written) == "fox" + model.generator.generate(["fox"], sampling)[0] + "\n"


def test_an_incomplete_character_is_written_once_it_is_complete() -> None:
    written: list[str] = []
    write_stream("", iter([["a"], ["a\ufffd"], ["aü"], ["aüb"]]), written.append)
    assert written[1:] == ["a", "", "ü", "b", "\n"]


def sampled_frequencies(sampling: Sampling, logits: list[float], count: int = 4000) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), count)
    rows = jnp.broadcast_to(jnp.array(logits), (count, len(logits)))
    return np.bincount(np.asarray(sample_token(rows, sampling, keys)), minlength=len(logits)) / count


def test_samples_follow_the_tempered_distribution() -> None:
    logits = [2.0, 1.0, 0.0, -1.0]
    for temperature in (0.5, 1.0, 2.0):
        weights = np.exp(np.array(logits) / temperature)
        frequencies = sampled_frequencies(Sampling(temperature=temperature), logits)
        np.testing.assert_allclose(frequencies, weights / weights.sum(), atol=0.03)


def test_top_k_and_top_p_cut_the_tail() -> None:
    logits = np.log([0.5, 0.3, 0.15, 0.05]).tolist()
    np.testing.assert_allclose(sampled_frequencies(Sampling(top_k=2), logits), [0.625, 0.375, 0, 0], atol=0.03)
    # The most likely tokens whose probabilities reach 0.6: the first has 0.5, so the second is needed too.
    np.testing.assert_allclose(sampled_frequencies(Sampling(top_p=0.6), logits), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(sampled_frequencies(Sampling(top_p=0.5), logits), [1, 0, 0, 0], atol=0.001)
    np.testing.assert_allclose(sampled_frequencies(Sampling(top_k=1), logits), [1, 0, 0, 0], atol=0.001)


def test_min_p_keeps_tokens_with_a_fraction_of_the_largest_probability() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.log(probabilities).tolist()
    # At least 0.4 · 0.5 = 0.2 (Nguyen et al. 2024, §3).
    np.testing.assert_allclose(sampled_frequencies(Sampling(min_p=0.4), logits), [0.625, 0.375, 0, 0], atol=0.03)
    # It applies after the temperature: of 0.707, 0.548, 0.387 and 0.224 those of at least 0.4 · 0.707 = 0.283 stay.
    flat = np.sqrt(probabilities) * (1, 1, 1, 0)
    np.testing.assert_allclose(
        sampled_frequencies(Sampling(temperature=2, min_p=0.4), logits), flat / flat.sum(), atol=0.03
    )
    np.testing.assert_allclose(sampled_frequencies(Sampling(min_p=1), logits), [1, 0, 0, 0], atol=0.001)


def test_a_repetition_penalty_changes_the_scores_of_present_tokens_alone() -> None:
    """It divides positive scores and multiplies negative ones. Ids outside the vocabulary mark no token as present."""
    present = mark_tokens(jnp.zeros((2, 4), bool), jnp.array([[0, 2, -1], [-4, 7, 3]]))
    np.testing.assert_array_equal(present, [[True, False, True, False], [False, False, False, True]])
    scores = apply_repetition_penalty(jnp.array([[3.0, 3.0, -2.0, -2.0]] * 2), present, 2.0)
    np.testing.assert_array_equal(scores, [[1.5, 3.0, -4.0, -2.0], [3.0, 3.0, -2.0, -4.0]])


def test_an_infinite_bias_bans_a_token_or_all_others() -> None:
    """A sequence counts where its other tokens are the last ones. A ban is stronger than +inf."""
    inf = np.inf
    bias = resolve_bias({0: 2.0, (3, 1): inf, (5, 3, 2): -inf, (3, 2): inf}, None, 6)
    history = jnp.array([[-1, -1, 3], [-1, 5, 3], [5, 3, 0]])
    scores = bias.apply(jnp.arange(18.0).reshape(3, 6), history)
    np.testing.assert_array_equal(
        scores, [[-inf, 1, 2, -inf, -inf, -inf], [-inf, 7, -inf, -inf, -inf, -inf], [14, 13, 14, 15, 16, 17]]
    )


def test_a_bias_of_a_sequence_longer_than_the_history_does_not_apply() -> None:
    """Of the history 3, 1 the sequences 3 1 2 and 1 4 are completed; 0 3 1 5, whose first token is unknown, is not."""
    bias = resolve_bias({(3, 1, 2): 2.0, (1, 4): 3.0, (0, 3, 1, 5): 4.0, (0, 0, 0, 0, 0): 5.0}, None, 6)
    scores = bias.apply(jnp.zeros((1, 6)), jnp.array([[3, 1]]))
    np.testing.assert_array_equal(scores, [[0, 0, 2, 0, 3, 0]])


def test_every_end_token_of_imported_weights_ends_a_text(tiny_run: Path, tmp_path: Path) -> None:
    """As `generate` of Transformers does by `eos_token_id: [2, 224]`."""
    imported = shutil.copytree(tiny_run, tmp_path / "run")
    unlimited = t5x_lite.load(imported)
    prompts = [unlimited.generator.encode_prompt("the quick")]
    (tokens,) = list(unlimited.generator.stream_tokens(prompts, Sampling(tokens=8, seed=3)))[-1].tolist()
    count = next(count for count in range(1, 8) if tokens[count] not in tokens[:count])
    (imported / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, tokens[count]]}))
    expected = unlimited.generate("the quick", tokens=count, seed=3)
    assert t5x_lite.load(imported).generate("the quick", tokens=8, seed=3) == expected


def test_rows_of_a_batch_stop_by_themselves(model: Model) -> None:
    """Each row ends at its first stop, however long the others go on; a stop before `min_tokens` does not count."""
    prompts = ["the quick", "a lazy dog", "seven wizards mix"]
    texts = model.generate(prompts, tokens=16, temperature=0)
    stop = texts[0][2:4]
    expected = [text.partition(stop)[0] for text in texts]
    assert model.generate(prompts, tokens=16, temperature=0, stop=[stop]) == expected
    assert len({len(text) for text in expected}) > 1
    ids = model.tokenizer.encode("the quick" + texts[0])[len(model.tokenizer.encode("the quick")) :]
    shortest = 1
    while stop not in model.tokenizer.decode(ids[:shortest]):
        shortest += 1
    assert len(model.generate(prompts, tokens=16, temperature=0, stop=[stop], min_tokens=shortest)[0]) > len(
        expected[0]
    )


def test_a_biased_text_is_its_tokens(model: Model, tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the word that greedy decoding chooses, the text has another; the command says the same."""
    (text,) = model.generate("the quick brown", tokens=6, temperature=0)
    word = text.split()[0]
    (changed,) = model.generate("the quick brown", tokens=6, temperature=0, logit_bias={word: -np.inf})
    tokens = tuple(model.tokenizer.encode(word).tolist())
    assert changed == model.generate("the quick brown", tokens=6, temperature=0, logit_bias={tokens: -np.inf})[0]
    assert changed.split()[0] != word
    command = ["generate", str(tiny_run), "--prompt", "the quick brown", "--tokens", "6", "--temperature", "0"]
    ids = ",".join(map(str, tokens))
    for option in (f"--logit-bias={word}=-inf", f"--token-bias={ids}=-inf"):
        assert main([*command, option]) == 0
        assert capsys.readouterr().out == f"the quick brown{changed}\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logit_bias": {300: 1.0}}, "token 300 is not in the vocabulary of 300 tokens"),
        ({"logit_bias": {"": 1.0}}, "has no tokens for ''"),
        ({"logit_bias": {3: float("nan")}}, "must be a number, inf or -inf, but is nan"),
        ({"logit_bias": {(): 1.0}}, "is neither a text nor a token"),
        ({"stop_tokens": [-1]}, "stop_tokens: token -1 is not in the vocabulary"),
        ({"stop_tokens": 3}, r"write \[3\]"),
        ({"min_tokens": 9}, "min_tokens must be from 0 to tokens, 8"),
        ({"no_repeat_ngram_size": -1}, "must not be negative"),
        ({"top_k": 2.5}, "top_k must be a whole number, but is 2.5"),
        ({"temperature": "hot"}, "temperature must be a number, but is 'hot'"),
        ({"stop": [1]}, "stop is a list of texts, and 1 is none"),
        ({"stop_tokens": ["a"]}, "stop_tokens is a list of tokens, and 'a' is none"),
    ],
)
def test_rules_that_cannot_work_are_refused(model: Model, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.generate("x", tokens=8, **settings)


def test_settings_out_of_range_and_texts_that_are_too_long_are_refused(model: Model) -> None:
    for settings in ({"tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"tokens": 32}):
        with pytest.raises(UserError):
            model.generate("x", **settings)
    with pytest.raises(UserError, match=r"more than the model's 32 positions \(model\.positions\.learned\.length\)"):
        model.logits(np.zeros((1, 33), np.int32))


def test_a_prompt_longer_than_the_context_loses_its_first_tokens_and_is_counted(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 32 positions 5 are for the new tokens, so the model continues the last 27 tokens of the prompt."""
    prompt = model.tokenizer.encode("the quick brown fox " * 40)
    truncated_before = model.generator.truncated_prompts
    for decoding in (Sampling(5, temperature=0), Beam(5, beams=2)):
        *_, tokens = model.generator.stream_tokens([prompt, prompt[-3:]], decoding)
        *_, tokens_of_cut_prompt = model.generator.stream_tokens([prompt[-27:], prompt[-3:]], decoding)
        np.testing.assert_array_equal(tokens[0], tokens_of_cut_prompt[0])
    assert model.generator.truncated_prompts - truncated_before == 2
    assert [record.message for record in caplog.records] == [
        "1 of 2 prompts have more than 27 tokens and lose the first"
    ] * 2


def test_a_long_prompt_keeps_the_ids_before_every_prompt() -> None:
    prefix = np.array([-1, -2, 7])
    assert truncate_prompt(np.array([-1, -2, 7, 1, 2]), prefix, 5).tolist() == [-1, -2, 7, 1, 2]
    assert truncate_prompt(np.array([-1, -2, 7, 1, 2, 3, 4]), prefix, 5).tolist() == [-1, -2, 7, 3, 4]
    assert truncate_prompt(np.array([-1, -2, 9, 1, 2, 3, 4]), prefix, 5).tolist() == [-1, -2, 2, 3, 4]
    assert truncate_prompt(np.array([1, 2, 3, 4, 5, 6]), prefix, 5).tolist() == [2, 3, 4, 5, 6]
    assert truncate_prompt(np.array([1, 2, 3]), np.zeros(0, np.int32), 2).tolist() == [2, 3]
    with pytest.raises(UserError, match=r"the 3 ids before every prompt .* leave it no room in 3 tokens"):
        truncate_prompt(np.array([-1, -2, 7, 1]), prefix, 3)


def test_generation_keeps_the_prefix_of_a_long_prompt(model: Model) -> None:
    """Of 32 positions 5 are for new tokens, and 2 of the other 27 for the prefix."""
    prefix = np.array([9, 8], np.int32)
    generator = Generator(model.config.model, model.spec, model.params, model.tokenizer, prefix)
    token_ids = generator.encode_prompt("the quick brown fox " * 40)
    cut_ids = np.concatenate([prefix, token_ids[-25:]])
    *_, tokens = generator.stream_tokens([token_ids], Sampling(5, temperature=0))
    *_, tokens_of_cut_prompt = generator.stream_tokens([cut_ids], Sampling(5, temperature=0))
    np.testing.assert_array_equal(tokens, tokens_of_cut_prompt)


def test_the_harness_keeps_the_soft_tokens_of_a_long_prompt() -> None:
    """Of a window of 10, 4 are for new tokens, and 2 of the other 6 for virtual tokens; BOS, 7, is cut."""
    pytest.importorskip("lm_eval", reason="needs the extra eval: pip install -e '.[eval]'")
    from t5x_lite.evaluate.harness_model import HarnessModel

    model = SimpleNamespace(
        soft_prompt_ids=np.array([-1, -2]),
        encode_text=lambda text: np.array([-1, -2, 7, *range(20, 20 + len(text))]),
        likelihood=SimpleNamespace(truncated_inputs=0),
    )
    harness_model = HarnessModel.__new__(HarnessModel)
    harness_model.backend = "causal"
    harness_model.max_length = 10
    harness_model.model = model  # type: ignore[assignment]
    assert harness_model._encode_prompt("abc", 4).tolist() == [-1, -2, 7, 20, 21, 22]
    assert harness_model._encode_prompt("abcdefgh", 4).tolist() == [-1, -2, 24, 25, 26, 27]
    assert model.likelihood.truncated_inputs == 1


def test_scores_are_sums_of_log_probabilities(model: Model) -> None:
    texts = ["the quick brown fox", "fox", ""]
    for text, score in zip(texts, model.score(texts), strict=True):
        token_ids = [model.tokenizer.eos, *model.tokenizer.encode(text)]
        expected = 0.0
        if len(token_ids) > 1:
            log_probs = np.asarray(jax.nn.log_softmax(model.logits([token_ids[:-1]])[0].astype(np.float64)))
            expected = sum(log_probs[position, token] for position, token in enumerate(token_ids[1:]))
        assert score == pytest.approx(expected, abs=1e-3)


def test_evaluation_of_a_run_gives_the_loss_that_training_logged(model: Model, tiny_run: Path) -> None:
    scores = model.evaluate()
    assert scores["loss"] == pytest.approx(lines(tiny_run)[-1]["eval/loss"], rel=1e-5)
    assert scores["perplexity"] == pytest.approx(np.exp(scores["loss"]))


def test_bits_per_byte_by_hand(model: Model) -> None:
    """All bits of the split over its bytes, with tokens and bytes counted on the texts themselves."""
    from t5x_lite.data.prepare import prepare_corpus

    config = model.config
    corpus = Corpus(prepare_corpus(config.data.sources[0], config.data, model.tokenizer), "validation")
    texts = [model.tokenizer.decode(corpus.document(n)) for n in range(corpus.documents)]
    tokens = sum(len(model.tokenizer.encode(text)) + 1 for text in texts)
    scores = model.evaluate()
    expected = scores["loss"] / np.log(2) * tokens / sum(len(text.encode()) for text in texts)
    assert scores["bits_per_byte"] == pytest.approx(expected, rel=1e-6)


def test_the_command_streams_and_gives_the_same_text_again(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", str(tiny_run), "--prompt", "the quick", "--tokens", "8", "--seed", "4"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert main(command) == 0
    assert capsys.readouterr().out == first
    assert first.startswith("the quick")
    assert main([*command, "--prompt", "fox"]) == 0
    assert capsys.readouterr().out.count("\n\n") == 2
    for words, message in ((["--logit-bias", "fox"], "expected =BIAS"), (["--token-bias", "a=1"], "numbers of tokens")):
        with pytest.raises(SystemExit, match="2"):
            main([*command, *words])
        assert message in capsys.readouterr().err


def test_another_step_can_be_loaded_and_a_missing_step_is_named(tiny_run: Path) -> None:
    assert t5x_lite.load(tiny_run, step=8).step == 8
    assert t5x_lite.load(tiny_run / "checkpoints/8").step == 8
    with pytest.raises(UserError, match="complete ones are: 8, 12"):
        t5x_lite.load(tiny_run, step=9)
    assert t5x_lite.load(tiny_run / "checkpoints/8", step=8).step == 8
    with pytest.raises(UserError, match="names a step, and step 12 is asked for"):
        t5x_lite.load(tiny_run / "checkpoints/8", step=12)
    with pytest.raises(UserError, match="is not a run directory"):
        t5x_lite.load(tiny_run.parent)


@pytest.mark.parametrize(("positions", "tokens"), [(None, 128), (2048, 128), (129, 128), (128, 64), (2, 1)])
def test_without_a_number_of_tokens_there_is_room_for_a_prompt(positions: int | None, tokens: int) -> None:
    assert default_tokens(positions) == tokens


def test_a_model_of_few_positions_generates_without_options(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 32 positions."""
    assert main(["generate", str(tiny_run), "--prompt", "the"]) == 0
    assert capsys.readouterr().out.startswith("the")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_would_draw_the_text_of_another_are_refused(seed: int) -> None:
    with pytest.raises(UserError, match=r"seed must be from 0 to 2\^32 - 1"):
        Sampling(seed=seed)


def test_batches_of_prompts_give_the_texts_of_one_batch(model: Model) -> None:
    prompts = ["the quick", "brown fox", "jumps", "over the lazy"]
    sampling = Sampling(4, seed=3)
    small: Any = SimpleNamespace(generator=model.generator, eval_batch_size=1)
    assert list(fill._generate_in_batches(small, prompts, sampling)) == model.generator.generate(prompts, sampling)


def test_each_prompt_is_filled_or_continued(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decoded_with = []

    def fill_spans(model: object, text: str, decoding: Sampling) -> list[str]:
        decoded_with.append(decoding.temperature)
        return ["x"]

    monkeypatch.setattr(fill, "fill_spans", fill_spans)
    model: Any = SimpleNamespace(
        config=SimpleNamespace(model=SimpleNamespace(family="encoder_decoder", max_length=None, is_encoder_only=False)),
        tokenizer=SimpleNamespace(special={"<extra_id_0>": 9}, sentinels=lambda: (9,)),
        generator=SimpleNamespace(generate=lambda prompts, decoding, streams: [" and on" for _ in prompts]),
        eval_batch_size=8,
    )
    prompts = ["a <extra_id_0> b <extra_id_0>", "no sentinel"]
    for settings in ({}, {"temperature": 0.9}):
        decoding = Sampling(**settings)
        request = GenerationRequest(prompts, [], None, None, settings, decoding, None)
        print_results(model, request)
        assert capsys.readouterr().out == "a [x] b [x]\n\n and on\n\n"  # an answer, without its prompt
    assert decoded_with == [0.0, 0.9]


def test_texts_may_be_one_text_and_must_not_be_none(model: Model) -> None:
    assert model.score("the quick") == model.score(["the quick"])
    np.testing.assert_array_equal(model.embed("the quick"), model.embed(["the quick"]))
    assert model.generate([]) == []
    for call in (lambda: model.embed([]), lambda: model.logits([]), lambda: model.embed(["a"], layer=[])):
        with pytest.raises(UserError):
            call()
