"""Evaluators: one file each, one entry here."""

from t5x_lite.evaluate.evaluators.attention_map import AttentionMap
from t5x_lite.evaluate.evaluators.blimp import Blimp
from t5x_lite.evaluate.evaluators.cloze import Cloze
from t5x_lite.evaluate.evaluators.evaluator import Evaluator
from t5x_lite.evaluate.evaluators.few_shot import FewShot
from t5x_lite.evaluate.evaluators.memorisation import Memorisation
from t5x_lite.evaluate.evaluators.perplexity import Perplexity
from t5x_lite.evaluate.evaluators.samples import Samples
from t5x_lite.evaluate.evaluators.tasks import Tasks
from t5x_lite.evaluate.evaluators.validation import Validation

EVALUATORS: dict[str, type[Evaluator]] = {
    "validation": Validation,
    "tasks": Tasks,
    "perplexity": Perplexity,
    "few_shot": FewShot,
    "blimp": Blimp,
    "samples": Samples,
    "cloze": Cloze,
    "attention_map": AttentionMap,
    "memorisation": Memorisation,
}
