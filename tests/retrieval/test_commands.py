"""Indexes and searches from the command line, against brute force over the vectors that `embed` writes."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest

import t5x_lite
from t5x_lite.cli import main
from t5x_lite.errors import UserError
from t5x_lite.evaluate.embed import embed
from t5x_lite.objectives.passages import Passage
from t5x_lite.retrieval.encoder import VectorEncoder
from t5x_lite.retrieval.index import Index, build_index
from tests.conftest import lines
from tests.retrieval.conftest import passage, query, write_records
from tests.retrieval.exact_on_meshes import brute_force

Call = Callable[..., str]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """A function that runs a command in this process, checks its exit code, and returns what it prints."""

    def run(*arguments: object, code: int = 0) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        captured = capsys.readouterr()
        return captured.err.splitlines()[-1] if code else captured.out

    return run


def test_a_run_learns_to_rank_its_passages(retriever_run: Path) -> None:
    records = lines(retriever_run)
    assert records[-1]["eval/loss"] < records[1]["eval/loss"]
    assert records[-1]["eval/retrieval/accuracy"] > 0.8  # 0.5 by chance


def test_an_index_has_the_vectors_of_embed_and_search_equals_brute_force(
    index_folder: Path, retriever_run: Path, tmp_path: Path, call: Call
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(passage(n) + "\n" for n in range(40)))
    call("embed", retriever_run, texts)
    vectors = np.load(tmp_path / "texts.npy")
    index = Index(index_folder)
    np.testing.assert_allclose(index.vectors(0, 40), vectors, atol=1e-5)
    np.testing.assert_array_equal(index.vectors(14, 35), index.vectors(0, 40)[14:35])
    assert [index[number].id for number in (0, 15, 16, 39)] == ["p0", "p15", "p16", "p39"]
    assert index[17].passage == Passage(passage(17))

    queries = [query(3), query(30)]
    output = call(
        "search", retriever_run, index_folder, "--query", queries[0], "--query", queries[1], "-k", 6, "--json"
    )
    texts.write_text("\n".join(queries) + "\n")
    call("embed", retriever_run, texts)
    scores, numbers = brute_force(vectors, np.load(tmp_path / "texts.npy"), 6)
    for row, record in enumerate(json.loads(output)["queries"]):
        assert record["query"] == queries[row]
        assert [item["id"] for item in record["passages"]] == [f"p{number}" for number in numbers[row]]
        np.testing.assert_allclose([item["score"] for item in record["passages"]], scores[row], rtol=1e-4)
    assert passage(numbers[0][0]) in call("search", retriever_run, index_folder, "--query", queries[0])


def test_a_decoder_embeds_a_text_with_the_eos_that_it_has_learnt_to_pool(
    retriever_config: Path, tmp_path: Path, call: Call
) -> None:
    decoder = {"family": "decoder", "outputs": ["tokens"]}
    call(
        "train",
        retriever_config,
        f"run_dir={tmp_path}",
        f"model={json.dumps(decoder)}",
        "task_form=head",
        "train.steps=1",
    )
    model = t5x_lite.load(tmp_path)
    text = passage(3)
    assert model.encode_text(text).tolist() == [*model.tokenizer.encode(text).tolist(), model.eos]
    (vector,) = VectorEncoder(model).queries([text])
    np.testing.assert_allclose(embed(model, [text])[0], vector, rtol=0, atol=1e-6)


def test_recall_is_the_share_of_queries_whose_passage_is_found(
    index_folder: Path, retriever_run: Path, collection: Path, tmp_path: Path, call: Call
) -> None:
    to = tmp_path / "hits.jsonl"
    arguments = ("search", retriever_run, index_folder, "--queries", collection / "train.jsonl", "-k", 8, "--json")
    metrics = json.loads(call(*arguments, "--to", to))
    ranked = [[item["text"] for item in json.loads(line)["passages"]] for line in to.read_text().splitlines()]
    assert len(ranked) == 40
    for depth in (1, 5, 8):
        hits = sum(passage(number) in texts[:depth] for number, texts in enumerate(ranked))
        assert metrics[f"recall_at_{depth}"] == pytest.approx(hits / 40)
    assert metrics["queries"] == 40
    assert metrics["recall_at_8"] > 0.5  # 0.2 by chance


def test_ids_that_the_index_has_not_are_named(
    index_folder: Path, retriever_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def search(*records: dict[str, object]) -> tuple[int, str, str]:
        queries = write_records(tmp_path / "queries.jsonl", list(records))
        code = main(["search", str(retriever_run), str(index_folder), "--queries", str(queries), "-k", "40", "--json"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    capsys.readouterr()
    known: dict[str, object] = {"query": query(3), "ids": ["p3", "p17"]}
    unknown: dict[str, object] = {"query": query(4), "ids": ["doc4", "p0"]}
    place = f"{tmp_path}/queries.jsonl:2: id 'doc4' is that of no passage of {index_folder}"
    code, out, err = search(known, unknown)
    assert code == 0
    assert json.loads(out)["recall_at_40"] == 1
    assert err == f"{place}; 1 of the 4 ids of the file are not there and will not be found\n"
    assert search(known)[2] == ""

    answered: dict[str, object] = {"query": query(3), "answers": [passage(3)]}
    code, out, err = search(answered, {**unknown, "ids": ["doc4", "doc5"]})
    assert (code, out) == (2, "")
    assert err == f"t5x-lite: {place}, nor is any other of the file; name the index of the passages that it judges\n"
    # Answers judge the passages of any collection.
    code, out, _ = search({**answered, "ids": ["doc4"]})
    assert code == 0
    assert json.loads(out)["recall_at_40"] == 1


def test_positive_passages_that_the_index_has_not_are_named(
    index_folder: Path, retriever_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def search(*positives: str) -> tuple[int, str, str]:
        records: list[dict[str, object]] = [{"query": query(3), "positive": positive} for positive in positives]
        queries = write_records(tmp_path / "queries.jsonl", records)
        code = main(["search", str(retriever_run), str(index_folder), "--queries", str(queries), "-k", "40", "--json"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    capsys.readouterr()
    assert search(passage(3)) == (0, ANY, "")
    place = f"{tmp_path}/queries.jsonl:2: the positive passage 'a text of another collection' is not in {index_folder}"
    code, out, err = search(passage(3), "a text of another collection")
    assert code == 0
    assert json.loads(out)["recall_at_40"] == 0.5
    assert err == f"{place}; 1 of the 2 positive passages of the file are not there and will not be found\n"
    code, out, err = search("another text", "a text of another collection")
    assert (code, out) == (2, "")
    place = f"{tmp_path}/queries.jsonl:1: the positive passage 'another text' is not in {index_folder}"
    assert err == f"t5x-lite: {place}, nor is any other of the file; name the index of the passages that it judges\n"


def test_an_interrupted_index_goes_on_and_is_equal(
    index_folder: Path,
    retriever_run: Path,
    collection: Path,
    tmp_path: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embed_passages = VectorEncoder.passages
    calls = []

    def fail_in_the_second_shard(encoder: VectorEncoder, passages: Sequence[Passage]) -> np.ndarray:
        calls.append(len(passages))
        if len(calls) == 2:
            raise UserError("stopped")
        return embed_passages(encoder, passages)

    monkeypatch.setattr(VectorEncoder, "passages", fail_in_the_second_shard)
    command = ("index", retriever_run, collection / "passages.jsonl", tmp_path / "index", "--shard", 16)
    call(*command, code=2)
    message = call("search", retriever_run, tmp_path / "index", "--query", "fox", code=2)
    assert "is not complete" in message
    assert "40 passages × 32" in call(*command)
    assert calls == [16, 16, 16, 8]  # the first shard is not embedded again
    for path in index_folder.glob("*0000*"):
        assert (tmp_path / "index" / path.name).read_bytes() == path.read_bytes()


def test_an_index_of_another_model_is_refused_in_one_line(
    index_folder: Path, retriever_run: Path, collection: Path, tmp_path: Path, call: Call
) -> None:
    message = call("search", retriever_run, index_folder, "--query", "fox", "--step", 30, code=2)
    assert "is for queries of another model" in message
    message = call("index", retriever_run, collection / "passages.jsonl", index_folder, "--step", 30, code=2)
    assert "belongs to another index: the fingerprint of the model was" in message
    # A longer text is another vector.
    assert "another model" in call("search", retriever_run, index_folder, "train.seq_len=8", "--query", "fox", code=2)


def test_two_runs_of_a_pair_of_encoders(retriever_run: Path, collection: Path, tmp_path: Path) -> None:
    model = t5x_lite.load(retriever_run)
    encoders = (VectorEncoder(model), VectorEncoder(t5x_lite.load(retriever_run, step=30)))
    build_index(encoders[0], collection / "passages.jsonl", tmp_path / "index", 100, query_encoder=encoders[1])
    index = Index(tmp_path / "index")
    index.check_queries(encoders[1])
    with pytest.raises(UserError, match="another model"):
        index.check_queries(encoders[0])


def test_the_graph_finds_the_nearest_of_few_passages(
    index_folder: Path, retriever_run: Path, collection: Path, tmp_path: Path, call: Call
) -> None:
    pytest.importorskip("faiss", reason="needs the extra retrieval")
    folder = tmp_path / "index"
    shutil.copytree(index_folder, folder)
    search = ("search", retriever_run, folder, "--query", query(3), "--query", query(30), "-k", 5, "--json")
    assert "has no graph" in call(*search, "--approximate", code=2)
    index = ("index", retriever_run, collection / "passages.jsonl", folder, "--shard", 16, "--approximate")
    assert "hnsw.faiss" in call(*index)
    exact = json.loads(call(*search))["queries"]
    approximate = json.loads(call(*search, "--approximate"))["queries"]
    for record, expected in zip(approximate, exact, strict=True):
        assert [item["id"] for item in record["passages"]] == [item["id"] for item in expected["passages"]]
        scores = [item["score"] for item in expected["passages"]]
        np.testing.assert_allclose([item["score"] for item in record["passages"]], scores, rtol=1e-5)
    (folder / "hnsw.faiss").write_bytes(b"x")
    assert "hnsw.faiss: cannot be read" in call(*search, "--approximate", code=2)


def test_bad_input_is_one_line(
    index_folder: Path, retriever_run: Path, tiny_run: Path, collection: Path, tmp_path: Path, call: Call
) -> None:
    bad = write_records(tmp_path / "bad.jsonl", [{"text": "fox"}, {"title": "no text"}])
    assert "bad.jsonl:2: a passage is" in call("index", retriever_run, bad, tmp_path / "bad", code=2)
    empty = write_records(tmp_path / "empty.jsonl", [])
    assert "holds no passage" in call("index", retriever_run, empty, tmp_path / "empty", code=2)
    assert "does not exist" in call("index", retriever_run, tmp_path / "no.jsonl", tmp_path / "no", code=2)
    search = ("search", retriever_run)
    assert "is not an index" in call(*search, tmp_path, "--query", "fox", code=2)
    assert "from 1 to the 40 passages" in call(*search, index_folder, "--query", "fox", "-k", 41, code=2)
    assert "--to is for --queries" in call(*search, index_folder, "--query", "fox", "--to", tmp_path / "x", code=2)
    queries = write_records(tmp_path / "queries.jsonl", [{"query": "fox"}])
    assert "names no relevant passage" in call(*search, index_folder, "--queries", queries, code=2)
    damaged = tmp_path / "damaged"
    shutil.copytree(index_folder, damaged)
    (damaged / "vectors-00001.npy").write_bytes(b"x")
    assert "vectors-00001.npy: cannot be read" in call(*search, damaged, "--query", "fox", code=2)
    (damaged / "manifest.json").write_text('{"fingerprint": 3}')
    assert "manifest.json: the field" in call(*search, damaged, "--query", "fox", code=2)


def test_passages_come_before_the_prompt_by_the_template(
    index_folder: Path, retriever_run: Path, tiny_run: Path, call: Call
) -> None:
    search = call("search", retriever_run, index_folder, "--query", query(3), "-k", 2, "--json")
    first, second = (item["text"] for item in json.loads(search)["queries"][0]["passages"])
    options = ("--prompt", query(3), "--index", index_folder, "--retriever", retriever_run, "--passages", 2)
    generate = ("generate", tiny_run, "--tokens", 1, "--temperature", 0)
    assert call(*generate, *options).startswith(f"{first}\n\n{second}\n\n{query(3)}")
    template = ("--template", "Read: {passages} Question: {prompt} Answer:")
    assert call(*generate, *options, *template).startswith(f"Read: {first}\n\n{second} Question: {query(3)} Answer:")
    assert "expected {prompt} in it, once" in call(*generate, *options, "--template", "{passages}", code=2)
    assert "--passages is for --index" in call(*generate, "--prompt", "fox", "--passages", 2, code=2)
    assert "needs --retriever" in call(*generate, "--prompt", "fox", "--index", index_folder, code=2)
    assert "--index is for tasks=" in call("eval", tiny_run, *options[2:], code=2)
