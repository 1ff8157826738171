"""Documents from every kind of file, and the errors for files that cannot be read."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from t5x_lite.data import sources
from t5x_lite.data.config import SourceConfig
from t5x_lite.errors import UserError

TEXTS = ["first\nline two", "second", "dritter – ünï", "fourth"]


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def read(folder: Path, pattern: str, *, unit_bytes: int = sources.UNIT_BYTES, **settings: object) -> list[str]:
    """The texts of all documents in some files."""
    source = SourceConfig.model_validate({"files": str(folder / pattern), **settings})
    units = sources.units(source, unit_bytes=unit_bytes)
    return [text for unit in units for _, text in sources.documents(unit)]


@pytest.mark.parametrize("ending", COMPRESS)
def test_text_jsonl_and_parquet_plain_and_compressed(tmp_path: Path, ending: str) -> None:
    compress = COMPRESS[ending]
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt{ending}").write_bytes(compress(text.encode()))
    assert read(tmp_path, f"*.txt{ending}") == TEXTS
    lines = [json.dumps({"id": n, "body": text}) for n, text in enumerate(TEXTS)]
    (tmp_path / f"all.jsonl{ending}").write_bytes(compress(("\n".join(lines) + "\n\n").encode()))
    assert read(tmp_path, f"*.jsonl{ending}", field="body") == TEXTS
    parquet.write_table(pyarrow.table({"body": TEXTS}), tmp_path / "plain", row_group_size=2)
    (tmp_path / f"all.parquet{ending}").write_bytes(compress((tmp_path / "plain").read_bytes()))
    assert read(tmp_path, f"*.parquet{ending}", field="body") == TEXTS


def test_a_document_is_a_file_a_line_or_a_paragraph(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\nthree\n")
    assert read(tmp_path, "a.txt") == ["one\ntwo\n\n\nthree\n"]
    assert read(tmp_path, "a.txt", document="line") == ["one", "two", "", "", "three"]
    assert read(tmp_path, "a.txt", document="paragraph") == ["one\ntwo", "three"]


def test_units_cut_large_files_at_lines_and_join_small_ones(tmp_path: Path) -> None:
    texts = [f"line {n} " + "x" * (n % 37) for n in range(200)]
    (tmp_path / "big.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    large = SourceConfig(files=(str(tmp_path / "big.jsonl"),))
    units = sources.units(large, unit_bytes=100, smallest_unit=100)
    assert len(units) > 20
    assert [text for unit in units for _, text in sources.documents(unit)] == texts
    for n in range(9):
        (tmp_path / f"{n}.txt").write_text("y" * 30)
    small = SourceConfig(files=(str(tmp_path / "*.txt"),))
    units = sources.units(small, unit_bytes=100, smallest_unit=100)
    assert [len(unit.paths) for unit in units] == [3, 3, 3]


def test_invalid_utf8_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good \xff\xfe bad")
    assert read(tmp_path, "a.txt") == ["good \ufffd\ufffd bad"]


def test_a_line_that_does_not_parse_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n' * 6 + "{nonsense\n")
    with pytest.raises(UserError, match=rf"{path}:7: not a JSON object"):
        read(tmp_path, "a.jsonl")
    with pytest.raises(UserError, match=rf"{path}:7: not a JSON object"):
        read(tmp_path, "a.jsonl", unit_bytes=30)
    path.write_text('{"text": "x"}\n{"txt": "x"}\n')
    with pytest.raises(UserError, match=rf"{path}:2: no field 'text' \(found txt\); set data.field"):
        read(tmp_path, "a.jsonl")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file matches"):
        read(tmp_path, "*.txt")
    for name in ("a.txt.gz", "a.parquet", "a.txt.zst"):
        (tmp_path / name).write_bytes(b"not what the name says")
        with pytest.raises(UserError, match=name):
            read(tmp_path, name)
    with pytest.raises(UserError, match=r"data\.files"):
        sources.units(SourceConfig())


def test_the_standard_library_has_source_and_documentation() -> None:
    units = sources.units(SourceConfig(files=("python:standard_library",)))
    documents = [document for unit in units for document in sources.documents(unit)]
    decoder_sources = [text for path, text in documents if path.endswith("json/decoder.py")]
    assert "class JSONDecoder" in decoder_sources[0]
    topics = [text for path, text in documents if path.endswith("topics.py")]
    assert len(topics) > 50


def test_tfds_is_read_and_trained_on_without_tensorflow(tmp_path: Path, tiny_config: Path) -> None:
    code = f"""
import sys
import tensorflow_datasets as tfds
from t5x_lite.data.config import SourceConfig
from t5x_lite.data import sources

class Texts(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        features = tfds.features.FeaturesDict({{"body": tfds.features.Text()}})
        return tfds.core.DatasetInfo(builder=self, features=features)
    def _split_generators(self, manager):
        return {{"train": self._generate_examples()}}
    def _generate_examples(self):
        for n in range(5):
            yield n, {{"body": f"text {{n}} ü"}}

builder = Texts(data_dir={str(tmp_path)!r}, file_format="array_record")
builder.download_and_prepare()
source = SourceConfig(files=(str(builder.data_dir),), format="tfds", field="body")
texts = sorted(text for unit in sources.units(source) for _, text in sources.documents(unit))
assert texts == [f"text {{n}} ü" for n in range(5)], texts

from t5x_lite.cli import main
settings = ["data.files={tmp_path}/texts/1.0.0", "data.format=tfds", "data.field=body", "tokenizer=character"]
settings += ["data.validation_by=position", "train.steps=1", "train.seq_len=4", "run_dir={tmp_path}/run"]
assert main(["train", {str(tiny_config)!r}, *settings, "data.cache_dir={tmp_path}/cache"]) == 0
assert "tensorflow" not in sys.modules
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_real_c4_pages(real_data: Path) -> None:
    source = SourceConfig(files=(str(real_data / "c4_minimal/c4/en/3.0.1"),), format="tfds")
    texts = [text for unit in sources.units(source) for _, text in sources.documents(unit)]
    assert len(texts) == 1000
    assert all(texts)
    with pytest.raises(UserError, match="'trian'"):
        sources.units(source.model_copy(update={"split": "trian"}))
