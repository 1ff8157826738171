"""A linear classifier on frozen states: softmax regression with an L2 penalty, fitted by L-BFGS."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import logsumexp

MOST_ITERATIONS = 1000
SMALLEST_DEVIATION = 1e-9


@dataclass(frozen=True)
class LinearProbe:
    """A fitted classifier.

    Attributes:
        mean: subtracted from the inputs, that of the training inputs.
        deviation: the inputs are divided by it.
        weight: one column for each class.
        bias: one number for each class.
    """

    mean: Float[np.ndarray, "d"]
    deviation: Float[np.ndarray, "d"]
    weight: Float[np.ndarray, "d classes"]
    bias: Float[np.ndarray, "classes"]

    def accuracy(self, inputs: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"]) -> float:
        """Return the share of inputs whose class is their label."""
        scores = (inputs - self.mean) / self.deviation @ self.weight + self.bias
        return float((scores.argmax(1) == labels).mean())


def fit_probe(
    inputs: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"], classes: int, strength: float = 1.0
) -> LinearProbe:
    """Minimise strength · Σ cross-entropy + ½·‖weight‖² over standardised inputs. The bias has no penalty.

    Args:
        inputs: one row for each example.
        labels: their classes, from 0.
        classes: number of classes.
        strength: of the data against the penalty, scikit-learn's `C`.
    """
    mean = inputs.mean(0, dtype=np.float64)
    deviation = np.maximum(inputs.std(0, dtype=np.float64), SMALLEST_DEVIATION)
    standard = (inputs - mean) / deviation
    one_hot = np.eye(classes)[labels]
    features = standard.shape[1]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight = flat[:-classes].reshape(features, classes)
        scores = standard @ weight + flat[-classes:]
        log_z = logsumexp(scores, axis=1, keepdims=True)
        loss = strength * (log_z[:, 0] - scores[np.arange(len(labels)), labels]).sum() + 0.5 * np.square(weight).sum()
        errors = strength * (np.exp(scores - log_z) - one_hot)
        gradient = np.concatenate([(standard.T @ errors + weight).ravel(), errors.sum(0)])
        return loss, gradient

    start = np.zeros((features + 1) * classes)
    fitted = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": MOST_ITERATIONS})
    return LinearProbe(mean, deviation, fitted.x[:-classes].reshape(features, classes), fitted.x[-classes:])
