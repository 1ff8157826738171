"""Demonstrations: each choice against its definition, in the prompts of the harness and of cloze tasks."""

import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import t5x_lite
from t5x_lite import schema
from t5x_lite.api import Model
from t5x_lite.cli import main
from t5x_lite.errors import UserError
from t5x_lite.evaluate.cloze import add_demonstrations, read_cloze
from t5x_lite.evaluate.demonstrations import DEMONSTRATIONS, Balanced, Random, Similar
from t5x_lite.evaluate.demonstrations.bm25 import WordIndex
from t5x_lite.evaluate.demonstrations.demonstrations import Demonstrations, Example, ExampleSets, check_pool
from t5x_lite.evaluate.evaluators.cloze import Cloze

TEXT = "the quick brown fox jumps over a lazy dog while seven wizards mix black opal quartz in vain"
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Model:
    return t5x_lite.load(tiny_run)


@pytest.fixture(scope="module")
def examples() -> ExampleSets:
    """Twelve examples of three labels, one of them twice; each is a query and in the pool."""
    rng = np.random.default_rng(0)
    pool = [Example(" ".join(rng.choice(WORDS, 6)), "abc"[number % 3]) for number in range(11)]
    pool.append(pool[2])
    return ExampleSets(pool, pool)


def choose_demonstrations(
    choice: Demonstrations, examples: ExampleSets, count: int, seed: int, model: Model
) -> list[list[int]]:
    check_pool(examples, count)
    return choice.choose(examples, count, seed, model)


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_no_example_is_among_its_own_demonstrations(name: str, examples: ExampleSets, model: Model) -> None:
    """The third example is in the pool twice, so only ten others are left."""
    choice = DEMONSTRATIONS[name]()
    for query, indices in enumerate(choose_demonstrations(choice, examples, 10, 0, model)):
        assert len(set(indices)) == 10
        assert examples.queries[query] not in [examples.pool[index] for index in indices]
    with pytest.raises(UserError, match="11 demonstrations are to be chosen from 10 examples"):
        choose_demonstrations(choice, examples, 11, 0, model)


def test_similar_ones_are_the_nearest_of_all_by_cosine(examples: ExampleSets, model: Model) -> None:
    """Liu et al. 2022, §3: the nearest in the space of an encoder's sentence vectors; here the nearest comes last."""
    vectors = model.embed([example.text for example in examples.pool], pool="mean", layer=1)
    chosen = choose_demonstrations(Similar(pool="mean", layer=1), examples, 3, 0, model)
    for query, indices in enumerate(chosen):
        cosines = {}
        for index, vector in enumerate(vectors):
            if examples.pool[index] != examples.queries[query]:
                product = float(np.dot(vector, vectors[query]))
                cosines[index] = product / float(np.linalg.norm(vector) * np.linalg.norm(vectors[query]))
        nearest = sorted(cosines.values(), reverse=True)[:3]
        np.testing.assert_allclose([cosines[index] for index in indices], nearest[::-1], atol=1e-6)


def test_bm25_is_its_formula() -> None:
    """Three texts of 3, 1 and 2 words: by hand, then term by term on random texts."""
    scores = WordIndex(["A dog a", "cat", "dog, Cat"], 1.2, 0.75).scores("dog")
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    expected = [idf * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 3 / 2)), 0, idf * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 1))]
    np.testing.assert_allclose(scores, expected)

    rng = np.random.default_rng(1)
    texts = [rng.choice(WORDS, rng.integers(1, 9)).tolist() for _ in range(20)]
    query = rng.choice(WORDS, 5).tolist()
    for text, score in zip(
        texts, WordIndex([" ".join(t) for t in texts], 0.9, 0.4).scores(" ".join(query)), strict=True
    ):
        total = 0.0
        for word in query:
            frequency = sum(word in other for other in texts)
            count = text.count(word)
            length = len(text) / (sum(map(len, texts)) / 20)
            idf = math.log(1 + (20 - frequency + 0.5) / (frequency + 0.5))
            total += idf * count * 1.9 / (count + 0.9 * (0.6 + 0.4 * length))
        assert score == pytest.approx(total)


def test_balanced_ones_have_as_many_of_each_label(examples: ExampleSets, model: Model) -> None:
    """Until a label has no more: of ten, one label has three examples and the others four or three."""
    orders = set()
    for indices in choose_demonstrations(Balanced(), examples, 7, 0, model):
        labels = [examples.pool[index].answer for index in indices]
        assert sorted(Counter(labels).values()) == [2, 2, 3]
        orders.add("".join(labels))
    assert len(orders) > 3
    few = ExampleSets(examples.queries[:1], [Example("x", "a"), Example("y", "b"), Example("z", "b")])
    (indices,) = choose_demonstrations(Balanced(), few, 3, 0, model)
    assert sorted(indices) == [0, 1, 2]


def test_random_ones_depend_on_the_seed_and_the_example(examples: ExampleSets, model: Model) -> None:
    chosen = choose_demonstrations(Random(), examples, 4, 7, model)
    fewer = ExampleSets(examples.queries[:3], examples.pool)
    assert choose_demonstrations(Random(), fewer, 4, 7, model) == chosen[:3]
    assert len({tuple(indices) for indices in chosen}) > 8
    assert choose_demonstrations(Random(), examples, 4, 8, model) != chosen
    counts = Counter(
        index for seed in range(200) for index in choose_demonstrations(Random(), fewer, 5, seed, model)[0]
    )
    assert len(counts) == 11
    assert all(abs(count - 1000 / 11) < 35 for count in counts.values())  # five standard deviations are 35


def write_task(folder: Path, **settings: Any) -> None:
    """Write a task whose demonstrations come from the split that is evaluated, and its records."""
    rng = np.random.default_rng(3)
    path = folder / "reviews.jsonl"
    records = [{"text": " ".join(rng.choice(WORDS, 3)), "label": number % 2} for number in range(8)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    task = {
        "task": "reviews",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "fewshot_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}} is",
        "doc_to_choice": ["bad", "good"],
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "reviews.yaml").write_text(json.dumps({**task, **settings}))


def prompts_of(run: Path) -> list[str]:
    """Return the prompts that an evaluation has saved."""
    (path,) = run.glob("eval/*/reviews.jsonl")
    prompts = []
    for line in path.read_text().splitlines():
        prompts.append(json.loads(line)["arguments"][0][0])
    return prompts


def test_prompts_of_the_harness_have_the_demonstrations(
    tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Named by the command or by the task's YAML: the same, with the words of BM25's best examples, the best last."""
    pytest.importorskip("lm_eval", reason="needs the extra eval: pip install -e '.[eval]'")
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    command = ["eval", str(run), "tasks=reviews", "--include", str(tmp_path), "--json"]
    write_task(tmp_path)
    assert main([*command, "num_fewshot=2", "demonstrations={bm25: {k1: 2.0}}", "--limit", "5"]) == 0
    capfd.readouterr()
    prompts = prompts_of(run)
    assert len(prompts) == 5
    records = [json.loads(line) for line in (tmp_path / "reviews.jsonl").read_text().splitlines()]
    index = WordIndex([f"{record['text']} is" for record in records], 2.0, 0.75)
    for number, prompt in enumerate(prompts):
        scores = index.scores(f"{records[number]['text']} is")
        scores[number] = -1
        second, best = np.sort(scores)[-2:]
        shown = re.findall(r"(.*) is (bad|good)\n\n", prompt)
        assert len(shown) == 2
        places = [[record["text"] for record in records].index(text) for text, _ in shown]
        assert [scores[place] for place in places] == [second, best]
        assert [answer for _, answer in shown] == [["bad", "good"][place % 2] for place in places]
        assert prompt.endswith(f"\n\n{records[number]['text']} is")

    write_task(tmp_path, num_fewshot=4, fewshot_config={"sampler": "balanced"})
    assert main(command) == 0
    capfd.readouterr()
    for prompt in prompts_of(run):
        assert Counter(re.findall("(bad|good)\n\n", prompt)) == {"bad": 2, "good": 2}

    for words, message in (
        (["num_fewshot=8", "demonstrations=random"], "task reviews: 8 demonstrations are to be chosen from 7 examples"),
        (["demonstrations=simliar"], "expected one of random, balanced, similar, bm25"),
        (["demonstrations={similar: {pool: none}}"], "pool 'none' is not one of mean, cls, max"),
        (["demonstrations={"], "quote a text that has signs of YAML"),
    ):
        assert main([*command, *words]) == 2
        assert message in capfd.readouterr().err
    assert main(["eval", str(run), "demonstrations=random"]) == 2
    assert "demonstrations= is for tasks= or cloze=" in capfd.readouterr().err


def test_a_cloze_text_follows_filled_patterns(tmp_path: Path, model: Model) -> None:
    """The gap of a demonstration holds the word of its label; the text itself is not among them."""
    path = tmp_path / "dev.tsv"
    path.write_text("fox jumps\tyes\ndog jumps\tno\nseven wizards\tno\n")
    settings = {
        "files": str(path),
        "columns": ["text", "label"],
        "pattern": "{text}: {mask}.",
        "verbalizer": {"yes": "quick", "no": "lazy"},
        "num_fewshot": 2,
        "demonstrations": "bm25",
        "separator": " | ",
    }
    task = schema.validate(Cloze, schema.Sources(settings, {}))
    texts = add_demonstrations(model, task, read_cloze(task))
    assert [text.text for text in texts] == [
        "seven wizards: lazy. | dog jumps: lazy. | fox jumps: {mask}.",
        "seven wizards: lazy. | fox jumps: quick. | dog jumps: {mask}.",
        "dog jumps: lazy. | fox jumps: quick. | seven wizards: {mask}.",
    ]
    # Files of demonstrations alone: no other text of the task is shown.
    (tmp_path / "train.tsv").write_text("black opal\tyes\nmix quartz\tno\n")
    with_files = {**settings, "demonstration_files": str(tmp_path / "train.tsv")}
    other_texts = schema.validate(Cloze, schema.Sources(with_files, {}))
    for text in add_demonstrations(model, other_texts, read_cloze(other_texts)):
        assert set(text.text.split(" | ")[:2]) == {"black opal: quick.", "mix quartz: lazy."}
    many = schema.validate(Cloze, schema.Sources({**settings, "num_fewshot": 3}, {}))
    with pytest.raises(UserError, match="3 demonstrations are to be chosen from 2 examples"):
        many.prepare(model.config.model)
    first_token = schema.validate(
        Cloze, schema.Sources({**settings, "demonstrations": {"similar": {"pool": "cls"}}}, {})
    )
    assert "the first token of a decoder sees no other" in "".join(first_token.model_problems(model.config.model))
