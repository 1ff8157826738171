"""Beam search and rules for logits against Hugging Face Transformers, on batches of unequal prompts."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

from t5x_lite.data.byte_tokenizer import Bytes  # noqa: E402
from t5x_lite.decode.beam import Beam  # noqa: E402
from t5x_lite.decode.generate import Generator  # noqa: E402
from t5x_lite.decode.sampling import Decoding, Sampling  # noqa: E402
from tests.reference.cases import Case, make  # noqa: E402

PROMPTS = [np.arange(first, first + size, dtype=np.int32) for first, size in ((7, 8), (20, 5), (30, 2))]
TOKENS = 12
BEAMS = 4
EOS = {"T5 v1.0": 87, "GPT-2": 71}
"""A token that ends some of each random model's hypotheses and not others."""


@pytest.fixture(scope="module", params=list(EOS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    yield make(request.param, tmp_path_factory.mktemp("case"), noise=0.3)


def transformers_generate(case: Case, **settings: Any) -> tuple[np.ndarray, Any]:
    """Return the tokens without the prompt, and all that Transformers returns. A decoder's prompts are left-padded."""
    longest = max(map(len, PROMPTS))
    is_encoder_decoder = case.theirs.config.is_encoder_decoder
    input_ids = torch.zeros((len(PROMPTS), longest), dtype=torch.long)
    attention_mask = torch.zeros((len(PROMPTS), longest), dtype=torch.long)
    for row, prompt in enumerate(PROMPTS):
        columns = slice(0, len(prompt)) if is_encoder_decoder else slice(longest - len(prompt), None)
        input_ids[row, columns] = torch.tensor(prompt, dtype=torch.long)
        attention_mask[row, columns] = 1
    case.theirs.generation_config.eos_token_id = None
    output = case.theirs.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        do_sample=False,
        pad_token_id=0,
        max_new_tokens=TOKENS,
        return_dict_in_generate=True,
        **settings,
    )
    first = 1 if is_encoder_decoder else longest
    return output.sequences[:, first:].numpy(), output


@pytest.mark.parametrize("penalty", [1.0, pytest.param(1.4, marks=pytest.mark.slow)])
def test_beam_search_finds_the_same_hypotheses_with_the_same_scores(case: Case, penalty: float) -> None:
    """Without a length penalty, where GNMT's and Transformers' agree. `never` stops only what cannot improve."""
    eos = EOS[case.name]
    tokenizer = Bytes()
    tokenizer.eos = eos
    generator = Generator(case.ours.config.model, case.ours.run.spec, case.ours.params, tokenizer)
    beam = Beam(TOKENS, beams=BEAMS, length_penalty=0, repetition_penalty=penalty)
    tokens, scores = generator.search_beams(PROMPTS, beam)

    expected, output = transformers_generate(
        case,
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        length_penalty=0.0,
        early_stopping="never",
        eos_token_id=eos,
        repetition_penalty=penalty,
        output_scores=True,
    )
    rows = [row[: row.index(eos) + 1] if eos in row else row for row in expected.tolist()]
    assert {len(row) == TOKENS for row in rows} == {True, False}
    assert tokens.reshape(-1, TOKENS).tolist() == [row + [0] * (TOKENS - len(row)) for row in rows]
    np.testing.assert_allclose(scores.reshape(-1), output.sequences_scores.numpy(), atol=1e-4)


def test_a_repetition_penalty_gives_the_same_greedy_tokens(case: Case) -> None:
    """A decoder's prompt counts, its padding does not; in an encoder_decoder the answer and its start token count."""
    sampling = Sampling(TOKENS, temperature=0, repetition_penalty=1.4)
    tokens = list(case.ours.generator.stream_tokens(PROMPTS, sampling))[-1]
    penalised, _ = transformers_generate(case, repetition_penalty=1.4)
    plain, _ = transformers_generate(case)
    assert tokens.tolist() == penalised.tolist()
    assert tokens.tolist() != plain.tolist()


def cut_after(end_tokens: list[int], rows: np.ndarray) -> list[list[int]]:
    """Return the tokens of each row up to the first that ends it."""
    cut = []
    for row in rows.tolist():
        places = [place for place, token in enumerate(row) if token in end_tokens]
        cut.append(row[: places[0] + 1] if places else row)
    return cut


def test_rules_change_scores_as_logits_processors_do() -> None:
    """Random histories of few tokens, so that n-grams repeat and biased sequences occur."""
    rng = np.random.default_rng(0)
    history = rng.integers(0, 6, (40, 9))
    scores = rng.normal(0, 3, (40, 6)).astype(np.float32)
    bias = {(0,): -1.5, (3, 1): -float("inf"), (2, 4, 5): 2.0, (1, 5): 0.5, (0, 2): -float("inf")}
    rules = Decoding(
        logit_bias=bias, repetition_penalty=1.3, no_repeat_ngram_size=3, min_tokens=5, stop_tokens=[2, 4]
    ).resolve_rules(None, 6)
    processors = [
        transformers.SequenceBiasLogitsProcessor(bias),
        transformers.RepetitionPenaltyLogitsProcessor(1.3),
        transformers.NoRepeatNGramLogitsProcessor(3),
        transformers.MinNewTokensLengthLogitsProcessor(0, 5, [2, 4], "cpu"),
    ]
    for length in (4, 9):  # before and after the smallest number of tokens
        expected = torch.tensor(scores)
        for processor in processors:
            expected = processor(torch.tensor(history[:, :length]), expected)
        padded = np.pad(history[:, :length], ((0, 0), (3, 0)), constant_values=-1)
        changed = rules.apply(jnp.asarray(scores), jnp.asarray(padded), length)
        np.testing.assert_allclose(changed, expected.numpy(), rtol=1e-6)
    assert np.isinf(expected.numpy()[:, [3, 5]]).any()  # these tokens are banned by repeated n-grams alone


@pytest.mark.slow
def test_rules_for_logits_give_the_same_greedy_tokens(case: Case) -> None:
    """Banned and favoured tokens and sequences, no repeated n-gram, and no end before some tokens."""
    plain = [
        row.tolist() for row in list(case.ours.generator.stream_tokens(PROMPTS, Sampling(TOKENS, temperature=0)))[-1]
    ]
    first, second, third = plain
    bias = {(first[0],): -float("inf"), tuple(second[:2]): -float("inf"), tuple(third[:3]): -3.0, (third[1],): 0.5}
    end_tokens = [first[1], second[3]]
    tokenizer = Bytes()
    tokenizer.eos = end_tokens[0]
    generator = Generator(case.ours.config.model, case.ours.run.spec, case.ours.params, tokenizer)
    for ours, theirs in (
        ({"logit_bias": bias}, {"sequence_bias": bias}),
        ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
        (
            {"min_tokens": 6, "stop_tokens": end_tokens[1:], "logit_bias": bias, "repetition_penalty": 1.3},
            {"min_new_tokens": 6, "eos_token_id": end_tokens, "sequence_bias": bias, "repetition_penalty": 1.3},
        ),
    ):
        tokens = list(generator.stream_tokens(PROMPTS, Sampling(TOKENS, temperature=0, **ours)))[-1]
        expected, _ = transformers_generate(case, **theirs)
        ends = theirs.get("eos_token_id", [])
        assert cut_after(ends, tokens) == cut_after(ends, expected)
        assert tokens.tolist() != plain


@pytest.mark.slow
def test_rules_for_logits_give_the_same_hypotheses(case: Case) -> None:
    """Several tokens end a hypothesis, none of them before five tokens."""
    end_tokens = [EOS[case.name], int(case.ours.generator.search_beams(PROMPTS, Beam(TOKENS))[0][0, 0, 2])]
    tokenizer = Bytes()
    tokenizer.eos = end_tokens[0]
    generator = Generator(case.ours.config.model, case.ours.run.spec, case.ours.params, tokenizer)
    rules = {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2}
    beam = Beam(TOKENS, beams=BEAMS, length_penalty=0, min_tokens=5, stop_tokens=end_tokens[1:], **rules)
    tokens, scores = generator.search_beams(PROMPTS, beam)
    expected, output = transformers_generate(
        case,
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        length_penalty=0.0,
        early_stopping="never",
        eos_token_id=end_tokens,
        min_new_tokens=5,
        output_scores=True,
        **rules,
    )
    rows = tokens.reshape(-1, TOKENS)
    assert cut_after(end_tokens, rows) == cut_after(end_tokens, expected)
    assert min(map(len, cut_after(end_tokens, rows))) >= 6
    np.testing.assert_allclose(scores.reshape(-1), output.sequences_scores.numpy(), atol=1e-4)
