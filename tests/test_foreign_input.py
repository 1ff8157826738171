"""Foreign files with any change: every command ends with a result or with one line, never with a traceback."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

hypothesis = pytest.importorskip("hypothesis", reason="pip install hypothesis")

from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from t5x_lite.cli import main  # noqa: E402
from tests.data.test_levanter import DOCUMENTS, write_cache  # noqa: E402
from tests.data.test_shard_formats import MDS  # noqa: E402

NUMBERS = st.one_of(
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**400, 1e300, -0.0]),
)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "NaN", "../x", "/dev/zero", "²", "true", "a" * 5000, "\ud800", "${HOME}"]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=8,
)
EXAMPLES = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def paths_of(value: object, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in a JSON document."""
    paths = [prefix]
    children: Any = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for key, child in children:
        paths += paths_of(child, (*prefix, key))
    return paths


def replaced(document: Any, path: tuple[Any, ...], value: object) -> Any:
    """The document with another value at one place."""
    if not path:
        return value
    copy = document.copy()
    copy[path[0]] = replaced(document[path[0]], path[1:], value)
    return copy


def changed_json(data: st.DataObject, text: str) -> str:
    """A JSON text with one value replaced, one key added, or some characters cut out."""
    document = json.loads(text)
    kind = data.draw(st.sampled_from(["replace", "replace", "replace", "add", "cut"]))
    if kind == "cut":
        start = data.draw(st.integers(0, len(text)))
        return text[:start] + text[start + data.draw(st.integers(1, 40)) :]
    if kind == "add":
        changed = {**document, data.draw(st.text(max_size=8)): data.draw(VALUES)}
    else:
        changed = replaced(document, data.draw(st.sampled_from(paths_of(document))), data.draw(VALUES))
    return json.dumps(changed)


def assert_ends_well(words: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    """Run a command, and check that it succeeds or ends with one line."""
    code = main(words)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("t5x-lite: ")]
    assert code in {0, 1, 2}, (words, errors)
    assert code != 2 or len(errors) == 1, (words, errors)
    return code


def write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


@pytest.fixture(scope="module")
def foreign_model(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: config, weights with an index, and the files of a tokenizer."""
    from t5x_lite.convert.huggingface import export_hf

    folder = tmp_path_factory.mktemp("foreign") / "model"
    export_hf(tiny_run, folder, max_file_bytes=40_000)
    settings_of_tokenizer = {"eos_token": "</s>", "bos_token": {"content": "<s>"}, "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_of_tokenizer))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer_config.json"]
)
def test_imports_of_changed_folders(
    name: str, foreign_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = (foreign_model / name).read_text()
    folder = tmp_path / "model"
    shutil.copytree(foreign_model, folder)

    @EXAMPLES
    @given(st.data())
    def check(data: st.DataObject) -> None:
        write(folder / name, changed_json(data, original))
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        if assert_ends_well(["import", "hf", str(folder), str(tmp_path / "run")], capsys) == 0:
            assert_ends_well(["generate", str(tmp_path / "run"), "--prompt=the", "--tokens=2"], capsys)

    check()


@pytest.mark.slow
@pytest.mark.parametrize(("data_format", "name"), [("mds", "index.json"), ("levanter", "shard_ledger.json")])
def test_changed_indexes_of_shards(
    data_format: str, name: str, tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shards"
    if data_format == "mds":
        shutil.copytree(MDS, folder)
    else:
        write_cache(folder, DOCUMENTS)
    original = (folder / name).read_text()
    words = [f"data.files={folder}", f"data.format={data_format}", "tokenizer=bytes", "data.prepare_processes=1"]
    words += [f"data.cache_dir={tmp_path}/cache", "data.validation_fraction=0", "train.seq_len=4"]

    @EXAMPLES
    @given(st.data())
    def check(data: st.DataObject) -> None:
        write(folder / name, changed_json(data, original))
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        assert_ends_well(["prepare", str(tiny_config), *words], capsys)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "goodput.json"])
def test_runs_with_changed_files(name: str, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    original = (run / name).read_text()

    def commands() -> list[list[str]]:
        if name == "config.yaml":
            return [["eval", str(run), "eval.batches=1"]]
        return [["report", str(run)]]

    @EXAMPLES
    @given(st.data())
    def check(data: st.DataObject) -> None:
        start = data.draw(st.integers(0, len(original)))
        end = start + data.draw(st.integers(0, 30))
        inserted = data.draw(st.one_of(TEXTS, VALUES.map(json.dumps)))
        write(run / name, original[:start] + inserted + original[end:])
        for words in commands():
            assert_ends_well(words, capsys)

    check()


@pytest.mark.slow
def test_checkpoints_with_changed_manifests(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    manifest = run / "checkpoints/12/manifest.json"
    original = manifest.read_text()

    @EXAMPLES
    @given(st.data())
    def check(data: st.DataObject) -> None:
        write(manifest, changed_json(data, original))
        assert_ends_well(["generate", str(run), "--prompt=the", "--tokens=2"], capsys)

    check()


@pytest.mark.slow
def test_settings_of_any_value(tiny_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every setting takes any value or refuses it when the config is read."""
    from t5x_lite import config, schema
    from t5x_lite.errors import UserError

    keys = [explanation.key for explanation in schema.explain(config.RunConfig) if ".N" not in explanation.key]

    @settings(EXAMPLES, max_examples=3000)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        value = json.dumps(data.draw(VALUES))
        key = data.draw(st.sampled_from(keys))
        try:
            loaded = config.load(tiny_config, [f"{key}={value}"])
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert config.RunConfig.model_validate(loaded.model_dump(mode="json")) == loaded

    check()


@pytest.mark.slow
def test_sweeps_of_any_value(tiny_config: Path, tmp_path: Path) -> None:
    """Every sweep file is expanded into runs or refused."""
    from t5x_lite.errors import UserError
    from t5x_lite.sweep import config, grid

    sweep = {
        "config": str(tiny_config),
        "set": {"model.vocab": 300},
        "axes": {
            "steps": {"train.steps": [2, 4]},
            "rate": {"optimizer.learning_rate": {"log": [0.01, 0.1, 2]}},
            "size": {"model.embed": {"range": [16, 32, 16]}, "model.heads": [1, 2]},
        },
        "derived": {"model.mlp": "4 * model.embed"},
        "seeds": [0, 1],
        "jobs": 1,
    }
    path = tmp_path / "sweep.yaml"

    def load_sweep(text: str) -> config.Sweep:
        write(path, text)
        return config.load(path)

    assert len(grid.expand(load_sweep(json.dumps(sweep)))) == 16

    @settings(EXAMPLES, max_examples=500)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        try:
            runs = grid.expand(load_sweep(changed_json(data, json.dumps(sweep))))
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert runs

    check()
