"""Reflection: the steps of Self-Refine's algorithm, on a scripted model and on a real one."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import t5x_lite
from t5x_lite import schema
from t5x_lite.api import Model
from t5x_lite.cli import main
from t5x_lite.decode.recipe import Recipe, fill_places, load_recipe
from t5x_lite.decode.reflection import Reflector, step_settings
from t5x_lite.errors import UserError

PROMPTS = {"answer": "Q {prompt}", "critique": "C {prompt}: {answer}", "revise": "R {history}{prompt}"}


def recipe(**settings: Any) -> Recipe:
    return schema.validate(Recipe, schema.Sources({**PROMPTS, "turn": "{answer}/{critique};", **settings}, {}))


class Scripted:
    """A model that answers n with n, says the first digits that are missing up to 3, and revises by adding the last."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], list[list[int]]]] = []
        self.generator = self

    def generate(self, prompts: Sequence[str], decoding: object, streams: np.ndarray) -> list[str]:
        self.calls.append((list(prompts), streams.tolist()))
        texts = []
        for prompt in prompts:
            step, text = prompt[0], prompt[2:]
            if step == "Q":
                texts.append(f" {text}\n")
            elif step == "C":
                answer = text.split(": ")[1]
                texts.append("good" if answer.endswith("3") else f"add {int(answer[-1]) + 1}")
            else:
                answer, critique = text.split(";")[-2].split("/")
                texts.append(answer + critique.removeprefix("add "))
        return texts


def test_an_answer_is_revised_until_a_critique_ends_it() -> None:
    """The steps of each prompt by hand. The others go on together; draws have the numbers of prompt and step."""
    model = Scripted()
    three, one, two = Reflector(model, recipe(stop="^good", rounds=4), {})(["3", "1", "2"])  # type: ignore[arg-type]
    assert [reflection.answer for reflection in (three, one, two)] == ["3", "123", "23"]
    assert [(turn.answer, turn.critique) for turn in one.turns] == [("1", "add 2"), ("12", "add 3"), ("123", "good")]
    assert len(three.turns) == 1
    assert one.is_accepted
    assert model.calls == [
        (["Q 3", "Q 1", "Q 2"], [[0, 0], [1, 0], [2, 0]]),
        (["C 3: 3", "C 1: 1", "C 2: 2"], [[0, 1], [1, 1], [2, 1]]),
        (["R 1/add 2;1", "R 2/add 3;2"], [[1, 2], [2, 2]]),
        (["C 1: 12", "C 2: 23"], [[1, 3], [2, 3]]),
        (["R 1/add 2;12/add 3;1"], [[1, 4]]),
        (["C 1: 123"], [[1, 5]]),
    ]


def test_rounds_bound_the_critiques() -> None:
    (reflection,) = Reflector(Scripted(), recipe(rounds=1), {})(["1"])  # type: ignore[arg-type]
    assert (reflection.answer, len(reflection.turns), reflection.is_accepted) == ("12", 1, False)


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Model:
    return t5x_lite.load(tiny_run)


def test_the_command_does_the_steps_and_writes_them(
    model: Model, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each step is what the model generates for its prompt alone, with the settings of the step."""
    path = tmp_path / "recipe.yaml"
    settings = {**PROMPTS, "turn": "{answer} {critique} ", "rounds": 1, "decoding": {"critique": {"tokens": 3}}}
    path.write_text(json.dumps(settings))
    trace = tmp_path / "trace.jsonl"
    command = ["generate", str(tiny_run), "--prompt", "the quick", "--tokens", "5", "--temperature", "0"]
    assert main([*command, "--recipe", str(path), "--trace", str(trace)]) == 0

    (answer,) = model.generate("Q the quick", tokens=5, temperature=0)
    (critique,) = model.generate(f"C the quick: {answer.strip()}", tokens=3, temperature=0)
    history = f"{answer.strip()} {critique.strip()} "
    (revised,) = model.generate(f"R {history}the quick", tokens=5, temperature=0)
    assert capsys.readouterr().out.strip() == revised.strip()
    assert json.loads(trace.read_text()) == {
        "prompt": "the quick",
        "answer": revised.strip(),
        "turns": [{"answer": answer.strip(), "critique": critique.strip()}],
        "is_accepted": False,
    }

    for words, message in (
        (["--trace", str(trace)], "--trace is for --recipe"),
        (["--recipe", "nowhere.yaml"], "nowhere.yaml: no such config file"),
    ):
        assert main([*command, *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answer": "{prompt} {critique}"}, r"answer: \{critique\} stands for nothing here; there are prompt"),
        ({"answer": "Q"}, r"answer: needs \{prompt\}"),
        ({"stop": "("}, "is no regular expression"),
        ({"rounds": 0}, "rounds"),
        ({"decoding": {"answers": {}}}, "answers is no step; those are answer, critique, revise"),
    ],
)
def test_recipes_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(**settings)


def test_a_wrong_setting_of_a_step_names_the_step() -> None:
    with pytest.raises(UserError, match="recipe, step revise: tokens must be at least 1"):
        step_settings(recipe(decoding={"revise": {"tokens": 0}}), {})


def test_braces_in_texts_are_not_names() -> None:
    assert fill_places("{prompt} {{answer}}", {"prompt": "{answer}", "answer": "x"}) == "{answer} {x}"


def test_the_shipped_recipe_ends_at_its_own_words() -> None:
    shipped = load_recipe(Path("prompting/self_refine"))
    step_settings(shipped, {})
    assert shipped.stop is not None
    assert re.search(shipped.stop, "98 plus 45 is 143. It is correct.")
    assert not re.search(shipped.stop, "98 plus 45 is 143, so it is not correct.")
