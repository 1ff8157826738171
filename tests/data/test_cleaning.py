"""Cleaning in `prepare`: what is dropped, in what order, and that the corpus holds the text that is left."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.cli import main
from t5x_lite.data.cleaning.exact import Exact
from t5x_lite.data.cleaning.minhash import MinHashLSH
from t5x_lite.data.config import MixedSource
from t5x_lite.errors import UserError
from tests.data.test_cleaning_rules import PAGE

SETTINGS = ("tokenizer=bytes", "train.seq_len=4", "data.prepare_processes=1")


def write_jsonl(path: Path, texts: Sequence[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def tokens_of(texts: Sequence[str]) -> int:
    """Return the number of tokens of texts: their bytes, and an EOS each."""
    return sum(len(text.encode()) + 1 for text in texts)


def prepare(
    config: Path, folder: Path, capsys: pytest.CaptureFixture[str], *settings: str
) -> tuple[dict[str, dict[str, int]], Path]:
    """Run `prepare` on the JSONL files of a folder; return the counts of its source and the corpus folder."""
    words = [f"data.files={folder}/*.jsonl", f"data.cache_dir={folder}/cache", *SETTINGS, *settings]
    assert main(["prepare", str(config), *words, "--json"]) == 0
    source = json.loads(capsys.readouterr().out)["sources"]["text"]
    return source, Path(source["folder"])


def test_the_corpus_holds_what_filters_and_deduplication_leave(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = PAGE.replace("fox", "cat")
    write_jsonl(tmp_path / "a.jsonl", [PAGE, "Home | About", f"Menu\n{PAGE}", PAGE + "\nint main() { }"])
    write_jsonl(tmp_path / "b.jsonl", [other, "", PAGE, other + "\nSee our privacy policy for more of it."])
    settings = ("data.cleaning=[c4,exact]", "data.validation_fraction=0")
    source, folder = prepare(tiny_config, tmp_path, capsys, *settings)
    assert source["train"]["documents"] == 2
    assert source["train"]["tokens"] == tokens_of([PAGE, other])
    report = json.loads((folder / "cleaning.json").read_text())
    assert report["cleaning"][0]["c4"]["min_sentences"] == 3
    assert report["documents"] == 8
    assert report["retained_documents"] == 2
    assert report["retained_text_bytes"] == len((PAGE + other).encode())
    # The third document of the first file is the first one after its menu is removed.
    assert report["dropped"] == {"c4.sentence_count": 1, "c4.curly_bracket": 1, "empty": 1, "exact.duplicates": 3}
    assert report["removals"] == {"c4.lines_without_terminal_mark": 1, "c4.policy_lines": 1}
    assert report["examples"]["c4.sentence_count"] == [{"file": str(tmp_path / "a.jsonl"), "text": "Home | About"}]
    assert source["cleaning"]["dropped"] == report["dropped"]
    assert not list(folder.glob("*.filtered.*"))


def test_a_prepared_corpus_needs_no_library(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasketch", reason="the extra cleaning is not installed")
    write_jsonl(tmp_path / "a.jsonl", [PAGE, PAGE])
    _, folder = prepare(tiny_config, tmp_path, capsys, "data.cleaning=[minhash]")
    monkeypatch.setattr("t5x_lite.extras.find_spec", lambda name: None)
    assert prepare(tiny_config, tmp_path, capsys, "data.cleaning=[minhash]")[1] == folder
    words = [f"data.files={tmp_path}/a.jsonl", f"data.cache_dir={tmp_path}/other", "data.cleaning=[minhash]"]
    assert main(["prepare", str(tiny_config), *SETTINGS, *words]) == 2
    assert "needs datasketch" in capsys.readouterr().err


def test_people_see_a_table(tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "a.jsonl", [PAGE, PAGE, "Home", PAGE.replace("fox", "cat")])
    words = [f"data.files={tmp_path}/*.jsonl", f"data.cache_dir={tmp_path}/cache", *SETTINGS]
    assert main(["prepare", str(tiny_config), *words, "data.cleaning=[c4,exact]"]) == 0
    captured = capsys.readouterr()
    assert "; cleaning dropped 2 documents, see cleaning.json" in captured.err
    output = captured.out
    assert "cleaning of text: 4 documents" in output
    (row,) = [line for line in output.splitlines() if "c4.sentence_count" in line]
    assert "1 documents" in row
    assert "25.00 %" in row
    (row,) = [line for line in output.splitlines() if "retained" in line]
    assert "50.00 %" in row


def test_settings_and_lists_of_words_name_the_corpus(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [PAGE, PAGE])
    words = tmp_path / "words.txt"
    words.write_text("darn\n")
    folders = []
    for cleaning in ("[]", "[exact]", "[c4]", "[{c4: {min_sentences: 2}}]", f"[{{c4: {{bad_words: {words}}}}}]"):
        source, folder = prepare(tiny_config, tmp_path, capsys, f"data.cleaning={cleaning}")
        folders.append(folder)
        assert ("cleaning" in source) == (cleaning != "[]")
    words.write_text("egg\n")
    folders.append(prepare(tiny_config, tmp_path, capsys, f"data.cleaning=[{{c4: {{bad_words: {words}}}}}]")[1])
    assert len(set(folders)) == 6


def contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of the files of a corpus by their names in its folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("deduplication", ["exact", "c4_spans"])
def test_an_interrupted_preparation_continues_with_the_same_result(
    tiny_config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    deduplication: str,
) -> None:
    # A unit is a megabyte or less, so each file is two.
    for number in range(2):
        texts = [PAGE.replace("fox", f"fox{number}{k % 40}") for k in range(12_000)]
        lines = "\n".join(f"The {place} cat of page {number} sleeps here." for place in ("first", "second", "third"))
        write_jsonl(tmp_path / f"{number}.jsonl", [PAGE, *texts, f"{PAGE}\n{lines}"])
    cleaning = f"data.cleaning=[c4,{deduplication}]"
    expected, folder = prepare(tiny_config, tmp_path, capsys, cleaning)
    assert expected["cleaning"]["retained_documents"] == 1 + 2 * 40 + 2
    assert (expected["cleaning"]["removals"] == {"c4_spans.repeated_sentences": 2 * 3}) == (deduplication == "c4_spans")
    files = contents(folder)
    assert sum(name.endswith(".dropped.npz") for name in files) == 4
    assert "corpus.json" in files

    def stop(*arguments: object) -> None:
        raise UserError("stopped")

    for function in ("deduplicate_units", "_tokenise_missing"):
        with monkeypatch.context() as patch:
            patch.setattr(f"t5x_lite.data.prepare.{function}", stop)
            words = [f"data.files={tmp_path}/*.jsonl", f"data.cache_dir={tmp_path}/again", *SETTINGS, cleaning]
            assert main(["prepare", str(tiny_config), *words]) == 2
        (again,) = (tmp_path / "again").iterdir()
        (again / "000001.filtered.json").unlink(missing_ok=True)  # as if the filters had been interrupted
    capsys.readouterr()
    assert main(["prepare", str(tiny_config), *words]) == 0
    assert contents(again) == files


@pytest.mark.parametrize("name", ["000000.dropped.npz", "000000.filtered.npz", "000000.filtered.json"])
@pytest.mark.parametrize("is_lost", [True, False], ids=["lost", "cut"])
def test_damaged_files_of_an_interrupted_preparation_are_named(
    tiny_config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    is_lost: bool,
) -> None:
    write_jsonl(tmp_path / "0.jsonl", [PAGE, PAGE, PAGE.replace("fox", "cat")])
    words = [f"data.files={tmp_path}/*.jsonl", f"data.cache_dir={tmp_path}/cache", *SETTINGS, "data.cleaning=[exact]"]
    function = "_tokenise_missing" if "dropped" in name else "deduplicate_units"

    def stop(*arguments: object) -> None:
        raise UserError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(f"t5x_lite.data.prepare.{function}", stop)
        assert main(["prepare", str(tiny_config), *words]) == 2
    (folder,) = (tmp_path / "cache").iterdir()
    path = folder / name
    if is_lost and name.endswith(".npz"):
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9])
    capsys.readouterr()
    assert main(["prepare", str(tiny_config), *words]) == 2
    error = capsys.readouterr().err
    assert f"{path}: is damaged" in error
    assert f"delete {folder}" in error


def test_separate_validation_text_is_not_cleaned(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [PAGE, "Home"])
    held_out = tmp_path / "held_out.json"
    write_jsonl(held_out, ["Home", "Home"])
    source, _ = prepare(tiny_config, tmp_path, capsys, "data.cleaning=[c4,exact]", f"data.validation_files={held_out}")
    assert source["train"]["tokens"] == tokens_of([PAGE])
    assert source["validation"]["tokens"] == tokens_of(["Home", "Home"])


def test_the_tail_of_a_file_is_held_out_of_the_text_that_is_left(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["Home", PAGE, "Home", PAGE.replace("fox", "cat"), "Home"])
    settings = ("data.cleaning=[c4]", "data.validation_by=position", "data.validation_fraction=0.5")
    source, _ = prepare(tiny_config, tmp_path, capsys, *settings)
    assert source["train"]["tokens"] == source["validation"]["tokens"] == tokens_of([PAGE])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.cleaning=[exact,c4]"], "must come after all filters"),
        (["data.cleaning=[c4,{c4: {min_sentences: 2}}]"], "twice"),
        (["data.cleaning=[gopher]"], "expected one of c4, gopher_quality"),
        (["data.cleaning=[{language: {}}]"], "languages"),
        (["data.cleaning=[{gopher_quality: {min_words: 9, max_words: 8}}]"], "min_words is 9, but max_words 8"),
        (["data.cleaning=[c4]", "data.format=llmc", "tokenizer=bytes"], "holds tokens"),
        (["data.cleaning=[c4]", "data.field=[a,b]", "data.parts=fields"], "documents of one text"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tiny_config: Path, capsys: pytest.CaptureFixture[str], settings: list[str], message: str
) -> None:
    assert main(["prepare", str(tiny_config), *settings]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.strip().splitlines()) == 1


def test_a_corpus_without_a_document_left_is_refused(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["Home", "About"])
    words = [f"data.files={tmp_path}/a.jsonl", f"data.cache_dir={tmp_path}/cache", *SETTINGS, "data.cleaning=[c4]"]
    assert main(["prepare", str(tiny_config), *words]) == 2
    assert "data.cleaning drops all documents, 2 by c4.sentence_count" in capsys.readouterr().err


@pytest.mark.parametrize(("step", "library"), [("minhash", "datasketch"), ("language", "py3langid")])
def test_a_missing_library_is_named(
    tiny_config: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    library: str,
) -> None:
    monkeypatch.setattr("t5x_lite.extras.find_spec", lambda name: None)
    settings = {step: {"languages": ["en"]} if step == "language" else {}}
    source = MixedSource.model_validate({"name": "x", "cleaning": [settings]})
    with pytest.raises(UserError, match=rf"needs {library}: pip install 't5x_lite\[cleaning\]'"):
        source.cleaning[0].check()
    assert main(["doctor", str(tiny_config), f"data.cleaning={json.dumps([settings])}"]) == 2
    problem, *_ = [line for line in capsys.readouterr().out.splitlines() if "text cleaning" in line]
    assert f"needs {library}" in problem


def jaccard(first: set[str], second: set[str]) -> float:
    return len(first & second) / len(first | second)


def shingles(text: str) -> set[str]:
    words = text.split()
    return {" ".join(words[k : k + 5]) for k in range(len(words) - 4)}


def test_minhash_drops_what_brute_force_jaccard_drops() -> None:
    pytest.importorskip("datasketch", reason="the extra cleaning is not installed")
    rng = np.random.default_rng(0)
    texts: list[str] = []
    while len(texts) < 150:
        words = [f"w{number}" for number in rng.integers(0, 5000, 200)]
        if texts and rng.random() < 0.6:
            words = texts[rng.integers(len(texts))].split()
            for place in rng.integers(0, 200, rng.choice([0, 1, 2, 12, 20])):
                words[place] = f"v{rng.integers(5000)}"
        texts.append(" ".join(words))
    sets = [shingles(text) for text in texts]
    settings = MinHashLSH(threshold=0.75, permutations=256)
    # The estimate of a similarity is uncertain, so documents near the threshold are left out: three standard errors.
    margin = 3 * 0.5 / np.sqrt(settings.permutations)
    clear: list[int] = []
    for number in range(len(texts)):
        if all(abs(jaccard(sets[number], sets[other]) - settings.threshold) > margin for other in clear):
            clear.append(number)
    retained: list[int] = []
    expected = []
    for number in clear:
        is_similar = any(jaccard(sets[number], sets[other]) >= settings.threshold for other in retained)
        expected.append(is_similar)
        if not is_similar:
            retained.append(number)
    assert 20 < sum(expected) < len(expected) - 20
    fingerprints = np.stack([settings.fingerprint(texts[number]) for number in clear])
    index = settings.build_index()
    half = len(clear) // 2
    is_duplicate = np.concatenate([index.add(fingerprints[:half]), index.add(fingerprints[half:])])
    assert is_duplicate.tolist() == expected


def test_minhash_estimates_the_jaccard_similarity() -> None:
    pytest.importorskip("datasketch", reason="the extra cleaning is not installed")
    settings = MinHashLSH(permutations=4096)
    words = [f"w{k}" for k in range(200)]
    fingerprint = settings.fingerprint(" ".join(words))
    for changed in (1, 5, 20):
        other = list(words)
        other[:: 200 // changed] = ["x"] * len(other[:: 200 // changed])
        truth = jaccard(shingles(" ".join(words)), shingles(" ".join(other)))
        estimate = np.mean(fingerprint == settings.fingerprint(" ".join(other)))
        assert abs(estimate - truth) < 4 * np.sqrt(truth * (1 - truth) / 4096)
    # Letters in capitals, and white space, do not matter; a text of fewer words than an n-gram is one n-gram.
    assert (settings.fingerprint("A  b\nc") == settings.fingerprint("a b c")).all()


def test_exact_compares_texts_without_white_space_at_their_ends() -> None:
    settings = Exact()
    texts = ["a b", "a b\n", "a  b", " a b", "A b"]
    index = settings.build_index()
    fingerprints = np.stack([settings.fingerprint(text) for text in texts])
    assert index.add(fingerprints).tolist() == [False, True, False, True, False]
