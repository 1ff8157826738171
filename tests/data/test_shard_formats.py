"""WebDataset's tar files, written by tarfile, and MosaicML's MDS: `mds/` was written by mosaicml-streaming 0.13.0."""

import bz2
import gzip
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from t5x_lite import storage
from t5x_lite.cli import main
from t5x_lite.data import mds
from t5x_lite.data.config import SourceConfig
from t5x_lite.data.sources import units
from t5x_lite.data.unit_readers import documents
from t5x_lite.doctor.run_checks import check_files
from t5x_lite.errors import UserError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MDS = Path(__file__).parent / "mds"
MDS_TEXTS = ["a fox", "über", "the dog", ""]
"""The texts that the library was called with, in this order."""


def read(source: SourceConfig, smallest_unit: int = 2**20) -> list[list[str]]:
    return [[text for _, text in documents(unit)] for unit in units(source, smallest_unit=smallest_unit)]


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


TAR_FILES = {
    "shard/000.txt": "a fox é".encode(),
    "shard/000.json": b'{"title": "Fox", "text": "from json"}',
    "shard/001.seg.txt": b"not this",
    "shard/001.txt": b"the dog",
    "shard/001.json": b'{"title": "Dog", "text": "also json"}',
    "__meta__/000.txt": b"not a sample",
}


def test_samples_of_tar_files_are_grouped_by_their_keys(tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="the extra webdataset is not installed")
    write_tar(tmp_path / "a.tar", TAR_FILES)
    write_tar(tmp_path / "b.tar.gz", {"2.txt": b"compressed", "2.json": b'{"text": "c"}'}, "w:gz")
    source = SourceConfig(files=(f"{tmp_path}/*.tar*",), field=("txt",))
    assert read(source) == [["a fox é", "the dog", "compressed"]]
    assert read(source, smallest_unit=1) == [["a fox é", "the dog"], ["compressed"]]
    assert read(source.model_copy(update={"field": ("text",)})) == [["from json", "also json", "c"]]
    assert read(source.model_copy(update={"field": ("title", "txt"), "files": (f"{tmp_path}/a.tar",)})) == [
        ["Fox\x1ea fox é", "Dog\x1ethe dog"]
    ]


def test_prepare_tokenises_tar_files(tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("webdataset", reason="the extra webdataset is not installed")
    write_tar(tmp_path / "a.tar", TAR_FILES)
    words = [f"data.files={tmp_path}/*.tar", "data.field=txt", "tokenizer=bytes", "data.validation_fraction=0"]
    words += [f"data.cache_dir={tmp_path}/cache", "train.seq_len=4", "data.prepare_processes=1", "--json"]
    assert main(["prepare", str(tiny_config), *words]) == 0
    prepared = json.loads(capsys.readouterr().out)
    assert prepared["documents"] == 2
    assert prepared["tokens"] == len("a fox é".encode()) + len("the dog") + 2


def test_damaged_tar_files_and_missing_fields_are_named(tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="the extra webdataset is not installed")
    path = tmp_path / "a.tar"
    source = SourceConfig(files=(str(path),), field=("txt",))
    write_tar(path, {"0.txt": b"x" * 2000})
    content = path.read_bytes()
    path.write_bytes(content[:1000])
    with pytest.raises(UserError, match=r"a\.tar: cannot be read as a tar file"):
        read(source)
    path.write_bytes(b"no tar file" * 100)
    with pytest.raises(UserError, match=r"a\.tar: cannot be read as a tar file"):
        read(source)
    write_tar(path, {"0.md": b"x"})
    with pytest.raises(UserError, match=r"a\.tar sample 0: no field 'txt' \(found __key__, __url__, md\)"):
        read(source)
    write_tar(path, {"0.json": b"{"})
    with pytest.raises(UserError, match=r"a\.tar sample 0: its \.json cannot be read"):
        read(source)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "a.tar", TAR_FILES)
    monkeypatch.setattr("t5x_lite.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs webdataset: pip install 't5x_lite\[webdataset\]'"):
        read(SourceConfig(files=(f"{tmp_path}/a.tar",)))
    with pytest.raises(UserError, match="needs webdataset"):
        check_files(SourceConfig(files=(f"{tmp_path}/a.tar",)))


def test_mds_of_the_library_is_read(tmp_path: Path) -> None:
    for name in (MDS, MDS / "index.json"):
        source = SourceConfig(files=(str(name),), format="mds")
        assert [text for unit in read(source) for text in unit] == MDS_TEXTS
        assert len(read(source, smallest_unit=1)) == len(list(MDS.glob("*.mds")))
        assert [text for unit in read(source, smallest_unit=1) for text in unit] == MDS_TEXTS
    shutil.copytree(MDS, tmp_path / "a")
    shutil.copytree(MDS, tmp_path / "b")
    both = SourceConfig(files=(f"{tmp_path}/*",), format="mds")
    assert [text for unit in read(both) for text in unit] == MDS_TEXTS * 2


@pytest.mark.parametrize(
    ("compression", "compress"), [("zstd:3", zstd.compress), ("gz", gzip.compress), ("bz2:9", bz2.compress)]
)
def test_compressed_mds_is_read(tmp_path: Path, compression: str, compress) -> None:  # type: ignore[no-untyped-def]
    index = json.loads((MDS / "index.json").read_text())
    for shard in index["shards"]:
        name = shard["raw_data"]["basename"]
        content = compress((MDS / name).read_bytes())
        shard["compression"] = compression
        shard["zip_data"] = {"basename": f"{name}.{compression[:3]}", "bytes": len(content), "hashes": {}}
        (tmp_path / shard["zip_data"]["basename"]).write_bytes(content)
    (tmp_path / "index.json").write_text(json.dumps(index))
    source = SourceConfig(files=(str(tmp_path),), format="mds")
    before = [unit.identity for unit in units(source)]
    assert [text for unit in read(source) for text in unit] == MDS_TEXTS
    (tmp_path / shard["zip_data"]["basename"]).write_bytes(content + b" ")
    assert [unit.identity for unit in units(source)] != before
    shard["compression"] = "br"
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"index\.json: .* compression br is not one of bz2, gz, zstd"):
        units(source)


def test_shards_in_a_bucket_are_found_by_one_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(storage.EXTRAS, "memory", ("test", "fsspec"))
    bucket, _ = storage.open_store("memory://shards")
    *others, last = sorted(MDS.glob("*.mds"))
    index = json.loads((MDS / "index.json").read_text())
    for shard in index["shards"]:
        shard |= {"compression": "gz", "zip_data": {"basename": shard["raw_data"]["basename"] + ".gz", "bytes": 1}}
    bucket.pipe_file("/shards/index.json", json.dumps(index).encode())
    bucket.pipe({f"/shards/{shard.name}": shard.read_bytes() for shard in others})
    bucket.pipe_file(f"/shards/{last.name}.gz", gzip.compress(last.read_bytes()))
    source = SourceConfig(files=("memory://shards",), format="mds")
    assert [text for unit in read(source) for text in unit] == MDS_TEXTS
    requests: list[str] = []
    for name in ("glob", "info", "isfile", "exists"):
        answer = getattr(bucket, name)

        def answer_and_note(path: str, *arguments: object, name: str = name, answer=answer, **options: object):  # type: ignore[no-untyped-def]
            requests.append(f"{name} {path}")
            return answer(path, *arguments, **options)

        monkeypatch.setattr(bucket, name, answer_and_note)

    def identities() -> list[str]:
        requests.clear()
        monkeypatch.setattr(storage, "_listed", {})
        mds._list_folder.cache_clear()
        return [unit.identity for unit in units(source, smallest_unit=1)]

    before = identities()
    assert len(before) == len(others) + 1
    assert requests.count("glob /shards/*") == 1
    assert not [request for request in requests if ".mds" in request]
    assert identities() == before
    bucket.pipe_file(f"/shards/{last.name}.gz", gzip.compress(last.read_bytes()) + b"more")
    after = identities()
    assert after[:-1] == before[:-1]
    assert after[-1] != before[-1]


def test_damaged_mds_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    shutil.copytree(MDS, folder)
    source = SourceConfig(files=(str(folder),), format="mds")
    with pytest.raises(UserError, match=r"column 'id' has the encoding int, expected str; set data\.field"):
        read(source.model_copy(update={"field": ("id",)}))
    with pytest.raises(UserError, match=r"shard\.0000\d\.mds record 0: no field 'story' \(found "):
        read(source.model_copy(update={"field": ("story",)}))
    shard = sorted(folder.glob("*.mds"))[1]
    content = shard.read_bytes()
    for size in range(0, len(content), 7):
        shard.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"shard\.00001\.mds: is damaged: it has"):
            read(source)
    for place in range(8):  # the number of samples, and where the first begins
        shard.write_bytes(content[:place] + bytes([content[place] ^ 0x81]) + content[place + 1 :])
        with pytest.raises(UserError, match=r"shard\.00001\.mds: is damaged"):
            read(source)
    shard.unlink()
    with pytest.raises(UserError, match=r"shard\.00001\.mds: cannot be read"):
        read(source)
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["raw_data"]["basename"] = "../x.mds"
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"index\.json: .* is not the name of a file in the folder"):
        units(source)
    (folder / "index.json").write_text("[]")
    with pytest.raises(UserError, match=r"index\.json: is not an index of MDS"):
        units(source)
    (folder / "index.json").unlink()
    with pytest.raises(UserError, match=r"no file matches .*index\.json"):
        units(source)
    with pytest.raises(UserError, match=r"name the folder, and set data\.format=mds"):
        units(SourceConfig(files=(f"{MDS}/*.mds",)))
