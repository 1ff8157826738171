"""Checkpoints in a bucket: a real run against Google Cloud Storage's interface, in memory."""

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
not_found = pytest.importorskip("gcp_storage_emulator.exceptions").NotFound


def with_generations(patch: pytest.MonkeyPatch) -> None:
    """Conditional writes, which TensorStore's transactions are made of and the emulator does not know."""
    objects, lock = server.objects, threading.Lock()
    upload, download = objects._media_upload, objects.download

    def generation(storage: Any, request: Any, name: str) -> str:
        try:
            return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
        except not_found:
            return "0"

    def conditional(request: Any, response: Any, storage: Any) -> None:
        with lock:
            wanted = request.query.get("ifGenerationMatch")
            if wanted and wanted[0] != generation(storage, request, request.query["name"][0]):
                response.status = HTTPStatus.PRECONDITION_FAILED
                return
            upload(request, response, storage)

    def numbered(request: Any, response: Any, storage: Any, *more: Any, **named: Any) -> None:
        with lock:
            response["x-goog-generation"] = generation(storage, request, request.params["object_id"])
            download(request, response, storage, *more, **named)

    patch.setattr(objects, "_media_upload", conditional)
    patch.setattr(objects, "download", numbered)


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """What the libraries of both sides (gcsfs, TensorStore) must find in the environment."""
    patch = pytest.MonkeyPatch()
    with_generations(patch)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = server.create_server("127.0.0.1", port, in_memory=True, default_bucket="models")
    made.start()
    at = f"http://127.0.0.1:{port}"
    names = {"STORAGE_EMULATOR_HOST": at, "TENSORSTORE_GCS_HTTP_URL": at, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none"}
    yield os.environ | names
    made.stop()
    patch.undo()


@pytest.mark.slow
def test_a_run_saves_to_a_bucket_and_resumes_from_it(
    t5x_lite: Shell, tiny_config: Path, tiny_run: Path, tmp_path: Path, bucket: dict[str, str]
) -> None:
    more = (f"run_dir={tmp_path}/run", "checkpoint.folder=gs://models/runs/tiny", "optimizer.schedule=constant")
    first = t5x_lite("train", tiny_config, *more, "train.steps=6", env=bucket)
    assert first.returncode == 0, first.stderr
    again = t5x_lite("train", tiny_config, *more, "train.allow_changed_config=true", env=bucket)
    assert again.returncode == 0, again.stderr
    assert "resumed from step 6" in again.stderr
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, 13))
    assert not (tmp_path / "run" / "checkpoints").exists()
    found = t5x_lite("eval", tmp_path / "run", "--json", env=bucket)
    assert found.returncode == 0, found.stderr
    # Two are kept, and the best.
    files = gcsfs.GCSFileSystem(endpoint_url=bucket["STORAGE_EMULATOR_HOST"], token="anon").ls("models/runs/tiny")
    assert {path.rpartition("/")[2] for path in files} >= {"8", "12"}
