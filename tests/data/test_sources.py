"""Documents from every kind of file, and the errors for files that cannot be read."""

import gzip
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from backports import zstd
from pyarrow import parquet

from t5x_lite.data import sources, unit_readers
from t5x_lite.data.config import SourceConfig
from t5x_lite.data.record_text import FIELD_BORDER
from t5x_lite.errors import UserError

TEXTS = ["first\nline two", "second", "dritter – ünï", "fourth"]


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd.compress,
}


def read(folder: Path, pattern: str, *, unit_bytes: int = sources.UNIT_BYTES, **settings: object) -> list[str]:
    """The texts of all documents in some files."""
    source = SourceConfig.model_validate({"files": str(folder / pattern), **settings})
    units = sources.units(source, unit_bytes=unit_bytes)
    return [text for unit in units for _, text in unit_readers.documents(unit)]


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


@pytest.mark.parametrize(
    ("pattern", "fields"),
    [
        ("newstest.{}.detok", ["de", "en"]),
        ("train.{}.tokenized", ["en", "de"]),
        ("de-en_{}.txt", ["de", "en"]),
        ("pt-br.{}-clean", ["pt-br", "en"]),
        ("a+b.{}", ["a+b", "en"]),
        ("train{}", ["de", "en"]),
    ],
)
def test_a_field_is_replaced_where_it_stands_in_the_names_of_parallel_files(
    tmp_path: Path, pattern: str, fields: list[str]
) -> None:
    for field in fields:
        (tmp_path / pattern.replace("{}", field)).write_text(f"one of {field}\n")
    expected = [f"one of {fields[0]}{FIELD_BORDER}one of {fields[1]}"]
    assert read(tmp_path, pattern, format="parallel", field=fields) == expected


def test_units_cut_large_files_at_lines_and_join_small_ones(tmp_path: Path) -> None:
    texts = [f"line {n} " + "x" * (n % 37) for n in range(200)]
    (tmp_path / "big.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    large = SourceConfig(files=(str(tmp_path / "big.jsonl"),))
    units = sources.units(large, unit_bytes=100, smallest_unit=100)
    assert len(units) > 20
    assert [text for unit in units for _, text in unit_readers.documents(unit)] == texts
    for n in range(9):
        (tmp_path / f"{n}.txt").write_text("y" * 30)
    small = SourceConfig(files=(str(tmp_path / "*.txt"),))
    units = sources.units(small, unit_bytes=100, smallest_unit=100)
    assert [len(unit.paths) for unit in units] == [3, 3, 3]


def test_an_empty_file_after_a_cut_one_does_not_repeat_its_text(tmp_path: Path) -> None:
    texts = [f"line {n}" for n in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "b.jsonl").write_text("")
    (tmp_path / "c.jsonl").write_text('{"text": "last"}\n')
    units = sources.units(SourceConfig(files=(str(tmp_path / "*.jsonl"),)), unit_bytes=100, smallest_unit=100)
    assert [text for unit in units for _, text in unit_readers.documents(unit)] == [*texts, "last"]


SKIPPABLE_FRAME = bytes.fromhex("502a4d18") + (3).to_bytes(4, "little") + b"abc"
"""RFC 8878, §3.1.2: a magic number, the size of the content, the content."""


def test_compressed_files_of_several_members_are_read_to_their_end(tmp_path: Path) -> None:
    first = "one\n" * 50_000
    second = "two\n" * 50_000
    for ending, compress in (("gz", gzip.compress), ("zst", zstd.compress)):
        members = compress(first.encode()) + compress(second.encode())
        (tmp_path / f"members.txt.{ending}").write_bytes(members)
        assert read(tmp_path, f"members.txt.{ending}") == [first + second]
    frames = SKIPPABLE_FRAME + zstd.compress(first.encode()) + SKIPPABLE_FRAME
    (tmp_path / "frames.txt.zst").write_bytes(frames)
    assert read(tmp_path, "frames.txt.zst") == [first]


@pytest.mark.parametrize("ending", ["gz", "zst"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_an_incomplete_or_changed_compressed_file_is_an_error(ending: str, name: str, tmp_path: Path) -> None:
    rows = [{"text": f"line {number} of some text"} for number in range(20_000)]
    if name == "a.parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "plain")
        content = (tmp_path / "plain").read_bytes()
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    checked = {zstd.CompressionParameter.checksum_flag: 1}
    compressed = gzip.compress(content) if ending == "gz" else zstd.compress(content, options=checked)
    middle = len(compressed) // 2
    changed = bytearray(compressed)
    changed[-3] ^= 1  # in the checksum of both formats
    for damaged in (compressed[:-1], compressed[:middle], compressed[: middle + 7], bytes(changed)):
        (tmp_path / f"{name}.{ending}").write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{name}.{ending}: "):
            read(tmp_path, f"{name}.{ending}")


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.txt").write_bytes(mark + b"text\nmore")
    (tmp_path / "a.jsonl").write_bytes(mark + b'{"text": "text"}\n')
    assert read(tmp_path, "a.txt") == ["text\nmore"]
    assert read(tmp_path, "a.txt", document="line") == ["text", "more"]
    assert read(tmp_path, "a.jsonl") == ["text"]


def test_a_surrogate_without_a_partner_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(r'{"text": "a \ud800 b \ud83d\ude00"}')
    assert read(tmp_path, "a.jsonl") == ["a \ufffd b \U0001f600"]


@pytest.mark.parametrize("line", ["[" * 100_000, '{"text": ' + "9" * 5_000 + "}"])
def test_json_beyond_the_limits_of_the_parser_is_named_by_file_and_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + line)
    with pytest.raises(UserError, match=r"a\.jsonl:2: "):
        read(tmp_path, "a.jsonl")


def test_a_file_is_named_exactly_or_by_a_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part [1].txt").write_text("brackets")
    (tmp_path / "a.JSONL").write_text('{"text": "capitals"}')
    assert read(tmp_path, "part [1].txt") == ["brackets"]
    assert read(tmp_path, "a.JSONL") == ["capitals"]
    monkeypatch.setenv("HOME", str(tmp_path))
    source = SourceConfig(files=("~/part [1].txt",))
    assert [text for unit in sources.units(source) for _, text in unit_readers.documents(unit)] == ["brackets"]


def test_what_is_not_a_file_of_text_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "text.txt.xz").write_bytes(b"")
    (tmp_path / "link.txt").symlink_to(tmp_path / "nowhere.txt")
    for pattern, message in (
        ("folder", r"folder is a folder; name its files, as in .*folder/\*\*/\*\.txt"),
        ("table.csv", r"table\.csv is not read, because \.csv is not a format of text; .* data\.format=text"),
        ("text.txt.xz", r"\.xz is not a format of text"),
        ("*.txt", r"link\.txt is a link without its file"),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path, pattern)
    assert read(tmp_path, "table.csv", format="text") == ["a,b\n1,2\n"]


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
    path.write_text('{"text": "x"}\n{"text": "trunc\n')
    with pytest.raises(UserError, match=rf"{path}:2: not a JSON object: Invalid control character, column 16$"):
        read(tmp_path, "a.jsonl")
    path.write_text('{"text": "x"}\n[1, 2]\n')
    with pytest.raises(UserError, match=rf"{path}:2: expected a JSON object, found list \[1, 2\]$"):
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
    documents = [document for unit in units for document in unit_readers.documents(unit)]
    decoder_sources = [text for path, text in documents if path.endswith("json/decoder.py")]
    assert "class JSONDecoder" in decoder_sources[0]
    topics = [text for path, text in documents if path.endswith("topics.py")]
    assert len(topics) > 50


@pytest.mark.slow
def test_tfds_is_read_and_trained_on_without_tensorflow(tmp_path: Path, tiny_config: Path) -> None:
    code = f"""
import sys
import tensorflow_datasets as tfds
from t5x_lite.data.config import SourceConfig
from t5x_lite.data import sources, unit_readers

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
texts = sorted(text for unit in sources.units(source) for _, text in unit_readers.documents(unit))
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
    texts = [text for unit in sources.units(source) for _, text in unit_readers.documents(unit)]
    assert len(texts) == 1000
    assert all(texts)
    with pytest.raises(UserError, match="'trian'"):
        sources.units(source.model_copy(update={"split": "trian"}))


def test_endings_in_capitals_are_those_in_small_letters(tmp_path: Path) -> None:
    (tmp_path / "A.JSONL.GZ").write_bytes(gzip.compress(b'{"text": "one"}\n'))
    (tmp_path / "B.Jsonl.ZST").write_bytes(zstd.compress(b'{"text": "two"}\n'))
    assert read(tmp_path, "*") == ["one", "two"]


def test_a_file_that_two_patterns_match_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    source = SourceConfig.model_validate({"files": [str(tmp_path / "a.txt"), str(tmp_path / "*.txt")]})
    (tmp_path / "b").symlink_to(tmp_path)
    same = SourceConfig.model_validate({"files": [str(tmp_path / "a.txt"), str(tmp_path / "b" / "a.txt")]})
    with pytest.raises(UserError, match=r"a.txt = .*/b/a.txt is named by 2 patterns and would be read as often"):
        sources.units(same)
    with pytest.raises(UserError, match=r"a.txt is named by 2 patterns and would be read as often"):
        sources.units(source)


def test_a_null_is_named_with_its_record(tmp_path: Path) -> None:
    """The third record of the file is the first of its second row group."""
    table = pyarrow.table({"text": ["one", "two", None]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    with pytest.raises(UserError, match=r"a.parquet record 2: field 'text' is null; remove the record"):
        read(tmp_path, "a.parquet", unit_bytes=1)
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": null}\n')
    with pytest.raises(UserError, match=r"b.jsonl:2: field 'text' is null; remove the record"):
        read(tmp_path, "b.jsonl")


def test_lines_of_samples_in_a_tar_file_are_read_once(tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="pip install -e '.[webdataset]'")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(20):
            content = f"first line of {number}\nsecond line of {number}\n".encode()
            member = tarfile.TarInfo(f"{number:03}.txt")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    texts = read(tmp_path, "a.tar", field="txt", document="line", unit_bytes=2000)
    assert len(texts) == len(set(texts)) == 20
