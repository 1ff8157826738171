"""What a run directory holds stays right: its tokenizer, and the places of its checkpoints."""

import shutil
from pathlib import Path

import pytest
import yaml

from t5x_lite import config as configuration
from t5x_lite.api import load
from t5x_lite.cli import main
from t5x_lite.data import vocabulary
from t5x_lite.data.tokenizer_config import Unigram
from t5x_lite.errors import UserError
from t5x_lite.run_data import open_tokenizer
from t5x_lite.run_dir import check_run_dir, describe_changes, new_run, open_run
from tests.conftest import Shell


@pytest.mark.slow
def test_a_rerun_with_more_text_keeps_the_tokenizer(
    tiny_config: Path, prose: Path, tmp_path: Path, t5x_lite: Shell
) -> None:
    text = tmp_path / "text"
    shutil.copytree(prose, text)
    settings = ("train.steps=4", f"data.files={text}/*.txt", f"run_dir={tmp_path}/run")
    first = t5x_lite("train", tiny_config, *settings)
    assert first.returncode == 0, first.stderr
    tokenizer = (tmp_path / "run/tokenizer.model").read_bytes()
    (text / "99.txt").write_text("Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. " * 200)
    again = t5x_lite("train", tiny_config, *settings)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run/tokenizer.model").read_bytes() == tokenizer
    config = configuration.load(tiny_config, settings)
    assert open_tokenizer(config).file_bytes == tokenizer
    new_config = configuration.load(tiny_config, (*settings[:2], f"run_dir={tmp_path}/new"))
    assert open_tokenizer(new_config).file_bytes != tokenizer


def test_another_tokenizer_in_the_configured_file_is_refused(tiny_config: Path, prose: Path, tmp_path: Path) -> None:
    file = tmp_path / "words.model"
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    text = (prose / "00.txt").read_text()
    small = vocabulary.train(Unigram(vocab=290), [text])
    large = vocabulary.train(Unigram(vocab=291), [text])
    settings = ("tokenizer=file", f"tokenizer.file.path={file}", f"run_dir={run_dir}")
    file.write_bytes(small.file_bytes)
    config = configuration.load(tiny_config, settings)
    (run_dir / "config.yaml").write_text(configuration.dump(config))
    small.save(run_dir)
    assert open_tokenizer(config).vocab == 290
    file.write_bytes(large.file_bytes)
    with pytest.raises(UserError, match=r"words\.model: is not the tokenizer that .*run began with; restore the file"):
        open_tokenizer(config)
    file.unlink()
    assert open_tokenizer(config).vocab == 290


def test_a_run_with_relative_paths_is_opened_from_anywhere(
    tiny_config: Path, tmp_path: Path, t5x_lite: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = t5x_lite("train", tiny_config, "run_dir=run", "checkpoint.folder=elsewhere", "train.steps=4", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "elsewhere/4").is_dir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert load("../run").step == 4


def test_adapters_with_relative_paths_are_written_with_absolute_ones(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    method = "adapt.method={fusion: {adapters: [adapters/first, adapters/second]}}"
    config = configuration.load(tiny_run / "config.yaml", [f"adapt.from={tiny_run}", method, "run_dir=fused"])
    stored_tokenizer = open_run(tiny_run).stored_tokenizer
    assert stored_tokenizer is not None
    new_run(config, stored_tokenizer).save()
    stored = yaml.safe_load((tmp_path / "fused/config.yaml").read_text())
    expected = [str(tmp_path / "adapters/first"), str(tmp_path / "adapters/second")]
    assert stored["adapt"]["method"]["fusion"]["adapters"] == expected
    assert check_run_dir(config) == ""


def test_a_run_without_a_checkpoint_starts_with_any_config(tiny_run: Path, tiny_config: Path, tmp_path: Path) -> None:
    settings = [f"run_dir={tmp_path / 'run'}", "train.steps=4"]
    stored_tokenizer = open_run(tiny_run).stored_tokenizer
    assert stored_tokenizer is not None
    new_run(configuration.load(tiny_config, settings), stored_tokenizer).save()
    assert check_run_dir(configuration.load(tiny_config, [*settings, "train.seed=7"])) == ""
    with pytest.raises(UserError, match=r"belongs to a run with another config: train\.seed was 0, is 7"):
        check_run_dir(configuration.load(tiny_config, [f"run_dir={tiny_run}", "train.seed=7"]))


def test_a_run_at_a_constant_rate_may_become_longer_and_no_other(tiny_config: Path, tmp_path: Path) -> None:
    def change(schedule: str, old_steps: int, new_steps: int) -> str:
        settings = [f"run_dir={tmp_path}", f"optimizer.schedule={schedule}"]
        existing = configuration.load(tiny_config, [*settings, f"train.steps={old_steps}"])
        return describe_changes(existing, configuration.load(tiny_config, [*settings, f"train.steps={new_steps}"]))

    assert change("constant", 12, 20) == ""
    assert change("constant", 20, 12) == "train.steps was 20, is 12"
    assert change("cosine", 12, 20) == "train.steps was 12, is 20"


def test_more_steps_are_a_change_where_stages_begin_after_a_share_of_them(tiny_config: Path, tmp_path: Path) -> None:
    """The second half of 8 steps begins after step 4, that of 16 after step 8: other rows, and some of them twice."""

    def change(begins: str) -> str:
        schedule = f"data.schedule=[{{name: one}}, {{name: two, {begins}, seq_len: 8}}]"
        settings = [f"run_dir={tmp_path}", "optimizer.schedule=constant", schedule]
        existing = configuration.load(tiny_config, [*settings, "train.steps=8"])
        return describe_changes(existing, configuration.load(tiny_config, [*settings, "train.steps=16"]))

    assert change("after_steps: 4") == ""
    assert change("after_share: 0.5") == "train.steps was 8, is 16"


def test_the_checkpoints_of_another_run_are_not_continued(
    tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = f"checkpoint.folder={tmp_path / 'checkpoints'}"
    short = ["train", str(tiny_config), folder, "train.steps=4", "eval.every_steps=100"]
    assert main([*short, f"run_dir={tmp_path / 'first'}"]) == 0
    capfd.readouterr()
    assert main([*short, f"run_dir={tmp_path / 'second'}"]) == 2
    assert f"checkpoints: has the checkpoints of {tmp_path / 'first'}; choose another folder" in capfd.readouterr().err
    # A run directory on a disk that is gone: the checkpoints have its config.
    shutil.rmtree(tmp_path / "first")
    assert main([*short, f"run_dir={tmp_path / 'first'}", "train.seed=7"]) == 2
    assert "belongs to a run with another config: train.seed was 0, is 7" in capfd.readouterr().err
    assert main([*short, f"run_dir={tmp_path / 'first'}"]) == 0
    output = capfd.readouterr()
    assert "complete: step 4 of 4" in output.err + output.out
    assert f"run: {tmp_path / 'first'} ({tmp_path / 'checkpoints'}, tokenizer, config.yaml)" in output.out
    longer = ["train", str(tiny_config), folder, "train.steps=6", "train.allow_changed_config=true"]
    assert main([*longer, f"run_dir={tmp_path / 'first'}"]) == 0
    assert f"resumed from step 4 in {tmp_path / 'checkpoints'}" in capfd.readouterr().err


def test_a_run_does_not_begin_anew_in_another_checkpoint_folder(
    tiny_run: Path, tiny_config: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(tiny_run, run_dir)
    words = [f"run_dir={run_dir}", f"checkpoint.folder={tmp_path / 'other'}"]
    with pytest.raises(UserError, match=rf"other has no checkpoint, and those of {run_dir} are in {run_dir}/checkp"):
        check_run_dir(configuration.load(tiny_config, words))
    shutil.move(run_dir / "checkpoints", tmp_path / "other")
    assert check_run_dir(configuration.load(tiny_config, words)) == ""


def test_a_config_that_does_not_fit_the_checkpoint_leaves_the_run_as_it_was(
    tiny_run: Path, tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(tiny_run, run_dir)
    before = (run_dir / "config.yaml").read_bytes()
    changes = ("model.layers=3", "train.allow_changed_config=true")
    assert main(["train", str(tiny_config), f"run_dir={run_dir}", *changes]) == 2
    assert "does not fit this config" in capfd.readouterr().err
    assert (run_dir / "config.yaml").read_bytes() == before


def test_the_tokenizer_of_another_kind_is_not_left_beside_that_of_the_run(
    tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of a SentencePiece model and a tokenizer.json the first would be loaded."""
    run_dir = f"run_dir={tmp_path / 'run'}"
    assert main(["tokenizer", str(tiny_config), run_dir]) == 0
    assert main(["train", str(tiny_config), run_dir, "tokenizer=bytes"]) == 2
    assert "has the tokenizer.model of another tokenizer; delete that file" in capfd.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("key", ["run_dir", "checkpoint.folder"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_run(
    key: str, tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    settings = {"run_dir": f"{tmp_path}/run", key: f"{tmp_path}/file/folder"}
    assert main(["train", str(tiny_config), *(f"{name}={value}" for name, value in settings.items())]) == 2
    error = capfd.readouterr().err
    assert f"{key} {tmp_path}/file/folder: cannot be created or written: Not a directory" in error


def test_changed_settings_that_are_allowed_are_listed(tiny_run: Path, tiny_config: Path, tmp_path: Path) -> None:
    settings = (f"run_dir={tiny_run}", "train.seed=7", "train.allow_changed_config=true")
    changes = check_run_dir(configuration.load(tiny_config, settings))
    assert changes == "train.seed was 0, is 7"


def test_another_model_than_that_of_the_run_is_named(tiny_run: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_run(tiny_run, ["model.norm=rmsnorm", "mesh.data=1"])
    assert "the model is not that of the run: model.norm was 'layernorm', is 'rmsnorm'" in caplog.text
    caplog.clear()
    open_run(tiny_run, ["mesh.data=1", "eval.batch_size=2"])
    assert not caplog.text


def test_a_cache_may_be_named_by_the_folder_above(tiny_config: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert main(["prepare", str(tiny_config), f"data.cache_dir={tmp_path}/a/../cache"]) == 0
    assert list((tmp_path / "cache").glob("text-*/corpus.json"))
