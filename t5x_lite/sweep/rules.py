"""Published rules for the learning rate and the batch size of a run."""

import math
from typing import Literal, TypeAlias

Rule: TypeAlias = Literal["kaplan", "deepseek"]


def learning_rate_by_rule(rule: Rule, parameters: float, flops: float) -> float:
    """Return the learning rate: Kaplan et al. 2020, eq. D.1, by N; DeepSeek LLM 2024, eq. 1, by C.

    Args:
        rule: which of the two.
        parameters: N without embeddings.
        flops: C.
    """
    if rule == "deepseek":
        return 0.3118 * flops**-0.1250
    return 0.003239 - 0.0001395 * math.log(parameters)


def batch_tokens_by_rule(rule: Rule, parameters: float, flops: float) -> float:
    """Return the tokens of a batch.

    DeepSeek LLM 2024, eq. 1, gives them by C. Kaplan et al. 2020, eq. 1.4, give the critical batch size of a loss; here
    it is the loss at N (eq. 1.1).

    Args:
        rule: which of the two.
        parameters: N without embeddings.
        flops: C.
    """
    if rule == "deepseek":
        return 0.2920 * flops**0.3271
    loss = (8.8e13 / parameters) ** 0.076
    return 2e8 / loss ** (1 / 0.21)
