"""An objective for each source of a mixture: MLM and TLM in one batch as in XLM, and UL2 as a mixture of denoisers."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from t5x_lite import config as configuration
from t5x_lite.config_problems import objective_problems
from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.config import DataConfig
from t5x_lite.data.open_data import TextData, open_data
from t5x_lite.data.pipeline import training_batch, training_batches
from t5x_lite.data.training_data import PipelineSettings
from t5x_lite.errors import UserError
from t5x_lite.objectives import Causal, Objective, TokenRow
from t5x_lite.objectives.masked import Masked
from t5x_lite.objectives.objective import ExampleContext, Features
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.objectives.ul2 import PUBLISHED, UL2
from tests.objectives.vocabulary import context

SEQ_LEN = 48
MLM = Masked(rate=0.3, language=2)
FOR_TESTS = {"prepare_processes": 1, "separate_documents": False}
TLM = {"translation": {"rate": 0.2, "languages": [2, 1]}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Lines of 6,000 letters together, and 60 pairs of texts of 10 to 30 letters."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    (tmp_path / "text.txt").write_text("\n".join("".join(rng.choice(letters, 50)) for _ in range(120)))
    pairs = []
    for _ in range(60):
        first, second = ("".join(rng.choice(letters, rng.integers(10, 31))) for _ in range(2))
        pairs.append(json.dumps({"en": first, "fr": second}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs))
    return tmp_path


def text_source(folder: Path, **settings: object) -> dict[str, object]:
    return {"name": "text", "files": str(folder / "text.txt"), "document": "line", **settings}


def pair_source(folder: Path, **settings: object) -> dict[str, object]:
    fields = {"field": ["en", "fr"], "parts": "fields", "packing": "none", "objective": TLM}
    return {"name": "pairs", "files": str(folder / "pairs.jsonl"), **fields, **settings}


def open_mixture(
    folder: Path, sources: list[dict[str, object]], objective: Objective = MLM, **settings: object
) -> TextData:
    data = DataConfig.model_validate(
        {"mixture": sources, "cache_dir": str(folder), "validation_fraction": 0.2, **FOR_TESTS, **settings}
    )
    family = objective.families[0]
    pipeline = PipelineSettings(data, objective, context(SEQ_LEN, family, size=400, sentinels=60), 5, 4)
    opened = open_data(pipeline, Bytes())
    assert isinstance(opened, TextData)
    return opened


def are_equal(example: Features, other: Features) -> bool:
    return example.keys() == other.keys() and all(np.array_equal(example[name], other[name]) for name in example)


def cut(example: Features, like: Features) -> Features:
    """The example without what it has beyond the shapes of another, which must be zeros."""
    result = {}
    for name, feature in example.items():
        kept = tuple(slice(size) for size in like[name].shape)
        result[name] = feature[kept]
        assert not np.delete(feature, np.s_[: like[name].shape[0]], axis=0).any()
    return result


def test_sources_share_rows_by_their_weights_and_each_gives_those_of_a_run_with_it_alone(folder: Path) -> None:
    """0.7 of the rows are MLM's, 0.3 TLM's; the n-th row of a source is the n-th of its run."""
    mixed = open_mixture(folder, [text_source(folder, weight=0.7), pair_source(folder, weight=0.3)]).rows()
    swapped = open_mixture(folder, [pair_source(folder, weight=0.3), text_source(folder, weight=0.7)]).rows()
    alone = {
        "text": open_mixture(folder, [text_source(folder)]).rows(),
        "pairs": open_mixture(folder, [pair_source(folder)]).rows(),
    }
    counts = Counter[str]()
    swapped_counts = Counter[str]()
    for g in range(100):
        name = "pairs" if 1 in mixed[g]["token_types"] else "text"
        if name == "text":
            expected = alone["text"][counts["text"]]
            assert are_equal(cut(mixed[g], expected), expected)
        counts[name] += 1
        name = "pairs" if 1 in swapped[g]["token_types"] else "text"
        if name == "pairs":
            expected = alone["pairs"][swapped_counts["pairs"]]
            assert are_equal(cut(swapped[g], expected), expected)
        swapped_counts[name] += 1
        assert mixed[g]["targets"].shape == (15,)  # the larger rate, of MLM: 0.3 · 48, rounded up
    for counted in (counts, swapped_counts):
        assert abs(counted["text"] - 70) <= 1


def test_a_row_has_the_token_types_of_its_languages_and_positions_that_restart_at_the_translation(folder: Path) -> None:
    rows = open_mixture(folder, [text_source(folder, weight=1.0), pair_source(folder, weight=1.0)]).rows()
    for g in range(40):
        row = rows[g]
        length = int((row["segment_ids"] > 0).sum())
        types = row["token_types"][:length]
        if 1 in types:
            second = int(np.flatnonzero(types == 1)[0])
            assert types.tolist() == [2] * second + [1] * (length - second)
            assert row["positions"][:length].tolist() == [*range(second), *range(length - second)]
        else:
            assert types.tolist() == [2] * SEQ_LEN
            assert row["positions"].tolist() == list(range(SEQ_LEN))


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_build_the_batches_of_one_host_from_any_step(folder: Path, hosts: int) -> None:
    data = open_mixture(folder, [text_source(folder, weight=0.5), pair_source(folder, weight=0.5)])
    rows = data.rows()
    uninterrupted = [training_batch(rows, 8, np.arange(8), step) for step in range(7)]
    streams = [
        training_batches(rows, 8, local_rows, 4, 7, data.settings.data) for local_rows in np.split(np.arange(8), hosts)
    ]
    for batch in uninterrupted[4:]:
        parts = [next(stream) for stream in streams]
        assert are_equal(batch, {name: np.concatenate([part[name] for part in parts]) for name in batch})


def test_ul2_is_the_mixture_of_its_denoisers(folder: Path) -> None:
    """Tay et al. 2023, Table 1: of seven equal shares two are R, one is S and four are X."""
    sources = []
    for number, denoiser in enumerate(PUBLISHED):
        objective = {"ul2": {"denoisers": [denoiser.model_dump()]}}
        sources.append({**text_source(folder, objective=objective, weight=1.0), "name": str(number)})
    rows = open_mixture(folder, sources, UL2()).rows()
    modes = {name: context(8).vocabulary.named[name] for name in ("[R]", "[S]", "[X]")}
    counts = Counter(int(rows[g]["tokens"][0]) for g in range(210))
    assert counts == {modes["[R]"]: 60, modes["[S]"]: 30, modes["[X]"]: 120}
    assert len({rows[g]["targets"].shape for g in range(14)}) == 1
    first = UL2(denoisers=PUBLISHED[:1])
    alone = open_mixture(folder, [text_source(folder)], first).rows()
    assert are_equal(cut(rows[0], alone[0]), alone[0])


def test_sources_of_one_objective_have_no_validation_of_their_own(folder: Path) -> None:
    same = [text_source(folder), {**text_source(folder), "name": "again"}]
    assert open_mixture(folder, same).validation_of_sources() == {}


def test_validation_files_are_evaluated_once_for_sources_of_one_objective(folder: Path) -> None:
    (folder / "validation.txt").write_text("\n".join(f"line {number} of the text" for number in range(60)))
    sources = [text_source(folder), {**text_source(folder), "name": "again", "weight": None}]
    settings = {"validation_files": [str(folder / "validation.txt")], "validation_fraction": 0.0}
    tokens = []
    for mixed in (sources, sources[:1]):
        batches = open_mixture(folder, mixed, **settings).validation().batches(np.arange(4))
        tokens.append(np.concatenate([batch["tokens"] for batch in batches]))
    np.testing.assert_array_equal(tokens[0], tokens[1])
    assert len(np.unique(tokens[0], axis=0)) > 10


def test_validation_of_a_source_is_that_of_a_run_with_it_alone(folder: Path) -> None:
    mixed = open_mixture(folder, [text_source(folder), pair_source(folder)])
    alone = open_mixture(folder, [pair_source(folder)])
    sources = mixed.validation_of_sources()
    batches = list(sources["pairs"].batches(np.arange(4)))
    expected = list(alone.validation().batches(np.arange(4)))
    assert len(batches) == len(expected) > 2
    for batch, other in zip(batches, expected, strict=True):
        for name in batch:
            padding = batch[name].ndim > 1 and np.delete(batch[name], np.s_[: other[name].shape[1]], axis=1)
            assert not np.any(padding)
        assert all(np.array_equal(batch[name][:, : other[name].shape[1]], other[name]) for name in other)


def test_the_context_of_an_objective_of_a_source_is_checked(folder: Path) -> None:
    sources = [text_source(folder), {**text_source(folder, objective="ul2"), "name": "ul2"}]
    data = open_mixture(folder, [text_source(folder)], SpanCorruption()).settings
    data = replace(data, data=DataConfig.model_validate({"mixture": sources, "cache_dir": str(folder)}))
    vocabulary = replace(data.context.vocabulary, named={})
    with pytest.raises(UserError, match=r"objective ul2: the tokenizer has no \[R\]"):
        open_data(replace(data, context=replace(data.context, vocabulary=vocabulary)), Bytes())


ENCODER = ["model.family=encoder", "model.token_types=2", "objective=masked"]
REFUSED = {
    "another family": ("causal", r"objective causal trains decoder, not a model of family encoder"),
    "too few token types": ("{translation: {languages: [0, 4]}}", r"needs model.token_types of at least 5.*found 2"),
    "rows of another kind": ("translation", r"needs data.parts=fields.*found parts=none, packing=stream"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_objectives_that_cannot_share_a_batch_are_refused_at_configuration(tiny_config: Path, name: str) -> None:
    objective, message = REFUSED[name]
    mixture = f"data.mixture=[{{name: a, files: x.txt}}, {{name: b, files: x.txt, objective: {objective}}}]"
    with pytest.raises(UserError, match=message):
        configuration.load(tiny_config, [*ENCODER, "data.files=[]", mixture])


def test_objectives_of_different_losses_are_refused(tiny_config: Path) -> None:
    mixture = "data.mixture=[{name: a, files: x.txt}, {name: b, files: x.txt, objective: prefix}]"
    with pytest.raises(UserError, match=r"objective prefix of a source and `objective: causal` compute different loss"):
        configuration.load(tiny_config, ["data.files=[]", mixture])


class DatedCausal(Causal):
    """Causal language modelling with one more feature."""

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        return {**super().example(row, context, rng), "year": np.zeros((), np.int32)}


def test_objectives_of_different_features_are_refused(tiny_config: Path) -> None:
    config = configuration.load(tiny_config)
    source = config.data.sources[0].model_copy(update={"objective": DatedCausal()})
    mixed = config.model_copy(update={"data": config.data.model_copy(update={"files": (), "mixture": (source,)})})
    problems = list(objective_problems(mixed, Causal()))
    assert len(problems) == 1
    assert "make different features (year)" in problems[0]


def test_an_objective_of_a_source_is_for_text(tiny_config: Path) -> None:
    mixture = "data.mixture=[{name: a, files: x.txt, objective: causal}]"
    overrides = ["tasks=[sst2]", "objective=text_to_text", "data.files=[]", mixture]
    with pytest.raises(UserError, match=r"data.mixture is for text"):
        configuration.load(tiny_config, overrides)
