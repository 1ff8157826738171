"""Combinations of an objective with the model, the data and the training that are refused."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from t5x_lite.adapt import ADAPTATIONS
from t5x_lite.data.config import DataConfig
from t5x_lite.data.tokenizer_config import Bytes, TokenizerFile
from t5x_lite.errors import UserError
from t5x_lite.evaluate.evaluators import Tasks, Validation
from t5x_lite.models.config import ModelConfig
from t5x_lite.objectives import Causal, Objective
from t5x_lite.objectives.dummy_example import LARGEST_VOCAB, dummy_context, dummy_example
from t5x_lite.objectives.mixed_rows import feature_types
from t5x_lite.objectives.policy_optimization import PolicyOptimization
from t5x_lite.objectives.preference import Preference
from t5x_lite.objectives.token_prediction import TokenPrediction
from t5x_lite.order_problems import memory_problems, order_problems
from t5x_lite.schema import component_name
from t5x_lite.train.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from t5x_lite.config import RunConfig

WITHOUT_PREFIX = (Causal, PolicyOptimization, Preference)
"""Objectives that train each token of a text, or of an answer, on all tokens before it."""


def objective_problems(config: "RunConfig", objective: Objective) -> Iterator[str]:
    """Yield what does not fit together between the objective, the model and the data."""
    if not config.model.outputs and config.model.head is None:
        yield "model.outputs: [] leaves nothing to predict; give some, or a head"
        return
    row_objectives = config.data.objectives(objective)
    yield from _family_problems(config.model, (objective, *row_objectives))
    yield from _mixing_problems(config, objective, row_objectives)
    yield from _reference_problems(config, objective)
    yield from _evaluator_problems(config, objective)
    if config.policy_objective is not None:
        yield from _policy_problems(config, config.policy_objective)
    is_pseudo = not config.scores_left_to_right
    if is_pseudo and config.model.family == "encoder_decoder" and not objective.fills_spans:
        kind = config.eval.likelihood
        yield f"eval.likelihood: {kind} hides tokens, which objective {objective.name} does not fill in"
    yield from _reduction_problems(config, (objective, *row_objectives))
    # The rows of these have no prefix, and a model that reads prompts in both directions would be trained as another.
    if config.model.prefix_lm and all(isinstance(each, WITHOUT_PREFIX) for each in (objective, *row_objectives)):
        yield (
            f"model.prefix_lm: objective {objective.name} trains no prefix; set objective=prefix or "
            "model.prefix_lm=false"
        )
    if config.data.order == "consecutive":
        yield from order_problems(config.model, config.data, objective, config.train, config.mesh.pipeline)
    if config.tasks:
        if config.data.mixture_by == "tokens":
            yield "data.mixture_by=tokens is for text: the examples of `tasks` are mixed by their number"
        if config.data.mixture:
            yield "data.mixture is for text: the records of `tasks` are in data.files and data.validation_files"
        if config.data.cleaning:
            yield "data.cleaning is for text: the records of `tasks` are taken as they are; remove it"
        return
    if config.data.order != "consecutive":
        yield from memory_problems(config.model)
    if config.method.num_virtual_tokens:
        yield f"objective {objective.name} has no place for virtual tokens (adapt.method) without `tasks`"
    # Sources with the same settings have the same problem.
    problems: dict[str, None] = {}
    for source in config.data.sources:
        source_data = config.data.of_source(source)
        problems.update(dict.fromkeys(_row_problems(config, source_data, source.objective or objective)))
    yield from problems


def _reference_problems(config: "RunConfig", objective: Objective) -> Iterator[str]:
    """Yield why a comparison with the adapted model lacks that model, or why it is kept for nothing."""
    if objective.needs_reference and not config.method.keeps_base:
        yield (
            f"objective {objective.name} compares the model with the one that it adapts: it needs "
            "adapt.method=lora or another that freezes the base, or adapt.method=reference, which keeps a copy"
        )
    if config.method.copies_base and not objective.needs_reference:
        name = component_name(ADAPTATIONS, config.method)
        yield (
            f"adapt.method={name} keeps a copy of the weights that objective {objective.name} does not read; "
            "set adapt.method=full"
        )


def _evaluator_problems(config: "RunConfig", objective: Objective) -> Iterator[str]:
    """Yield which evaluators have nothing to evaluate."""
    evaluators = config.eval.evaluators
    if not objective.has_validation_loss and any(isinstance(e, Validation) for e in evaluators):
        yield f"eval.evaluators: validation: objective {objective.name} has no loss on the validation split; remove it"
    if not config.tasks and any(isinstance(e, Tasks) for e in evaluators):
        yield "eval.evaluators: tasks: the run learns none; name them in `tasks`, or those of the evaluator few_shot"


def _reduction_problems(config: "RunConfig", objectives: Sequence[Objective]) -> Iterator[str]:
    """Yield which parts of a loss are no sums over rows, so that replicas cannot compute them apart."""
    if config.train.data_reduction == "microbatch":
        return
    start = "train.data_reduction=step computes the rows of each replica apart"
    for objective in dict.fromkeys(objectives):
        if objective.compares_rows:
            yield f"{start}, and objective {objective.name} compares all rows of a batch: set it to microbatch"
    if config.model.mixtures:
        yield f"{start}, and routers of experts balance the tokens of all rows: set it to microbatch"


def _family_problems(model: ModelConfig, objectives: Sequence[Objective]) -> Iterator[str]:
    """Yield which objectives cannot train the model.

    Raises:
        ValueError: an objective refuses it, with the reason.
    """
    for objective in dict.fromkeys(objectives):
        if model.family in objective.families:
            objective.check(model)
        else:
            families = " or ".join(objective.families)
            yield f"objective {objective.name} trains {families}, not a model of family {model.family}"


def _mixing_problems(config: "RunConfig", objective: Objective, row_objectives: Sequence[Objective]) -> Iterator[str]:
    """Yield why the objectives of sources cannot share batches with the objective of the run, whose loss they have."""
    for other in row_objectives:
        if other == objective:
            continue
        pair = f"data.mixture: objective {other.name} of a source and `objective: {objective.name}`"
        if other.loss_kind is None or other.loss_kind != objective.loss_kind:
            yield f"{pair} compute different losses, so that their rows cannot share a batch; train them one by one"
            continue
        context = dummy_context(LARGEST_VOCAB, config.train.seq_len, config.model.family)
        try:
            types = feature_types(dummy_example(objective, context))
            other_types = feature_types(dummy_example(other, context))
        except UserError:
            continue  # for want of room or of a token that the tokenizer may have; reported when the data is opened
        if types != other_types:
            differing = ", ".join(sorted(types.keys() ^ other_types.keys()))
            yield f"{pair} make different features ({differing}), so that their rows cannot share a batch"


def distillation_problems(config: "RunConfig") -> Iterator[str]:
    """Yield what does not fit together between a teacher and the objective or the data."""
    if not isinstance(config.objective, TokenPrediction):
        name = "none" if config.objective is None else config.objective.name
        yield f"distillation is for objectives that predict the tokens of a text, not for objective {name}"
    if config.data.order == "consecutive":
        yield "distillation: the teacher carries no states from batch to batch; set data.order=shuffled"
    if config.method.num_virtual_tokens:
        yield "distillation: the teacher cannot read the virtual tokens of adapt.method; take another method"
    if config.method.rewinds:
        yield "distillation: adapt.method lottery has the losses of the dense run; remove one of the two"


def _policy_problems(config: "RunConfig", objective: PolicyOptimization) -> Iterator[str]:
    """Yield what does not fit together for an objective that samples answers."""
    train = config.train
    if config.adapt is None:
        yield f"objective {objective.name} improves the answers of another run: give adapt.from"
    if config.method.num_virtual_tokens and config.tasks:
        yield (f"objective {objective.name} samples answers without virtual tokens; take another adapt.method, as lora")
    if config.method.trains_head_alone:
        name = component_name(ADAPTATIONS, config.method)
        yield (
            f"objective {objective.name} trains the model, and adapt.method {name} the head alone: take another, such "
            "as lora"
        )
    if config.optimizer.method.averages_weights:
        name = component_name(OPTIMIZERS, config.optimizer.method)
        yield f"optimizer.method {name}: objective {objective.name} would sample answers from averaged weights"
    if train.spike_factor is not None:
        yield f"train.spike_factor is for losses above zero; that of objective {objective.name} is about zero"
    answers = train.batch_size * objective.group_size
    parts = objective.minibatches * train.microbatches
    if answers % parts:
        yield (
            f"{answers} answers of a step (train.batch_size · answers to a prompt) are not a multiple of "
            f"objective.{objective.name}.minibatches · train.microbatches = {parts}"
        )


def _row_problems(config: "RunConfig", data: DataConfig, objective: Objective) -> Iterator[str]:
    """Yield what does not fit together between an objective on text and the rows of the text."""
    if objective.reads_two_streams and (config.mesh.pipeline > 1 or config.mesh.context > 1):
        yield f"objective {objective.name}: two streams need mesh.pipeline=1 and mesh.context=1"
    needs = objective.rows.needs
    if any(getattr(data, name) not in values for name, values in needs.items()):
        needed = " and ".join(f"data.{name}={_list_values(values)}" for name, values in needs.items())
        actual = ", ".join(f"{name}={_list_values([getattr(data, name)])}" for name in needs)
        yield f"objective {objective.name} is trained on {objective.rows.content}: it needs {needed}, found {actual}"
    separates_documents = objective.one_text or objective.rows.separates_documents
    if separates_documents and data.packing == "documents" and not data.separate_documents:
        yield (
            f"objective {objective.name} takes each document of a row as a text of its own: with packing=documents it "
            "needs data.separate_documents=true"
        )
    if data.parts == "turns" and config.adapt is None and not isinstance(config.tokenizer, TokenizerFile | Bytes):
        yield "data.parts=turns needs a tokenizer with a chat template: set adapt.from or tokenizer.file.path"


def _list_values(values: Iterable[object]) -> str:
    """Return values of a setting as they are written in a config."""
    return " or ".join(str(value).lower() for value in values)
