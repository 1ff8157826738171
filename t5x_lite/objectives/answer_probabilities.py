"""Log-probabilities of the answers of an example, of which each has a row of features (`[batch, answers, length]`)."""

from dataclasses import replace

from t5x_lite.objectives.inputs_targets import model_states
from t5x_lite.objectives.model_protocols import Array, Batch, DropoutKey, LanguageModel, LossSettings
from t5x_lite.objectives.supervised import one_text_a_row


def answer_log_probabilities(
    model: LanguageModel, batch: Batch, key: DropoutKey, settings: LossSettings | None
) -> Array:
    """Return the sum of the log-probabilities of each answer's tokens, `[batch, answers]`.

    Args:
        model: predicts the tokens.
        batch: features that the model reads, and `targets` and `answer_weights`, all with an axis over answers.
        key: turns dropout on.
        settings: how logits are cut in chunks, with the rows of examples; None computes them at once.
    """
    import jax

    from t5x_lite.models import losses

    count = batch["targets"].shape[1]
    rows = {name: one_text_a_row(feature) for name, feature in batch.items() if feature.ndim == batch["targets"].ndim}
    targets = rows.pop("targets")
    weights = rows.pop("answer_weights")
    states = model_states(model, rows, key)
    if settings is None:
        vocab = jax.eval_shape(model.logits, states).shape[-1]
        settings = losses.LossSettings(vocab, rows=len(states))
    else:
        settings = replace(settings, rows=count * settings.rows)
    sums = losses.sequence_log_probabilities(model.logits, states, targets, weights, settings)
    return sums.reshape(-1, count)
