"""Checkpoints in a bucket: a real run against an in-memory implementation of Google Cloud Storage's interface."""

import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pytest
import yaml
from backports import zstd
from pyarrow import parquet

from t5x_lite import local_copies, storage
from t5x_lite.checkpoint import Checkpoints
from t5x_lite.cli import main
from t5x_lite.config import CheckpointConfig
from t5x_lite.data import chunked_arrays
from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.cleaning.deduplicate import read_report
from t5x_lite.data.config import DataConfig
from t5x_lite.data.corpus import Corpus
from t5x_lite.data.open_data import open_data
from t5x_lite.data.pipeline import training_batches
from t5x_lite.data.prepare import prepare_corpus
from t5x_lite.data.row_rule import RowRule
from t5x_lite.data.row_store import open_rows, prepare_rows
from t5x_lite.data.training_data import PipelineSettings
from t5x_lite.errors import UserError
from t5x_lite.objectives import OBJECTIVES
from t5x_lite.objectives.objective import ExampleContext
from t5x_lite.sweep import config as sweep_config
from t5x_lite.sweep import launch
from t5x_lite.sweep.grid import expand
from t5x_lite.sweep.planned_run import write_plan
from t5x_lite.sweep.run_points import read_runs
from t5x_lite.sweep.status_log import StatusLog
from t5x_lite.watch.follower import MetricsFollower
from tests.conftest import REPOSITORY, Shell, lines
from tests.test_checkpoint import make_state, save_steps, shapes_of

gcsfs = pytest.importorskip("gcsfs")
server = pytest.importorskip("gcp_storage_emulator.server")
NotFound = pytest.importorskip("gcp_storage_emulator.exceptions").NotFound


def add_conditional_writes(patch: pytest.MonkeyPatch) -> None:
    """Add what the emulator lacks: object generations and conditional writes, which TensorStore's transactions use."""
    objects = server.objects
    upload = objects._media_upload
    download = objects.download
    lock = threading.Lock()

    def read_generation(storage: Any, request: Any, name: str) -> str:
        try:
            return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
        except NotFound:
            return "0"

    def upload_if_generation_matches(request: Any, response: Any, storage: Any) -> None:
        with lock:
            expected = request.query.get("ifGenerationMatch")
            name = request.query["name"][0]
            if expected and expected[0] != read_generation(storage, request, name):
                response.status = HTTPStatus.PRECONDITION_FAILED
                return
            upload(request, response, storage)

    def download_with_generation(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> None:
        with lock:
            response["x-goog-generation"] = read_generation(storage, request, request.params["object_id"])
            download(request, response, storage, *args, **kwargs)

    patch.setattr(objects, "_media_upload", upload_if_generation_matches)
    patch.setattr(objects, "download", download_with_generation)


LATENCY = {"seconds": 0.0}
"""Time that the emulator waits before it answers a request to read."""
WAITING = {"requests": 0, "most": 0}
"""Requests to read that wait for their answer, and the most that have waited at the same time."""


def answer_many_at_once(patch: pytest.MonkeyPatch) -> None:
    """Let the emulator answer requests in threads, each after the latency."""
    patch.setattr(server, "server", SimpleNamespace(HTTPServer=ThreadingHTTPServer))
    handle = server.Router.handle
    lock = threading.Lock()
    counting_lock = threading.Lock()

    def handle_later(router: Any, method: str) -> None:
        if method == server.GET:
            with counting_lock:
                WAITING["requests"] += 1
                WAITING["most"] = max(WAITING["most"], WAITING["requests"])
            time.sleep(LATENCY["seconds"])
            with counting_lock:
                WAITING["requests"] -= 1
        with lock:
            handle(router, method)

    patch.setattr(server.Router, "handle", handle_later)


@pytest.fixture(scope="module")
def bucket_environment() -> Iterator[dict[str, str]]:
    """The environment variables with which gcsfs and TensorStore find the emulated bucket."""
    patch = pytest.MonkeyPatch()
    add_conditional_writes(patch)
    answer_many_at_once(patch)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    emulator = server.create_server("127.0.0.1", port, in_memory=True, default_bucket="models")
    emulator.start()
    url = f"http://127.0.0.1:{port}"
    yield os.environ | {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        # gcsfs would ask for the kind of the bucket, which the emulator does not answer, for a minute.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    emulator.stop()
    patch.undo()


@pytest.mark.slow
def test_a_run_saves_to_a_bucket_and_resumes_from_it(
    t5x_lite: Shell, tiny_config: Path, tiny_run: Path, tmp_path: Path, bucket_environment: dict[str, str]
) -> None:
    run = tmp_path / "run"
    overrides = (f"run_dir={run}", "checkpoint.folder=gs://models/runs/tiny", "optimizer.schedule=constant")
    first = t5x_lite("train", tiny_config, *overrides, "train.steps=6", env=bucket_environment)
    assert first.returncode == 0, first.stderr
    second = t5x_lite("train", tiny_config, *overrides, "train.allow_changed_config=true", env=bucket_environment)
    assert second.returncode == 0, second.stderr
    assert "resumed from step 6" in second.stderr
    assert [line["step"] for line in lines(run)] == list(range(1, 13))
    assert not (run / "checkpoints").exists()
    evaluated = t5x_lite("eval", run, "--json", env=bucket_environment)
    assert evaluated.returncode == 0, evaluated.stderr
    # The two newest are kept, and the best.
    store = gcsfs.core.GCSFileSystem(endpoint_url=bucket_environment["STORAGE_EMULATOR_HOST"], token="anon")
    names = {path.rpartition("/")[2] for path in store.ls("models/runs/tiny")}
    assert names >= {"8", "12"}


@pytest.mark.slow
def test_a_run_directory_in_a_bucket_serves_every_command(
    t5x_lite: Shell, tiny_config: Path, tmp_path: Path, bucket_environment: dict[str, str]
) -> None:
    """Train, resume, evaluate, generate, watch, report and adapt, from a machine that has no file of the run."""

    def run_command(*arguments: object) -> str:
        done = t5x_lite(*arguments, env=bucket_environment)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    overrides = ("run_dir=gs://models/runs/whole", "optimizer.schedule=constant", "train.log_every_steps=1")
    run_command("train", tiny_config, *overrides, "train.steps=6")
    output = run_command("train", tiny_config, *overrides, "train.allow_changed_config=true")
    assert "resumed from step 6 in gs://models/runs/whole" in output
    assert "run: gs://models/runs/whole" in output

    store = gcsfs.core.GCSFileSystem(endpoint_url=bucket_environment["STORAGE_EMULATOR_HOST"], token="anon")
    names = {path.rpartition("/")[2] for path in store.ls("models/runs/whole")}
    assert names >= {"config.yaml", "tokenizer.model", "metrics.jsonl", "tensorboard", "checkpoints", "report.png"}
    metrics = store.cat_file("models/runs/whole/metrics.jsonl").decode().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == list(range(1, 13))

    scores = json.loads(run_command("eval", "gs://models/runs/whole", "--json").splitlines()[0])
    assert scores["step"] == 12
    assert run_command("generate", "gs://models/runs/whole", "--prompt", "the", "--tokens", "3").strip()
    state = json.loads(run_command("watch", "gs://models/runs/whole", "--json").splitlines()[0])
    assert (state["step"], state["complete"], state["checkpoint"], state["evaluation_step"]) == (12, True, 12, 12)
    picture = tmp_path / "curves.png"
    run_command("report", "gs://models/runs/whole", "--to", picture)
    assert picture.stat().st_size > 10_000
    adapted = run_command(
        "train", tiny_config, "run_dir=gs://models/runs/adapted", "adapt.from=gs://models/runs/whole", "train.steps=2"
    )
    assert "run: gs://models/runs/adapted" in adapted
    assert not list(Path().glob("gs:*"))


@pytest.mark.slow
def test_text_in_a_bucket_gives_the_tokens_of_the_same_text_on_disk(
    t5x_lite: Shell, tiny_config: Path, prose: Path, tmp_path: Path, bucket_environment: dict[str, str]
) -> None:
    """Plain and compressed text, JSONL and Parquet, and the tokenizer's file."""
    folder = tmp_path / "text"
    folder.mkdir()
    texts = [path.read_text() for path in sorted(prose.glob("*.txt"))[:4]]
    json_lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "a.txt").write_text(texts[0])
    (folder / "b.txt.gz").write_bytes(gzip.compress(texts[1].encode()))
    (folder / "c.jsonl.zst").write_bytes(zstd.compress(json_lines.encode()))
    parquet.write_table(pyarrow.table({"text": texts}), folder / "d.parquet")
    trained = t5x_lite("tokenizer", tiny_config, f"run_dir={folder}")
    assert trained.returncode == 0, trained.stderr
    store = gcsfs.core.GCSFileSystem(endpoint_url=bucket_environment["STORAGE_EMULATOR_HOST"], token="anon")
    for path in folder.iterdir():
        store.pipe_file(f"models/text/{path.name}", path.read_bytes())

    counts = []
    for place in (str(folder), "gs://models/text"):
        words = (f"data.files=[{place}/a.txt,{place}/*.gz,{place}/c.*,{place}/*.parquet]",)
        words += (f"tokenizer={{file: {{path: {place}/tokenizer.model}}}}", f"data.cache_dir={tmp_path}/{len(counts)}")
        prepared = t5x_lite("prepare", tiny_config, "--json", *words, env=bucket_environment)
        assert prepared.returncode == 0, prepared.stderr
        description = json.loads(prepared.stdout)
        counts.append([description[name] for name in ("documents", "tokens", "rows")])
    assert counts[0] == counts[1]
    assert counts[0][0] > 0
    missing = t5x_lite("prepare", tiny_config, "data.files=gs://models/none/*.txt", env=bucket_environment)
    assert missing.returncode == 2
    assert "no file matches 'gs://models/none/*.txt'" in missing.stderr


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_whose_token_corpus_is_in_a_bucket_equals_one_on_a_disk(
    t5x_lite: Shell, tiny_config: Path, tmp_path: Path, bucket_environment: dict[str, str], workers: int
) -> None:
    """Prepare, train, resume, evaluate and export, from machines that have no file of the corpus."""
    losses = []
    for place in (str(tmp_path), f"gs://models/{workers}"):
        overrides = [f"run_dir={place}/run", f"data.cache_dir={place}/cache", "data.packing=documents"]
        overrides += ["data.parts=line", f"data.workers={workers}", "optimizer.schedule=constant"]
        prepared = t5x_lite("prepare", tiny_config, "--json", *overrides, env=bucket_environment)
        assert prepared.returncode == 0, prepared.stderr
        folder = json.loads(prepared.stdout)["sources"]["text"]["folder"]
        assert folder.startswith(f"{place}/cache/text-")
        for steps in (6, 12):
            command = ("train", tiny_config, *overrides, f"train.steps={steps}", "train.allow_changed_config=true")
            done = t5x_lite(*command, env=bucket_environment)
            assert done.returncode == 0, done.stderr
            assert "tokenising" not in done.stderr
        scores = json.loads(t5x_lite("eval", f"{place}/run", "--json", env=bucket_environment).stdout.splitlines()[0])
        exported = t5x_lite("export", "megatron", folder, tmp_path / f"{len(losses)}", env=bucket_environment)
        assert exported.returncode == 0, exported.stderr
        losses.append(scores["eval/loss"])
    assert losses[0] == losses[1]
    for ending in ("bin", "idx"):
        contents = [(tmp_path / f"{number}_train.{ending}").read_bytes() for number in (0, 1)]
        assert contents[0] == contents[1]
    assert not list(Path().glob("gs:*"))


@pytest.mark.slow
def test_processes_of_a_pod_share_a_corpus_and_a_run_in_a_bucket(
    tiny_config: Path, tmp_path: Path, bucket_environment: dict[str, str]
) -> None:
    """The first process trains the tokenizer and prepares; the losses are those of one process with a disk."""
    losses = []
    for count, place in ((1, str(tmp_path)), (2, "gs://models/pod")):
        settings = [f"run_dir={place}/run", f"data.cache_dir={place}/cache", "data.packing=documents"]
        command = ["bash", "launch/pod_sim.sh", str(count), str(tiny_config), *settings, "mesh.data=-1"]
        variables = bucket_environment | {"T5X_LITE_READY": "1", "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
        done = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        output = done.stdout + done.stderr
        assert output.count("corpus: tokenising") == 1
        if count == 1:
            metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
        else:
            store = gcsfs.core.GCSFileSystem(endpoint_url=bucket_environment["STORAGE_EMULATOR_HOST"], token="anon")
            metrics = store.cat_file("models/pod/run/metrics.jsonl").decode()
        losses.append([json.loads(line)["loss"] for line in metrics.splitlines()])
    assert len(losses[0]) >= 2
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.slow
def test_a_sweep_in_a_bucket_is_run_fitted_and_reported(
    t5x_lite: Shell, tiny_config: Path, tmp_path: Path, bucket_environment: dict[str, str]
) -> None:
    path = tmp_path / "grid.yaml"
    axes = {"size": {"model.embed": [16, 32, 48]}, "steps": {"train.steps": [4, 8, 12]}}
    set_values = {"data.cache_dir": "gs://models/sweeps/cache", "checkpoint.every_steps": 100}
    sweep = {"config": str(tiny_config), "dir": "gs://models/sweeps/grid", "axes": axes, "set": set_values}
    path.write_text(yaml.safe_dump(sweep))
    done = t5x_lite("sweep", path, "--yes", env=bucket_environment)
    assert done.returncode == 0, done.stderr
    again = t5x_lite("sweep", path, "--yes", env=bucket_environment)
    assert again.returncode == 0, again.stderr
    assert "compiled the train step" not in again.stderr
    words = ("sweep", "fit", "gs://models/sweeps/grid", "--json", "--draws", "10")
    fitted = t5x_lite(*words, env=bucket_environment)
    assert fitted.returncode == 0, fitted.stderr
    assert json.loads(fitted.stdout)["points"] == 9
    store = gcsfs.core.GCSFileSystem(endpoint_url=bucket_environment["STORAGE_EMULATOR_HOST"], token="anon")
    assert json.loads(store.cat_file("models/sweeps/grid/law.json"))["points"] == 9


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_the_rows_of_a_batch_are_requested_from_a_bucket_at_the_same_time(
    bucket_environment: dict[str, str], prose: Path, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    """Each request takes 50 ms and nothing stays in the cache: a step would wait for rows that are read in turn."""
    for name, value in bucket_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(chunked_arrays, "CACHE_BYTES", 0)
    monkeypatch.setattr(chunked_arrays, "CHUNKS_IN_MEMORY", 0)
    chunked_arrays.reading_context.cache_clear()
    settings = {"files": str(prose / "*.txt"), "cache_dir": f"gs://models/slow-{packing}", "packing": packing}
    data = DataConfig.model_validate({**settings, "prepare_processes": 1, "validation_fraction": 0.0})
    context = ExampleContext(64, Bytes().vocabulary())
    pipeline = PipelineSettings(data, OBJECTIVES["causal"](), context, seed=0, validation_batch_size=1)
    rows = open_data(pipeline, Bytes()).rows()
    LATENCY["seconds"] = 0.05
    WAITING["most"] = 0
    try:
        for batch in training_batches(rows, 8, np.arange(8), 0, 8, data):
            assert batch["tokens"].shape == (8, 64)
    finally:
        LATENCY["seconds"] = 0.0
        chunked_arrays.reading_context.cache_clear()
    assert WAITING["most"] > 1


@pytest.mark.slow
def test_an_object_that_vanishes_during_a_run_is_named_in_one_line(
    t5x_lite: Shell, tiny_config: Path, tmp_path: Path, bucket_environment: dict[str, str]
) -> None:
    overrides = (f"run_dir={tmp_path}/run", "data.cache_dir=gs://models/vanished")
    prepared = t5x_lite("prepare", tiny_config, *overrides, env=bucket_environment)
    assert prepared.returncode == 0, prepared.stderr
    store = gcsfs.core.GCSFileSystem(endpoint_url=bucket_environment["STORAGE_EMULATOR_HOST"], token="anon")
    (chunk,) = store.glob("models/vanished/text-*/train.tokens/c/0/0")
    store.rm_file(chunk)
    done = t5x_lite("train", tiny_config, *overrides, env=bucket_environment)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("t5x-lite")]
    assert re.search(r"gs://models/vanished/text-\w+/train.tokens: is damaged or cannot be reached: NOT_FOUND", line)
    assert re.search(r"delete gs://models/vanished/text-\w+, and the text is tokenised again", line)


@pytest.mark.slow
def test_damage_to_a_checkpoint_in_a_bucket_is_found(
    bucket_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each object of a checkpoint is flipped at some places, cut, deleted, and swapped with that of another."""
    for name, value in bucket_environment.items():
        monkeypatch.setenv(name, value)
    url = "gs://models/damage"
    checkpoints = save_steps(url, 3, 4)
    assert checkpoints.restore(shapes_of(make_state()))[0] == 4
    store, root = storage.open_store(url)
    names = sorted(name for name in store.find(f"{root}/4") if not name.endswith("/"))
    assert len(names) >= 5
    damages = 0
    for name in names:
        content = store.cat_file(name)
        changes: list[bytes | None] = [content[: len(content) // 2], None]
        for position in np.linspace(0, len(content) - 1, 3).astype(int).tolist():
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            changes.append(bytes(flipped))
        other = name.replace(f"{root}/4/", f"{root}/3/")
        if store.exists(other) and store.cat_file(other) != content:
            changes.append(store.cat_file(other))
        for change in changes:
            if change is None:
                store.rm_file(name)
            else:
                store.pipe_file(name, change)
            # A manifest may be changed in its metrics, which are for people.
            if name.endswith("manifest.json") and change is not None:
                with suppress(UserError):
                    assert checkpoints.restore(shapes_of(make_state()))[0] in {3, 4}
            else:
                assert checkpoints.restore(shapes_of(make_state()))[0] == 3
                damages += 1
        store.pipe_file(name, content)
    assert damages > 5 * len(names) - 10
    assert checkpoints.restore(shapes_of(make_state()))[0] == 4


@pytest.mark.slow
def test_a_killed_run_in_a_bucket_has_each_step_once_after_it_resumes(
    t5x_lite: Shell, tiny_config: Path, bucket_environment: dict[str, str]
) -> None:
    """A kill loses what was not uploaded: at most the steps after the newest checkpoint, which are trained again."""
    command = [sys.executable, "-m", "t5x_lite", "train", str(tiny_config), "run_dir=gs://models/runs/killed"]
    command += ["train.steps=80", "checkpoint.every_steps=5", "train.log_every_steps=1"]
    process = subprocess.Popen(command, env=bucket_environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    store = gcsfs.core.GCSFileSystem(
        endpoint_url=bucket_environment["STORAGE_EMULATOR_HOST"], token="anon", use_listings_cache=False
    )
    deadline = time.monotonic() + 280
    while not store.exists("models/runs/killed/checkpoints/10/manifest.json"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    done = t5x_lite(*command[3:], env=bucket_environment)
    assert done.returncode == 0, done.stderr
    assert "resumed from step" in done.stderr
    metrics = store.cat_file("models/runs/killed/metrics.jsonl").decode().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == list(range(1, 81))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run_dir=gs://no-such-bucket/run", "gs://no-such-bucket/run: cannot be"),
        ("data.cache_dir=gs://no-such-bucket/cache", "gs://no-such-bucket/cache"),
        (
            "run_dir=ftp://host/run",
            "ftp://host/run: ftp:// is not a known kind of storage; there are gs://, s3:// and local",
        ),
        ("run_dir=gs://", "gs://: names no bucket"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_named_in_one_line(
    t5x_lite: Shell, tiny_config: Path, bucket_environment: dict[str, str], tmp_path: Path, setting: str, message: str
) -> None:
    done = t5x_lite("train", tiny_config, f"run_dir={tmp_path}/run", setting, env=bucket_environment)
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if line.startswith("t5x-lite: ")]) == 1
    assert message in done.stderr


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t5x_lite.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"s3://bucket/run: needs s3fs: pip install 't5x_lite\[s3\]'"):
        local_copies.local_path("s3://bucket/run")


@pytest.fixture
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a bucket of an in-memory implementation of S3's interface."""
    s3fs = pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    emulator = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    emulator.start()
    host, port = emulator.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    store, _ = storage.open_store("s3://models")
    store.makedirs("models", exist_ok=True)
    yield "s3://models"
    emulator.stop()
    storage.open_store.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


def test_changed_files_of_a_folder_in_s3_are_uploaded_and_seen_by_another_machine(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{s3_bucket}/run"
    first_copies: dict[str, Any] = {}
    monkeypatch.setattr(local_copies, "_copies", first_copies)
    folder = local_copies.local_path(url)
    (folder / "eval" / "8").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    (folder / "eval" / "8" / "scores.json").write_text("{}")
    (folder / ".lock").write_text("")
    local_copies.upload_changes()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2}\n')
    local_copies.upload_changes()
    store, _ = storage.open_store(url)
    assert sorted(store.find("models/run")) == ["models/run/eval/8/scores.json", "models/run/metrics.jsonl"]

    monkeypatch.setattr(local_copies, "_copies", {})
    other_folder = local_copies.local_path(url)
    assert other_folder != folder
    assert (other_folder / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert local_copies.with_urls(f"{other_folder}/metrics.jsonl: is empty") == f"{url}/metrics.jsonl: is empty"
    store.rm("models/run/eval/8/scores.json")
    local_copies.upload_changes()  # uploads nothing that has not changed
    assert store.find("models/run") == ["models/run/metrics.jsonl"]


def test_a_run_in_s3_is_watched_while_it_grows(s3_bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    store, root = storage.open_store(s3_bucket)
    metrics = [json.dumps({"step": step, "loss": 1.0 / step}) + "\n" for step in (1, 2, 3)]
    store.pipe_file(f"{root}/watched/config.yaml", b"train: {steps: 4}\n")
    store.pipe_file(f"{root}/watched/metrics.jsonl", "".join(metrics[:2]).encode())
    for path in ("2/manifest.json", "3/data"):
        store.pipe_file(f"{root}/watched/checkpoints/{path}", b"{}")
    assert main(["watch", f"{s3_bucket}/watched", "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert (state["step"], state["steps"], state["loss"], state["checkpoint"]) == (2, 4, 0.5, 2)
    follower = MetricsFollower(f"{s3_bucket}/watched")
    assert follower.update()
    store.pipe_file(f"{root}/watched/metrics.jsonl", "".join(metrics).encode())
    assert follower.update()
    assert [record["step"] for record in follower.records] == [1, 2, 3]
    assert main(["watch", f"{s3_bucket}/absent", "--once"]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_changes_that_cannot_be_uploaded_are_kept_and_the_error_says_where(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_copies, "_copies", {})
    folder = local_copies.local_path(f"{s3_bucket}/run")
    uploaded = local_copies.local_path(f"{s3_bucket}/other")
    (folder / "metrics.jsonl").write_text("{}")
    store, _ = storage.open_store(f"{s3_bucket}/run")
    monkeypatch.setattr(store, "pipe_file", refuse_write)
    with pytest.raises(UserError, match=f"run: cannot be written: denied; what is not uploaded is in {folder.parent}"):
        local_copies.upload_changes()
    local_copies.finish()
    assert (folder / "metrics.jsonl").read_text() == "{}"
    assert not uploaded.exists()
    shutil.rmtree(folder.parent)


def refuse_write(path: str, content: bytes) -> None:
    raise PermissionError("denied")


def test_a_corpus_in_s3_is_the_one_on_a_disk(s3_bucket: str, prose: Path, tmp_path: Path) -> None:
    corpora = []
    for cache in (str(tmp_path), f"{s3_bucket}/cache"):
        settings = {"files": str(prose / "*.txt"), "cache_dir": cache, "packing": "documents", "prepare_processes": 1}
        data = DataConfig.model_validate(settings)
        folder = prepare_corpus(data.sources[0], data, Bytes())
        rule = RowRule(data, OBJECTIVES["causal"](), ExampleContext(64, Bytes().vocabulary()))
        statistics = prepare_rows(folder, rule)
        rows = open_rows(Corpus(folder, "train"), rule)
        corpora.append((statistics, [rows.read(row).tokens.tolist() for row in range(0, rows.rows, 10)]))
    assert corpora[0] == corpora[1]
    assert len(corpora[0][1]) > 5


def test_text_is_cleaned_in_s3_as_on_a_disk(s3_bucket: str, prose: Path, tmp_path: Path) -> None:
    corpora = []
    for cache in (str(tmp_path), f"{s3_bucket}/cache"):
        settings = {"files": str(prose / "*.txt"), "cache_dir": cache, "prepare_processes": 1}
        data = DataConfig.model_validate({**settings, "cleaning": ["exact", "c4_spans"]})
        folder = prepare_corpus(data.sources[0], data, Bytes())
        corpus = Corpus(folder, "train")
        tokens = corpus.read_spans([(0, corpus.tokens)])
        corpora.append((read_report(folder), tokens.tolist()))
    assert corpora[0] == corpora[1]
    report, _ = corpora[0]
    assert report is not None
    # The documents begin at each of 18 words.
    assert report.dropped["exact.duplicates"] == 60 - 18
    assert report.removals["c4_spans.repeated_sentences"] > 0


@pytest.mark.slow
def test_a_run_directory_in_s3_serves_every_command(
    t5x_lite: Shell, tiny_config: Path, tmp_path: Path, s3_bucket: str
) -> None:
    """Prepare, train, kill, resume, evaluate, generate and report; the checkpoints are on a disk."""
    overrides = [f"run_dir={s3_bucket}/run", f"data.cache_dir={s3_bucket}/cache", f"checkpoint.folder={tmp_path}"]
    overrides += ["train.steps=80", "checkpoint.every_steps=5", "train.log_every_steps=1"]
    prepared = t5x_lite("prepare", tiny_config, *overrides)
    assert prepared.returncode == 0, prepared.stderr
    command = [sys.executable, "-m", "t5x_lite", "train", str(tiny_config), *overrides]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 280
    while not (tmp_path / "10" / "manifest.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    resumed = t5x_lite("train", tiny_config, *overrides)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from step" in resumed.stderr
    assert "tokenising" not in resumed.stderr
    store, _ = storage.open_store(s3_bucket)
    metrics = store.cat_file("models/run/metrics.jsonl").decode().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == list(range(1, 81))
    scores = t5x_lite("eval", f"{s3_bucket}/run", "--json")
    assert json.loads(scores.stdout.splitlines()[0])["step"] == 80, scores.stderr
    generated = t5x_lite("generate", f"{s3_bucket}/run", "--prompt", "the", "--tokens", "3")
    assert generated.stdout.strip(), generated.stderr
    reported = t5x_lite("report", f"{s3_bucket}/run", "--to", tmp_path / "curves.png")
    assert reported.returncode == 0, reported.stderr


def test_checkpoints_are_refused_in_an_s3_that_tensorstore_would_not_find(s3_bucket: str) -> None:
    with pytest.raises(UserError, match=r"s3://models/run: .* AWS_ENDPOINT_URL names another; set checkpoint.folder"):
        Checkpoints(f"{s3_bucket}/run", CheckpointConfig())


def test_a_sweep_in_a_bucket_is_continued_on_another_machine(
    s3_bucket: str, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two runs was complete when the first machine was lost. The second one starts the other run alone."""
    path = tmp_path / "grid.yaml"
    axes = {"rate": {"optimizer.learning_rate": [0.1, 0.2]}}
    path.write_text(yaml.safe_dump({"config": str(tiny_config), "dir": f"{s3_bucket}/sweep", "axes": axes}))
    monkeypatch.setattr(local_copies, "_copies", {})
    first = sweep_config.load(path)
    runs = expand(first)
    runs_folder = "s3://models/sweep/runs"
    assert [run.run_dir for run in runs] == [f"{runs_folder}/learning-rate0.1", f"{runs_folder}/learning-rate0.2"]
    write_plan(first, runs)
    log = StatusLog(first.folder / "sweep.jsonl")
    log.set(runs[0].name, "done")
    log.set(runs[1].name, "diverged")
    local_copies.upload_changes()
    store, _ = storage.open_store(s3_bucket)
    line = {"step": runs[0].steps, "tokens": 10, "loss": 3.0, "eval/loss": 2.5}
    store.pipe_file("models/sweep/runs/learning-rate0.1/metrics.jsonl", json.dumps(line).encode() + b"\n")
    store.pipe_file(f"models/sweep/runs/learning-rate0.1/checkpoints/{runs[0].steps}/manifest.json", b"{}")

    monkeypatch.setattr(local_copies, "_copies", {})
    second = sweep_config.load(path)
    assert second.folder != first.folder
    assert not (second.folder / "runs").exists()
    second_log = StatusLog(second.folder / "sweep.jsonl")
    # The second run diverged, but its directory is gone.
    assert [launch.current_state(run, second_log) for run in runs] == ["done", "new"]
    store.pipe_file("models/sweep/runs/learning-rate0.2/config.yaml", b"")
    assert launch.current_state(runs[1], second_log) == "diverged"
    points = read_runs(second.folder).points
    assert points.names == ("learning-rate0.1",)
    assert points.loss.tolist() == [2.5]


def test_a_bucket_of_a_sweep_that_does_not_exist_is_named_in_one_line(
    t5x_lite: Shell, tiny_config: Path, tmp_path: Path, bucket_environment: dict[str, str]
) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"config": str(tiny_config), "dir": "gs://no-such-bucket/sweep"}))
    done = t5x_lite("sweep", path, "--yes", env=bucket_environment)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "gs://no-such-bucket/sweep: cannot be" in done.stderr


@pytest.mark.slow
def test_a_sweep_trains_in_a_bucket(
    t5x_lite: Shell, tiny_config: Path, tmp_path: Path, bucket_environment: dict[str, str]
) -> None:
    path = tmp_path / "grid.yaml"
    axes = {"rate": {"optimizer.learning_rate": [0.1, 0.2]}}
    settings = {"train.steps": 3}
    path.write_text(
        yaml.safe_dump({"config": str(tiny_config), "dir": "gs://models/sweep", "axes": axes, "set": settings})
    )
    done = t5x_lite("sweep", path, "--yes", env=bucket_environment)
    assert done.returncode == 0, done.stderr
    store = gcsfs.core.GCSFileSystem(
        endpoint_url=bucket_environment["STORAGE_EMULATOR_HOST"], token="anon", use_listings_cache=False
    )
    assert {"plan.json", "sweep.jsonl", "runs", "logs"} <= {
        name.rpartition("/")[2] for name in store.ls("models/sweep")
    }
    for rate in ("0.1", "0.2"):
        metrics = store.cat_file(f"models/sweep/runs/learning-rate{rate}/metrics.jsonl").decode().splitlines()
        assert [json.loads(line)["step"] for line in metrics] == [1, 2, 3]
    again = t5x_lite("sweep", path, "--yes", env=bucket_environment)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr
