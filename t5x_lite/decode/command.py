"""`t5x-lite generate`: continue prompts, answer conversations, or run a recipe of reflection."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from t5x_lite.argument_types import check_utf8
from t5x_lite.decode.beam import Beam
from t5x_lite.decode.chat import Chat, chat_prompts, read_chats, user_chats
from t5x_lite.decode.fill import print_answers, print_generation
from t5x_lite.decode.generate import decoding_settings
from t5x_lite.decode.generation_model import GenerationModel
from t5x_lite.decode.options import decoding_options
from t5x_lite.decode.recipe import Recipe, load_recipe
from t5x_lite.decode.reflection import Reflector, print_reflections, step_settings
from t5x_lite.decode.sampling import Sampling, default_tokens
from t5x_lite.errors import UserError
from t5x_lite.files import check_not_input
from t5x_lite.retrieval.config import Passages, passages_of_arguments
from t5x_lite.retrieval.prompts import augment_prompts

SAMPLING_OPTIONS = frozenset({"temperature", "top_k", "top_p", "min_p", "seed"})
"""Settings without which the spans of sentinels are the most likely."""


@dataclass(frozen=True)
class GenerationRequest:
    """The texts to generate from, and the settings.

    Attributes:
        prompts: texts to continue; empty if there are chats.
        chats: conversations to continue.
        recipe: a reflection on each prompt.
        trace: file for all answers and critiques of the recipe.
        settings: settings of generation by their names.
        decoding: the same, checked.
        passages: passages that are put before each prompt.
    """

    prompts: Sequence[str]
    chats: Sequence[Chat]
    recipe: Recipe | None
    trace: Path | None
    settings: Mapping[str, object]
    decoding: Sampling | Beam
    passages: Passages | None


def parse_request(options: argparse.Namespace) -> GenerationRequest:
    """Return the request of a command line.

    Raises:
        UserError: settings that do not exist or do not go together, or a file that cannot be read.
    """
    passages = passages_of_arguments(options)
    settings = decoding_options(options)
    decoding = decoding_settings(**settings)
    biased_texts = [key for key in settings.get("logit_bias", {}) if isinstance(key, str)]
    for text in [*(options.prompt or options.chat or []), *settings.get("stop", []), *biased_texts]:
        check_utf8(text)
    if options.recipe and not options.prompt:
        raise UserError("generate: --recipe is for --prompt; `chat: true` in the recipe uses the chat template")
    if options.recipe and passages is not None:
        raise UserError("generate: --index is for --prompt without --recipe")
    if options.trace and not options.recipe:
        raise UserError("generate: --trace is for --recipe")
    if options.trace:
        check_not_input(options.trace, Path(options.recipe))
        if options.trace.is_dir():
            raise UserError(f"--trace {options.trace}: is a folder")
    recipe = None
    if options.recipe:
        recipe = load_recipe(options.recipe)
        step_settings(recipe, settings)
    chats = user_chats(options.chat or [])
    if options.chat_file:
        chats = read_chats(options.chat_file)
    return GenerationRequest(options.prompt or [], chats, recipe, options.trace, settings, decoding, passages)


def print_results(model: GenerationModel, request: GenerationRequest) -> None:
    """Generate, and print the texts."""
    if model.config.model.is_encoder_only and request.settings:
        options = ", ".join("--" + name.replace("_", "-") for name in request.settings)
        logging.warning("an encoder fills masks, without the options of generation: %s", options)
    decoding = request.decoding
    if "tokens" not in request.settings:
        decoding = replace(decoding, tokens=default_tokens(model.config.model.max_length))
    if request.recipe is not None:
        reflect = Reflector(model, request.recipe, {"tokens": decoding.tokens, **request.settings})
        print_reflections(reflect(request.prompts), request.trace)
    elif request.chats:
        print_answers(model, chat_prompts(model, request.chats), decoding)
    else:
        prompts = augment_prompts(request.passages, request.prompts)
        samples_spans = not SAMPLING_OPTIONS.isdisjoint(request.settings)
        print_generation(model, prompts, decoding, samples_spans=samples_spans)
