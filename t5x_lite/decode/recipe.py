"""Settings of reflection: the prompts of its steps, and when it ends. Nothing here imports JAX."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from t5x_lite.schema import Config, Int, read, setting, validate

PLACE = re.compile(r"\{(\w+)\}")
PLACES = {
    "answer": {"prompt"},
    "critique": {"prompt", "answer", "history"},
    "revise": {"prompt", "answer", "critique", "history"},
}
"""The names that stand for texts in the prompt of each step."""


class Recipe(Config):
    """A recipe of reflection: answer, criticise the answer, revise it, and so on (Madaan et al. 2023, algorithm 1)."""

    answer: str = setting(..., "prompt of the first answer, with {prompt} for what is asked", min_length=1)
    critique: str = setting(..., "prompt of a critique, also with {answer} and {history}", min_length=1)
    revise: str = setting(..., "prompt of the next answer, also with {critique}", min_length=1)
    turn: str = setting(
        "{answer}\n{critique}\n\n", "a round in {history}, which has all rounds so far", source="Madaan 2023, eq. 4"
    )
    rounds: Int = setting(3, "most critiques of an answer", ge=1)
    stop: str | None = setting(None, "regular expression: a critique that has a match ends the recipe; null: none does")
    chat: bool = setting(False, "send each prompt as the message of a user, in the tokenizer's chat template")
    decoding: Mapping[str, Mapping[str, Any]] = setting(
        {}, "settings of generation of the steps answer, critique and revise, instead of the command's"
    )

    def problems(self) -> Iterator[str]:
        """Yield an error for names that stand for nothing, and for settings of steps that do not exist."""
        templates = {"answer": self.answer, "critique": self.critique, "revise": self.revise, "turn": self.turn}
        for name, template in templates.items():
            places = PLACES.get(name, {"answer", "critique"})
            for place in PLACE.findall(template):
                if place not in places:
                    yield f"{name}: {{{place}}} stands for nothing here; there are {', '.join(sorted(places))}"
        if "prompt" not in PLACE.findall(self.answer):
            yield "answer: needs {prompt}"
        for step in self.decoding:
            if step not in PLACES:
                yield f"decoding: {step} is no step; those are {', '.join(PLACES)}"
        try:
            re.compile(self.stop or "")
        except re.error as error:
            yield f"stop: {self.stop!r} is no regular expression: {error}"


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from a YAML file, or a shipped one by its name.

    Raises:
        UserError: the file cannot be read, or a setting is wrong.
    """
    return validate(Recipe, read(Recipe, path))


def fill_places(template: str, texts: Mapping[str, str]) -> str:
    """Replace each name in braces by its text. Braces in the texts stay as they are."""
    return PLACE.sub(lambda match: texts[match[1]], template)
