"""Beam search and the repetition penalty against Hugging Face Transformers: batches of unequal prompts."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

from t5x_lite.decode.beam import Beam  # noqa: E402
from t5x_lite.decode.generate import Generator  # noqa: E402
from t5x_lite.decode.sampling import Sampling  # noqa: E402
from tests.reference.cases import Case, make  # noqa: E402

PROMPTS = [np.arange(first, first + size, dtype=np.int32) for first, size in ((7, 8), (20, 5), (30, 2))]
TOKENS, BEAMS = 12, 4
ENDS = {"T5 v1.0": 87, "GPT-2": 71}
"""A token that ends some of each random model's hypotheses and not others."""


@pytest.fixture(scope="module", params=list(ENDS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    yield make(request.param, tmp_path_factory.mktemp("case"), noise=0.3)


def theirs(case: Case, **settings: Any) -> tuple[np.ndarray, Any]:
    """Tokens without the prompt, and all that Transformers returns; a decoder's prompts are padded on the left."""
    longest, encoder = max(map(len, PROMPTS)), case.theirs.config.is_encoder_decoder
    ids = torch.zeros((2, len(PROMPTS), longest), dtype=torch.long)
    for n, prompt in enumerate(PROMPTS):
        place = slice(0, len(prompt)) if encoder else slice(longest - len(prompt), None)
        ids[0, n, place], ids[1, n, place] = torch.tensor(prompt, dtype=torch.long), 1
    case.theirs.generation_config.eos_token_id = None
    given = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": TOKENS, "return_dict_in_generate": True}
    out = case.theirs.generate(input_ids=ids[0], attention_mask=ids[1], **given, **settings)
    return out.sequences[:, 1 if encoder else longest :].numpy(), out


@pytest.mark.parametrize("penalty", [1.0, pytest.param(1.4, marks=pytest.mark.slow)])
def test_beam_search_finds_the_same_hypotheses_with_the_same_scores(case: Case, penalty: float) -> None:
    """With no length penalty, where GNMT's and Transformers' are the same; `never` ends only what cannot improve."""
    eos: Any = SimpleNamespace(eos=ENDS[case.name])
    generator = Generator(case.ours.config.model, case.ours.run.blueprint, case.ours.params, eos)
    beam = Beam(TOKENS, beams=BEAMS, length_penalty=0, repetition_penalty=penalty)
    tokens, scores = generator.beams(PROMPTS, beam)

    expected, out = theirs(
        case,
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        length_penalty=0.0,
        early_stopping="never",
        eos_token_id=eos.eos,
        repetition_penalty=penalty,
        output_scores=True,
    )
    rows = [[*row[: row.index(eos.eos) + 1]] if eos.eos in row else row for row in expected.tolist()]
    assert {len(row) == TOKENS for row in rows} == {True, False}
    assert tokens.reshape(-1, TOKENS).tolist() == [row + [0] * (TOKENS - len(row)) for row in rows]
    np.testing.assert_allclose(scores.reshape(-1), out.sequences_scores.numpy(), atol=1e-4)


def test_a_repetition_penalty_makes_greedy_tokens_the_same(case: Case) -> None:
    """A decoder's prompt counts, its padding does not; of an encoder_decoder the answer and its start count."""
    *_, found = case.ours.generator.tokens(PROMPTS, Sampling(TOKENS, temperature=0, repetition_penalty=1.4))
    assert found.tolist() == theirs(case, repetition_penalty=1.4)[0].tolist()
    assert found.tolist() != theirs(case)[0].tolist()
