"""Checkpoints in a bucket: a real run against an in-memory implementation of Google Cloud Storage's interface."""

import os
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Shell, lines

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


@pytest.fixture(scope="module")
def bucket_environment() -> Iterator[dict[str, str]]:
    """The environment variables with which gcsfs and TensorStore find the emulated bucket."""
    patch = pytest.MonkeyPatch()
    add_conditional_writes(patch)
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
    store = gcsfs.GCSFileSystem(endpoint_url=bucket_environment["STORAGE_EMULATOR_HOST"], token="anon")
    names = {path.rpartition("/")[2] for path in store.ls("models/runs/tiny")}
    assert names >= {"8", "12"}
