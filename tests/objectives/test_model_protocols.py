"""Models have the members that objectives call, and examples have the weights that objectives declare."""

from typing import Any

import numpy as np
import pytest

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.objectives.causal import Causal
from t5x_lite.objectives.contrastive import Contrastive
from t5x_lite.objectives.masked import Masked
from t5x_lite.objectives.model_protocols import (
    DetectionModel,
    ElectraModel,
    LanguageModel,
    MaskedLanguageModel,
    TaskHead,
    TaskModel,
)
from t5x_lite.objectives.objective import Objective, TokenRow
from t5x_lite.objectives.prefix import Prefix
from t5x_lite.objectives.replaced_token import ReplacedToken
from t5x_lite.objectives.span_corruption import SpanCorruption
from t5x_lite.objectives.text_to_text import TextToText
from t5x_lite.objectives.translation import Translation
from t5x_lite.objectives.ul2 import UL2
from tests.objectives.vocabulary import context, row


def abstract_model(**settings: object) -> Any:
    config = ModelConfig.model_validate({"layers": 1, "embed": 8, "heads": 2, "vocab": 20, **settings})
    spec = model_spec(config)
    return spec.model(spec.shapes)


HEAD = {"head": {"outputs": 2, "pool": "first"}}
ELECTRA = {"family": "electra", "outputs": ["detection"], "generator": {"layers": 1, "embed": 4, "heads": 1}}


@pytest.mark.parametrize(
    ("settings", "protocol"),
    [
        ({"family": "decoder"}, LanguageModel),
        ({"family": "encoder_decoder"}, LanguageModel),
        ({"family": "encoder"}, MaskedLanguageModel),
        ({"family": "encoder", "outputs": ["tokens", "sentence", "span"], "token_types": 2}, MaskedLanguageModel),
        ({"family": "encoder", "outputs": [], **HEAD}, TaskModel),
        ({"family": "decoder", **HEAD}, TaskModel),
        (ELECTRA, ElectraModel),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_models_have_the_members_of_their_protocol(settings: dict[str, object], protocol: Any) -> None:
    model = abstract_model(**settings)
    assert isinstance(model, protocol)
    if protocol is TaskModel:
        assert isinstance(model.head, TaskHead)
    if protocol is ElectraModel:
        assert isinstance(model.generator, LanguageModel)
        assert isinstance(model.discriminator, DetectionModel)


@pytest.mark.parametrize(
    "objective",
    [
        Causal(),
        Prefix(),
        SpanCorruption(),
        UL2(),
        TextToText(),
        Masked(),
        Masked(sentences="next", spans="geometric", boundary=True),
        ReplacedToken(),
        Contrastive(),
        Translation(),
    ],
    ids=lambda objective: objective.name,
)
def test_examples_have_the_declared_weights_and_no_others(objective: Objective) -> None:
    run = context(64, objective.families[0], size=300, sentinels=60)
    text = row(np.arange(10, 10 + objective.row_length(run)))
    text = TokenRow(text.tokens, text.segments, text.parts, second_sentence=text)
    features = objective.example(text, run, np.random.default_rng(0))
    weights = {name for name in features if name.endswith("_weights")}
    assert weights == set(objective.term_weights.values())
    assert objective.term_weights["loss"] == "loss_weights"
