"""Rows of prompts with sampled answers, and the model's log-probabilities of the answers' tokens."""

from typing import TYPE_CHECKING, Any

from t5x_lite.objectives.model_protocols import Array, Batch, LanguageModel, LossSettings
from t5x_lite.objectives.policy_optimization import PolicyOptimization

if TYPE_CHECKING:
    from t5x_lite.models.policy_losses import PolicyLoss


def answer_rows(batch: Batch) -> dict[str, Array]:
    """Return a row for each answer, of the prompt and the answer.

    Args:
        batch: `prompt` and `prompt_segments` `[b, p]`, padded on the left; `answers` `[b, group, t]`, -1 after EOS.

    Returns:
        `tokens`, `positions` and `segment_ids`, int32 `[b·group, p + t]`, padded on the right; `answer` int32 and
        `answer_weights` float32 `[b·group, t]`, 0 after EOS; `predicted_from` int32 `[b·group, t]`, the place
        in the row whose state predicts each token of the answer; `loss_weights` float32 `[b·group]`.
    """
    import jax.numpy as jnp

    from t5x_lite.models.sharding import constrain

    group = batch["answers"].shape[1]
    answers = batch["answers"].reshape(-1, batch["answers"].shape[2])
    is_answer = answers >= 0
    answers = jnp.where(is_answer, answers, 0)
    prompts = jnp.repeat(batch["prompt"], group, axis=0)
    prompt_segments = jnp.repeat(batch["prompt_segments"], group, axis=0)
    text = jnp.concatenate([prompts, answers], axis=1)
    segment_ids = jnp.concatenate([prompt_segments, is_answer.astype(jnp.int32)], axis=1)
    prompt_sizes = prompt_segments.sum(1, keepdims=True)
    length = text.shape[1]
    # Rows begin with their prompts, so that the padding comes last, as in all other rows.
    places = (jnp.arange(length) + prompts.shape[1] - prompt_sizes) % length
    rows = {
        "tokens": jnp.take_along_axis(text, places, axis=1),
        "positions": jnp.broadcast_to(jnp.arange(length), text.shape),
        "segment_ids": jnp.take_along_axis(segment_ids, places, axis=1),
        "answer": answers,
        "answer_weights": is_answer.astype(jnp.float32),
        "predicted_from": prompt_sizes - 1 + jnp.arange(answers.shape[1]),
        "loss_weights": jnp.ones(len(answers), jnp.float32),
    }
    return {name: constrain(row, "batch", *[None] * (row.ndim - 1)) for name, row in rows.items()}


def answer_states(model: LanguageModel, rows: Batch) -> Array:
    """Return the states that predict the tokens of each answer, `[n, t, embed]`. Dropout is off."""
    from t5x_lite.models.gather_positions import gather_positions

    states = model(rows["tokens"], positions=rows["positions"], segment_ids=rows["segment_ids"], key=None)
    return gather_positions(states, rows["predicted_from"])


def log_probabilities(model: Any, states: Array, rows: Batch, settings: LossSettings, temperature: float) -> Array:
    """Return the log-probabilities of the answers' tokens by a model, `[n, t]`.

    Args:
        model: the model.
        states: its states that predict the tokens, see `answer_states`.
        rows: of `answer_rows`.
        settings: how logits are cut in chunks.
        temperature: divides the logits.
    """
    from t5x_lite.models.losses import token_log_probabilities

    scores, _ = token_log_probabilities(model.logits, states, rows["answer"], settings, temperature)
    return scores


def reference_log_probabilities(model: Any, rows: Batch, settings: LossSettings, temperature: float) -> Array:
    """Return the log-probabilities of the answers' tokens by the frozen reference of a model, `[n, t]`."""
    from t5x_lite.models.reference import reference_model

    reference = reference_model(model)
    return log_probabilities(reference, answer_states(reference, rows), rows, settings, temperature)


def policy_loss(
    objective: PolicyOptimization, model: LanguageModel, states: Array, rows: Batch, settings: LossSettings
) -> "PolicyLoss":
    """Return the sums of the clipped loss over the tokens of answers, with the metrics of the policy.

    Args:
        objective: has the temperature, the bounds of the ratio and, if `kl_in_loss`, the weight of the KL divergence.
        model: the policy.
        states: its states that predict the tokens.
        rows: of `answer_rows`, with `old_log_probabilities`, `reference_log_probabilities` if there is a reference,
            `advantages`, and `token_weights`, by which the losses of tokens are summed; all `[n, t]`.
        settings: how logits are cut in chunks.
    """
    import jax.numpy as jnp

    from t5x_lite.models.losses import token_log_probabilities
    from t5x_lite.models.policy_losses import PolicyLoss, clipped_policy_losses, kl_estimates

    temperature = objective.temperature
    scores, entropies = token_log_probabilities(model.logits, states, rows["answer"], settings, temperature)
    losses, is_clipped = clipped_policy_losses(
        scores, rows["old_log_probabilities"], rows["advantages"], objective.clip_low, objective.clip_high
    )
    mask = rows["answer_weights"]
    kl = None
    if "reference_log_probabilities" in rows:
        estimates = kl_estimates(scores, rows["reference_log_probabilities"])
        kl = jnp.sum(mask * estimates)
        if objective.kl_in_loss:
            losses = losses + objective.kl_weight * estimates
    total = jnp.sum(rows["token_weights"] * losses)
    return PolicyLoss(
        total=total,
        loss=total,
        z_loss=jnp.zeros_like(total),
        correct=None,
        weight=rows[objective.term_weights["loss"]].sum(),
        kl=kl,
        entropy=jnp.sum(mask * entropies),
        clipped=jnp.sum(mask * is_clipped),
        tokens=mask.sum(),
    )
