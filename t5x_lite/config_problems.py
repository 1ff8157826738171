"""Combinations of an objective with the model, the data and the training that are refused."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from t5x_lite.data.config import Bytes, TokenizerFile
from t5x_lite.data.order_problems import order_problems
from t5x_lite.evaluate.evaluators import Validation
from t5x_lite.objectives import Objective
from t5x_lite.objectives.policy_optimization import PolicyOptimization
from t5x_lite.train.optimizers import NTASGD

if TYPE_CHECKING:
    from t5x_lite.config import RunConfig


def objective_problems(config: "RunConfig", objective: Objective) -> Iterator[str]:
    """Yield what does not fit together between the objective, the model and the data."""
    if not config.model.outputs and config.model.head is None:
        yield "model.outputs: [] leaves nothing to predict; give some, or a head"
        return
    if config.model.family in objective.families:
        objective.check(config.model)
    else:
        families = " or ".join(objective.families)
        yield f"objective {objective.name} trains {families}, not a model of family {config.model.family}"
    if objective.needs_reference and not config.method.keeps_base:
        yield (
            f"objective {objective.name} compares the model with the one that it adapts: it needs "
            "adapt.method=lora or another that freezes the base, or adapt.method=reference, which keeps a copy"
        )
    if not objective.has_validation_loss and any(isinstance(e, Validation) for e in config.eval.evaluators):
        yield f"eval.evaluators: validation: objective {objective.name} has no loss on the validation split; remove it"
    if isinstance(objective, PolicyOptimization):
        yield from _policy_problems(config, objective)
    is_pseudo = not config.scores_left_to_right
    if is_pseudo and config.model.family == "encoder_decoder" and not objective.fills_spans:
        kind = config.eval.likelihood
        yield f"eval.likelihood: {kind} hides tokens, which objective {objective.name} does not fill in"
    if config.data.order == "consecutive":
        yield from order_problems(config.model, config.data, objective, config.train, config.mesh.pipeline)
    if config.tasks:
        if config.data.mixture_by == "tokens":
            yield "data.mixture_by=tokens is for text: the examples of `tasks` are mixed by their number"
        return
    if config.method.placeholders:
        yield f"objective {objective.name} has no place for soft tokens (adapt.method) without `tasks`"
    yield from _row_problems(config, objective)


def _policy_problems(config: "RunConfig", objective: PolicyOptimization) -> Iterator[str]:
    """Yield what does not fit together for an objective that samples answers."""
    train = config.train
    if config.adapt is None:
        yield f"objective {objective.name} improves the answers of another run: give adapt.from"
    if isinstance(config.optimizer.method, NTASGD):
        yield f"optimizer.method nt_asgd: objective {objective.name} would sample answers from averaged weights"
    if train.spike_factor is not None:
        yield f"train.spike_factor is for losses above zero; that of objective {objective.name} is about zero"
    answers = train.batch_size * objective.group_size
    parts = objective.minibatches * train.microbatches
    if answers % parts:
        yield (
            f"{answers} answers of a step (train.batch_size · answers to a prompt) are not a multiple of "
            f"objective.{objective.name}.minibatches · train.microbatches = {parts}"
        )


def _row_problems(config: "RunConfig", objective: Objective) -> Iterator[str]:
    """Yield what does not fit together between an objective on text and the rows of the text."""
    parts = config.data.parts
    packing = config.data.packing
    if objective.rows == "sentences" and packing != "sentences":
        yield (
            f"objective {objective.name} is trained on sentences: it needs data.packing=sentences and "
            f"data.parts=line or punctuation, found packing={packing}, parts={parts}"
        )
    if objective.rows == "documents" and (packing not in objective.packings or config.data.end_of_document):
        packings = " or ".join(objective.packings)
        yield (
            f"objective {objective.name} reads each document as one text and marks its end: it needs data.packing="
            f"{packings} and data.end_of_document=false, found packing={packing}, "
            f"end_of_document={str(config.data.end_of_document).lower()}"
        )
    if objective.rows == "turns" and parts != "turns":
        yield (
            f"objective {objective.name} is trained on conversations: it needs data.parts=turns and "
            f"data.field=messages, found parts={parts}"
        )
    if parts == "turns" and config.adapt is None and not isinstance(config.tokenizer, TokenizerFile | Bytes):
        yield "data.parts=turns needs a tokenizer with a chat template: set adapt.from or tokenizer.file.path"
    if objective.needs_sentences and parts not in {"line", "punctuation"}:
        yield f"objective {objective.name} permutes sentences: set data.parts=line or punctuation, not {parts}"
    if objective.rows == "pairs" and (parts != "fields" or packing not in objective.packings):
        packings = " or ".join(objective.packings)
        yield (
            f"objective {objective.name} is trained on pairs of texts: it needs data.parts=fields, two names in "
            f"data.field and data.packing={packings}, found packing={packing}, parts={parts}"
        )
