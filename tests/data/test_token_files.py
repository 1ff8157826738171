"""Files of token ids that other programs write, built here from the descriptions of their formats."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.config import TOKEN_FORMATS
from t5x_lite.data.sources import Unit, units
from t5x_lite.data.token_documents import token_documents
from t5x_lite.data.token_files import TOKEN_FILES
from t5x_lite.errors import UserError

EOS = 1
"""Of ByT5 (Xue et al. 2022): pad 0, EOS 1, unk 2, and byte b is b + 3."""
TEXTS = ["a fox", "b", "the dog"]


def ids(text: str) -> list[int]:
    return [byte + 3 for byte in text.encode()]


def write_megatron(prefix: Path, documents: list[list[list[int]]], code: int, letter: str) -> None:
    """Write documents of sequences as Megatron's `IndexedDatasetBuilder` does."""
    sequences = [sequence for document in documents for sequence in document]
    content = b"".join(struct.pack(f"<{len(sequence)}{letter}", *sequence) for sequence in sequences)
    prefix.with_suffix(".bin").write_bytes(content)
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sequences), len(documents) + 1)
    for sequence in sequences:
        index += struct.pack("<i", len(sequence))
    position = 0
    for sequence in sequences:
        index += struct.pack("<q", position)
        position += len(sequence) * struct.calcsize(letter)
    border = 0
    index += struct.pack("<q", 0)
    for document in documents:
        border += len(document)
        index += struct.pack("<q", border)
    prefix.with_suffix(".idx").write_bytes(index)


def write_llmc(path: Path, tokens: list[int], magic: int, version: int, letter: str) -> None:
    header = struct.pack("<256i", magic, version, len(tokens), *[0] * 253)
    path.write_bytes(header + struct.pack(f"<{len(tokens)}{letter}", *tokens))


def read(path: Path, file_format: str, start: int = 0, stop: int = -1) -> list[list[int]]:
    unit = Unit((str(path),), file_format, ("text",), "file", "train", start, stop)
    return [document.tolist() for document in token_documents(unit, Bytes())]


def test_the_formats_of_the_config_are_those_that_are_read() -> None:
    assert tuple(TOKEN_FILES) == TOKEN_FORMATS


@pytest.mark.parametrize(("code", "letter"), [(4, "i"), (8, "H"), (5, "q"), (1, "B")])
def test_documents_of_megatron_are_those_of_its_index(tmp_path: Path, code: int, letter: str) -> None:
    documents = [[[*ids("a fox"), EOS]], [ids("b"), [*ids("c"), EOS]], [ids("the dog")]]  # the last without EOS
    write_megatron(tmp_path / "x", documents, code, letter)
    assert read(tmp_path / "x.bin", "megatron") == [ids("a fox"), ids("bc"), ids("the dog")]


def test_the_end_of_text_ends_documents_of_nanogpt_and_begins_those_of_llmc(tmp_path: Path) -> None:
    ended = [token for text in TEXTS for token in [*ids(text), EOS]]
    (tmp_path / "train.bin").write_bytes(struct.pack(f"<{len(ended)}H", *ended))
    begun = [token for text in TEXTS for token in [EOS, *ids(text)]]
    write_llmc(tmp_path / "gpt2.bin", begun, 20240520, 1, "H")
    write_llmc(tmp_path / "llama3.bin", begun, 20240801, 7, "I")
    expected = [ids(text) for text in TEXTS]
    assert read(tmp_path / "train.bin", "nanogpt") == expected
    assert read(tmp_path / "gpt2.bin", "llmc") == expected
    assert read(tmp_path / "llama3.bin", "llmc") == expected


@pytest.mark.parametrize("file_format", ["nanogpt", "megatron"])
def test_each_document_is_in_one_of_the_units_wherever_a_file_is_cut(tmp_path: Path, file_format: str) -> None:
    stream = [token for text in TEXTS for token in [*ids(text), EOS]]
    write_megatron(tmp_path / "train", [[[*ids(text), EOS]] for text in TEXTS], 8, "H")
    path = tmp_path / "train.bin"
    for cut in range(len(stream) + 1):
        pieces = read(path, file_format, 0, cut) + read(path, file_format, cut, len(stream))
        assert pieces == [ids(text) for text in TEXTS]


def test_large_files_are_cut_at_tokens(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(struct.pack("<4000H", *[5] * 4000))
    config = configuration.DataConfig(files=(str(tmp_path / "train.bin"),), format="nanogpt")
    ranges = [(unit.start, unit.stop) for unit in units(config, unit_bytes=4000, smallest_unit=4000)]
    assert ranges == [(start, start + 1000) for start in range(0, 4000, 1000)]


def test_an_id_that_the_tokenizer_lacks_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(struct.pack("<5H", 100, EOS, 100, 50256, EOS))
    with pytest.raises(UserError, match=r"train\.bin: token 3 has the id 50256, but the tokenizer has"):
        read(tmp_path / "train.bin", "nanogpt")


@pytest.mark.parametrize(
    ("content", "file_format", "message"),
    [
        (b"\x05\x00\x05", "nanogpt", "no whole number of uint16"),
        (struct.pack("<256i", 20240520, 1, 2, *[0] * 253) + b"1234", "nanogpt", "set data.format=llmc"),
        (b"", "llmc", "shorter than the header"),
        (
            struct.pack("<256i", 20240520, 1, 3, *[0] * 253) + b"1234",
            "llmc",
            "3 tokens need 1,030 bytes, and it has 1,028",
        ),
        (struct.pack("<256i", 20240520, 2, 2, *[0] * 253) + b"1234", "llmc", "version 2 .* version 1 is read"),
        (struct.pack("<256i", 7, 1, 2, *[0] * 253) + b"1234", "llmc", "begins with 7"),
        (b"1234", "megatron", r"x\.idx: cannot be read: No such file"),
    ],
)
def test_a_file_of_another_format_or_a_damaged_one_is_refused(
    tmp_path: Path, content: bytes, file_format: str, message: str
) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "x.bin", file_format)


def test_every_cut_of_an_index_of_megatron_is_refused(tmp_path: Path) -> None:
    write_megatron(tmp_path / "x", [[[5, 6]], [[7]]], 8, "H")
    index = (tmp_path / "x.idx").read_bytes()
    for size in range(len(index)):
        (tmp_path / "x.idx").write_bytes(index[:size])
        with pytest.raises(UserError, match=r"x\.idx"):
            read(tmp_path / "x.bin", "megatron")
    (tmp_path / "x.idx").write_bytes(index)
    (tmp_path / "x.bin").write_bytes(b"12345678")
    with pytest.raises(UserError, match=r"has 8 bytes, but .* lists 6"):
        read(tmp_path / "x.bin", "megatron")


def test_a_corpus_from_tokens_is_exported_to_megatron_with_the_same_documents(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_megatron(tmp_path / "in", [[[*ids(text), EOS]] for text in TEXTS], 4, "i")
    settings = [f"data.files={tmp_path}/in.bin", "data.format=megatron", f"data.cache_dir={tmp_path}/cache"]
    settings += ["tokenizer=bytes", "data.validation_fraction=0", "train.seq_len=4"]
    assert main(["prepare", str(tiny_config), *settings, "--json"]) == 0
    prepared = json.loads(capsys.readouterr().out)
    assert prepared["documents"] == 3
    assert prepared["tokens"] == sum(map(len, TEXTS)) + 3
    folder = Path(prepared["sources"]["text"]["folder"])
    assert json.loads((folder / "corpus.json").read_text())["splits"]["train"]["text_bytes"] == sum(map(len, TEXTS))
    assert main(["export", "megatron", str(folder), str(tmp_path / "out")]) == 0
    stream = [token for text in TEXTS for token in [*ids(text), EOS]]
    assert np.fromfile(tmp_path / "out_train.bin", "<u2").tolist() == stream
    lengths = [len(text) + 1 for text in TEXTS]
    starts = [0, 2 * lengths[0], 2 * (lengths[0] + lengths[1])]
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 3, 4)
    expected = header + struct.pack("<3i", *lengths) + struct.pack("<3q", *starts) + struct.pack("<4q", 0, 1, 2, 3)
    assert (tmp_path / "out_train.idx").read_bytes() == expected


def test_tokens_need_the_tokenizer_that_made_them(tiny_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for settings, message in (
        (["data.format=llmc"], "set tokenizer.file.path"),
        (["data.format=llmc", "tokenizer=bytes", "data.validation_by=position"], "validation_by=hash"),
        (["data.format=llmc", "tokenizer=bytes", "data.parts=line"], "parts=none"),
    ):
        assert main(["prepare", str(tiny_config), *settings]) == 2
        assert message in capsys.readouterr().err
