"""Reflection: a model answers, criticises its answer, and revises it, until a critique ends this (Self-Refine)."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from t5x_lite.decode.beam import Beam
from t5x_lite.decode.chat import chat_prompts, user_chats
from t5x_lite.decode.generate import decoding_settings
from t5x_lite.decode.generation_model import GenerationModel
from t5x_lite.decode.recipe import PLACES, Recipe, fill_places
from t5x_lite.decode.sampling import Sampling
from t5x_lite.errors import UserError
from t5x_lite.files import write_file


@dataclass(frozen=True)
class Turn:
    """An answer and what the model says of it."""

    answer: str
    critique: str


@dataclass
class Reflection:
    """The answers to a prompt.

    Attributes:
        prompt: what was asked.
        answer: the last answer.
        turns: the answers with their critiques, in their order.
        is_accepted: True if the last critique was one that ends the recipe.
    """

    prompt: str
    answer: str
    turns: list[Turn] = field(default_factory=list)
    is_accepted: bool = False

    def texts(self, recipe: Recipe) -> dict[str, str]:
        """Return what the names in a recipe's prompts stand for."""
        texts = {"prompt": self.prompt, "answer": self.answer}
        texts["history"] = "".join(fill_places(recipe.turn, asdict(turn)) for turn in self.turns)
        if self.turns:
            texts["critique"] = self.turns[-1].critique
        return texts


class Reflector:
    """Runs a recipe with a model.

    Args:
        model: a decoder or an encoder_decoder.
        recipe: the recipe.
        settings: settings of generation for all steps; those of the recipe's steps are put over them.

    Raises:
        UserError: a setting that does not exist or is out of range.
    """

    def __init__(self, model: GenerationModel, recipe: Recipe, settings: Mapping[str, object]) -> None:
        self._model = model
        self._recipe = recipe
        self._decoding = step_settings(recipe, settings)

    def __call__(self, prompts: Sequence[str]) -> list[Reflection]:
        """Answer prompts. The answers that no critique has ended yet are revised together.

        Texts lose the white space around them. Random draws depend on the seed, the number of the prompt and the number
        of the step, and not on how long other prompts go on.
        """
        reflections = [Reflection(prompt, "") for prompt in prompts]
        answers = self._generate("answer", reflections, range(len(prompts)), 0)
        for reflection, answer in zip(reflections, answers, strict=True):
            reflection.answer = answer
        for number in range(self._recipe.rounds):
            going_on = [place for place, reflection in enumerate(reflections) if not reflection.is_accepted]
            critiques = self._generate("critique", reflections, going_on, 2 * number + 1)
            for place, critique in zip(going_on, critiques, strict=True):
                reflection = reflections[place]
                reflection.turns.append(Turn(reflection.answer, critique))
                reflection.is_accepted = self._is_accepted(critique)
            to_revise = [place for place in going_on if not reflections[place].is_accepted]
            revised = self._generate("revise", reflections, to_revise, 2 * number + 2)
            for place, answer in zip(to_revise, revised, strict=True):
                reflections[place].answer = answer
        return reflections

    def _is_accepted(self, critique: str) -> bool:
        return self._recipe.stop is not None and re.search(self._recipe.stop, critique) is not None

    def _generate(self, step: str, reflections: Sequence[Reflection], places: Sequence[int], number: int) -> list[str]:
        """Return the texts of a step, the `number`-th of all, for the reflections at some places."""
        if not places:
            return []
        template = getattr(self._recipe, step)
        prompts = [fill_places(template, reflections[place].texts(self._recipe)) for place in places]
        streams = np.array([(place, number) for place in places], np.int32)
        generator = self._model.generator
        decoding = self._decoding[step]
        if self._recipe.chat:
            texts = generator.generate(chat_prompts(self._model, user_chats(prompts)), decoding, streams)
        else:
            texts = generator.generate(prompts, decoding, streams)
        return [text.strip() for text in texts]


def step_settings(recipe: Recipe, settings: Mapping[str, object]) -> dict[str, Sampling | Beam]:
    """Return the settings of generation of each step.

    Raises:
        UserError: a setting that does not exist or is out of range; names the step.
    """
    decoding = {}
    for step in PLACES:
        try:
            decoding[step] = decoding_settings(**{**settings, **recipe.decoding.get(step, {})})
        except UserError as error:
            raise UserError(f"recipe, step {step}: {error}") from None
    return decoding


def print_reflections(reflections: Sequence[Reflection], trace: Path | None) -> None:
    """Print the last answers. A trace is a file with a JSON object for each prompt, of all answers and critiques.

    Raises:
        UserError: the file cannot be written.
    """
    for reflection in reflections:
        print(f"{reflection.answer}\n")
    if trace is None:
        return
    lines = [json.dumps(asdict(reflection), ensure_ascii=False) + "\n" for reflection in reflections]
    write_file(trace, "".join(lines))
