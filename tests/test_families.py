"""The study of all families (configs/study): equal sizes, one pass over ten million words, and every run starts."""

import json
import math
import os
from itertools import islice
from pathlib import Path

import pytest

from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.config import RunConfig
from t5x_lite.data.files import open_file
from t5x_lite.data.pipeline import TrainingRows
from t5x_lite.data.tokenizer_config import Unigram
from t5x_lite.run_data import open_run_data, open_tokenizer
from t5x_lite.sweep import config as sweeps
from t5x_lite.sweep.grid import expand
from tests.conftest import REPOSITORY, lines

STUDY = REPOSITORY / "configs/study"
SWEEP = "families.yaml"
RATES = "rates.yaml"
NAMES = sorted(path.stem for path in STUDY.glob("*.yaml") if path.name not in {SWEEP, RATES})
DOCUMENTS = 3669
"""Documents of the training text; the words of the first ones come nearest to ten million."""
WORDS = 9_971_982


def load(name: str, *overrides: str) -> RunConfig:
    return configuration.load(STUDY / f"{name}.yaml", list(overrides))


@pytest.mark.slow
def test_the_sweep_has_every_config_at_three_rates() -> None:
    runs = expand(sweeps.load(STUDY / SWEEP))
    assert len({run.name for run in runs}) == len(runs) == 3 * len(NAMES)
    assert {Path(run.config).stem for run in runs} == set(NAMES)
    assert {run.overrides["optimizer.learning_rate"] for run in runs} == {0.005, 0.01, 0.02}


def test_parameters_without_embeddings_differ_by_less_than_three_percent() -> None:
    """Those of the GPT are counted by hand: four square matrices, a GLU and the norms of each layer."""
    embed = 128
    layer = 4 * embed**2 + 3 * embed * 341 + 2 * embed + 2 * embed // 4
    gpt = 4 * layer + embed
    parameters = {Path(run.config).stem: run.parameters for run in expand(sweeps.load(STUDY / SWEEP))}
    assert parameters["gpt"] == gpt
    assert max(parameters.values()) / min(parameters.values()) < 1.03


def test_rates_are_searched_for_every_family_on_a_tenth_of_its_text() -> None:
    runs = expand(sweeps.load(STUDY / RATES))
    assert {Path(run.config).stem for run in runs} == set(NAMES)
    assert len(runs) == 3 * len(NAMES)
    shares = [350 / load(name).train.steps for name in NAMES]
    assert 0.08 < min(shares) <= max(shares) < 0.11


def test_all_read_the_same_text_with_the_same_tokenizer_and_schedule() -> None:
    configs = [load(name) for name in NAMES]
    assert len({(config.data.files, config.data.validation_files, config.data.cache_dir) for config in configs}) == 1
    assert len({config.tokenizer for config in configs}) == 1
    assert len({config.optimizer for config in configs}) == 1
    tokenizer = configs[0].tokenizer
    assert isinstance(tokenizer, Unigram)
    assert tokenizer.vocab == 8192
    assert all(config.eval.evaluators == configs[0].eval.evaluators for config in configs)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_config_trains_and_is_scored_on_blimp(name: str, prose: Path, tmp_path: Path) -> None:
    pairs = [
        {"sentence_good": good, "sentence_bad": bad, "UID": f"set_{number // 2}", "linguistics_term": "binding"}
        for number, (good, bad) in enumerate(
            [
                ("the quick fox jumps.", "the jumps fox quick."),
                ("a lazy dog mix.", "lazy a mix dog."),
                ("seven wizards mix opal.", "wizards seven opal mix."),
            ]
        )
    ]
    blimp = tmp_path / "blimp.jsonl"
    blimp.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    overrides = [
        f"run_dir={tmp_path / 'run'}",
        f"data.files={prose}/*.txt",
        "data.validation_files=[]",
        "data.validation_fraction=0.2",
        f"data.cache_dir={tmp_path / 'cache'}",
        "tokenizer.unigram.vocab=425",
        f"eval.evaluators=[{{blimp: {{files: {blimp}, limit: 1}}}}]",
        "optimizer.warmup_steps=1",
        "train={steps: 3, batch_size: 4, seq_len: 128, log_every_steps: 1}",
    ]
    assert main(["train", str(STUDY / f"{name}.yaml"), *overrides]) == 0
    last = lines(tmp_path / "run")[-1]
    assert last["step"] == 3
    assert math.isfinite(last["loss"])
    assert last["eval/blimp/pairs"] == 2
    assert last["eval/blimp/accuracy"] in {0.0, 0.5, 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_one_pass_over_ten_million_words(name: str, real_data: Path, tmp_path: Path) -> None:
    """The rows of the text make as many batches as the config has steps, but for the last rows."""
    text = write_text(real_data / "english", tmp_path)
    cache = Path(os.environ.get("T5X_LITE_STUDY_CACHE", tmp_path / "cache"))
    config = load(name, f"data.files={text}", f"data.validation_files={text}", f"data.cache_dir={cache}")
    rows = open_run_data(config, open_tokenizer(config)).rows()
    assert isinstance(rows, TrainingRows)
    assert rows.row_plans[0].rows // config.train.batch_size == config.train.steps


def write_text(english: Path, folder: Path) -> Path:
    """Write the first documents of the corpus, and return the file."""
    files = sorted(english.glob("train-*.jsonl.zst"))
    if not files:
        pytest.skip(f"{english} has no text")
    documents: list[bytes] = []
    for file in files:
        with open_file(str(file)) as opened:
            documents += islice(opened, DOCUMENTS - len(documents))
    assert sum(len(json.loads(line)["text"].split()) for line in documents) == WORDS
    path = folder / "text.jsonl"
    path.write_bytes(b"".join(documents))
    return path
