"""Passages before the contexts of a local task of lm-evaluation-harness."""

import json
from pathlib import Path

import pytest

from t5x_lite.cli import main
from tests.retrieval.conftest import passage, query, write_records

pytest.importorskip("lm_eval", reason="needs the extra eval: pip install -e '.[eval]'")


def write_task(folder: Path, name: str, **config: object) -> None:
    """Write a task of three questions with two choices each."""
    records: list[dict[str, object]] = []
    for number in (3, 30, 12):
        records.append({"question": query(number), "choices": ["fox", "dog"], "answer": number % 2})
    file = write_records(folder / f"{name}.jsonl", records)
    source = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}}
    (folder / f"{name}.yaml").write_text(json.dumps({**source, "test_split": "test", **config}))


def test_the_passages_of_each_question_come_before_its_context(
    index_folder: Path, retriever_run: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_task(
        tmp_path,
        "choices",
        output_type="multiple_choice",
        description="Answer.\n",
        doc_to_text="{{question}}",
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
        metric_list=[{"metric": "acc"}],
    )
    options = ["--include", tmp_path, "--index", index_folder, "--retriever", retriever_run, "--passages", 2]
    assert main([str(word) for word in ["eval", tiny_run, "tasks=choices", "--limit", 2, *options]]) == 0
    samples = [json.loads(line) for line in (tiny_run / "eval/12/choices.jsonl").read_text().splitlines()]
    assert len(samples) == 2
    for number, sample in zip((3, 30), samples, strict=True):
        search = ["search", retriever_run, index_folder, "--query", query(number), "-k", 2, "--json"]
        capsys.readouterr()
        assert main([str(word) for word in search]) == 0
        (result,) = json.loads(capsys.readouterr().out)["queries"]
        first, second = (item["text"] for item in result["passages"])
        assert first in {passage(n) for n in range(40)}
        contexts = [context for context, _ in sample["arguments"]]
        assert contexts == [f"{first}\n\n{second}\n\nAnswer.\n{query(number)}"] * 2

    write_task(
        tmp_path,
        "texts",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{question}}",
        metric_list=[{"metric": "word_perplexity"}],
    )
    assert main([str(word) for word in ["eval", tiny_run, "tasks=texts", *options]]) == 2
    assert "task texts has no single question" in capsys.readouterr().err
