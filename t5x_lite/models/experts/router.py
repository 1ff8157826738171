"""The interface of a router: which experts each token is sent to, and the losses on that choice.

A router is one file: a class of this kind with its settings, its choice and its losses, and an entry in `ROUTERS`. It
imports JAX inside its methods, so that a config is checked before JAX starts.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from jaxtyping import Bool, Float, Int

from t5x_lite.arrays import Array
from t5x_lite.schema import Config, setting

if TYPE_CHECKING:
    from t5x_lite.models.experts.activity import RouterActivity

BalanceScope = Literal["row", "batch", "model"]


@dataclass(frozen=True)
class Assignment:
    """The experts of every token.

    Attributes:
        experts: the number of each chosen expert; a choice of none has a number past the last.
        weights: factor on the output of each chosen expert.
        probability: what the balance loss calls the probability of each expert.
    """

    experts: Int[Array, "b l k"]
    weights: Float[Array, "b l k"]
    probability: Float[Array, "b l e"]


class Router(Config):
    """The settings and methods that all routers have. They compute in float32.

    The balance loss is experts · Σ f·p over the experts, f the share of tokens that chose one (each of k choices
    counts) and p its mean probability: of every row, of the batch, or of the batch and all layers of a stack together;
    summed over layers.
    """

    has_bias: ClassVar[bool] = False
    """The router has a trained bias for each expert."""
    experts_choose_tokens: ClassVar[bool] = False
    """Experts choose among the tokens of a row; see `choose_tokens`. Otherwise tokens choose experts."""

    balance: float = setting(0.01, "factor on the load-balance loss", ge=0)
    over: BalanceScope = setting(
        "row", "what its shares and means are taken over: each row, the batch, or the whole stack too"
    )
    z_loss: float = setting(0.0, "factor on mean(log²Σexp) of the router's logits", ge=0, source="Zoph 2022, §3.3")

    @property
    @abstractmethod
    def choices(self) -> int:
        """Return the number of experts that a token is sent to."""

    @property
    def mean_choices(self) -> float:
        """Return the number of experts of a token on average, by which costs are counted."""
        return self.choices

    @property
    def has_logit_bias(self) -> bool:
        """The logits have a bias for each expert, which gradients train."""
        return False

    @property
    def weights_sum_to_one(self) -> bool:
        """The weights of a token's experts sum to one, so that a dense model can be upcycled without changing it."""
        return True

    def expert_problems(self, experts: int) -> Iterator[str]:
        """Yield why the router cannot choose among so many experts."""
        if self.choices > experts:
            yield f"moe: the router sends a token to {self.choices} of {experts} experts"

    @property
    def bias_update_rate(self) -> float | None:
        """Return how far each step moves the bias of an expert against its load; None: it does not move."""
        return None

    def perturb(self, x: Float[Array, "b l d"], key: Array | None) -> Float[Array, "b l d"]:
        """Return the input of the router, with noise in training (`key` is not None)."""
        return x

    @abstractmethod
    def choose_experts(
        self, logits: Float[Array, "b l e"], bias: Float[Array, "e"] | None, key: Array | None
    ) -> Assignment:
        """Return the experts of each token; `key` is None in evaluation."""

    def choose_tokens(
        self, logits: Float[Array, "b l e"], is_token: Bool[Array, "b l"]
    ) -> tuple[Float[Array, "b e c"], Int[Array, "b e c"], Float[Array, "b l e"]]:
        """Return the weights and the positions of the tokens that each expert takes, and the probabilities."""
        raise TypeError(f"tokens choose experts under {type(self).__name__}")

    def balanced_choices(self, experts: Int[Array, "b l k"]) -> Int[Array, "b l j"]:
        """Return the choices that the balance loss counts."""
        return experts

    def balance_loss(self, activity: "RouterActivity") -> Float[Array, ""]:
        """Return the load-balance loss of layers of a stack, without its factor.

        Args:
            activity: arrays with an axis over layers before the rows.
        """
        import jax.numpy as jnp

        experts = activity.sent.shape[-1]
        axes = {"row": (), "batch": (1,), "model": (0, 1)}[self.over]
        counted = activity.counted.sum(axes, keepdims=True)
        probability = activity.probability.sum(axes, keepdims=True)
        tokens = activity.tokens.sum(axes, keepdims=True)
        # A row that is all padding has no share in the mean.
        per_token = jnp.maximum(tokens, 1)[..., None]
        loss = experts * jnp.sum((counted / per_token) * (probability / per_token), axis=-1)
        rows = jnp.maximum((tokens > 0).sum(1), 1)
        return jnp.sum(loss.sum(1) / rows)


def highest(x: Float[Array, "... e"], k: int) -> tuple[Float[Array, "... k"], Int[Array, "... k"]]:
    """Return the k highest values and their positions.

    XLA does not divide `lax.top_k` over a mesh: each device would choose for the whole batch.
    """
    import jax.numpy as jnp

    values = []
    positions = []
    remaining = x
    for _ in range(k):
        position = jnp.argmax(remaining, axis=-1)
        is_highest = jnp.arange(x.shape[-1]) == position[..., None]
        values.append(jnp.sum(jnp.where(is_highest, x, 0), axis=-1))
        positions.append(position)
        remaining = jnp.where(is_highest, -jnp.inf, remaining)
    return jnp.stack(values, axis=-1), jnp.stack(positions, axis=-1)
