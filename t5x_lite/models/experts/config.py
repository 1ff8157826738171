"""Settings of Mixture-of-Experts layers: how tokens choose experts, and how they get to them. No JAX here."""

from abc import abstractmethod
from typing import ClassVar, Literal

from t5x_lite.schema import Config, Int, setting

Over = Literal["row", "batch", "model"]


class Router(Config):
    """What all routers have in common. All compute in float32.

    The balance loss is experts · Σ f·p over the experts, f the share of tokens that chose one (each of k choices
    counts) and p its mean probability: of every row, of the batch, or of the batch and all layers of a stack together;
    summed over layers. A router whose weights `sum_to_one` can be put into a dense model without changing it.
    """

    sum_to_one: ClassVar[bool] = True

    balance: float = setting(0.01, "factor on the load-balance loss", ge=0)
    over: Over = setting("row", "what its shares and means are taken over: each row, the batch, or the whole stack too")
    z_loss: float = setting(0.0, "factor on mean(log²Σexp) of the router's logits", ge=0, source="Zoph 2022, §3.3")

    @property
    @abstractmethod
    def choices(self) -> int:
        """Experts that a token is sent to."""


class Switch(Router):
    """The likeliest expert, its output times its probability (Fedus et al. 2022, §2.1-2.2)."""

    sum_to_one: ClassVar[bool] = False
    choices: ClassVar[int] = 1
    jitter: float = setting(
        0.01, "in training the router's input is multiplied by 1 ± this", ge=0, lt=1, source="Fedus 2022, §2.4"
    )


class GShard(Router):
    """The two likeliest; in training the second with probability 2·its weight (Lepikhin et al. 2021, Algorithm 1).

    The balance loss counts first choices alone; a first choice comes before every second one. Times experts² as in its
    code, so that it is 1 in balance.
    """

    choices: ClassVar[int] = 2


class TopK(Router):
    """The k likeliest, their softmax taken among themselves (Jiang et al. 2024, §2.1)."""

    k: Int = setting(2, "experts that a token is sent to", ge=1)
    over: Over = setting("model", "see router; Mixtral's code takes all layers together")

    @property
    def choices(self) -> int:
        """K."""
        return self.k


class ExpertChoice(Router):
    """Each expert takes the tokens of a row that it likes best; it looks ahead (Zhou et al. 2022, §3)."""

    sum_to_one: ClassVar[bool] = False
    balance: float = setting(0.0, "none is needed: experts are equally full", ge=0)
    average: float = setting(2.0, "experts that a token has on average", gt=0, source="Zhou 2022, §3.2: c")

    @property
    def choices(self) -> int:
        """On average, rounded up."""
        return -int(-self.average // 1)


class DeepSeek(Router):
    """Sigmoid scores; a bias that is no part of them chooses, and is moved against the load (DeepSeek-V3, §2.1.2).

    The balance loss is the sequence-wise one, its f over k so that it is 1 in balance.
    """

    k: Int = setting(8, "experts that a token is sent to", ge=1)
    balance: float = setting(1e-4, "factor on the load-balance loss", ge=0, source="§4.2")
    update: float = setting(1e-3, "how far each step moves the bias of an expert", ge=0, source="§4.2")

    @property
    def choices(self) -> int:
        """K."""
        return self.k


ROUTERS: dict[str, type[Router]] = {
    "switch": Switch,
    "gshard": GShard,
    "top_k": TopK,
    "expert_choice": ExpertChoice,
    "deepseek": DeepSeek,
}


class Capacity(Config):
    """Every expert has room for a fixed number of tokens of a group, in their order; the others pass it by."""

    factor: float = setting(1.25, "room over an equal share in training", gt=0, source="Fedus et al. 2022, §2.2")
    eval_factor: float | None = setting(None, "the same in evaluation and decoding; null takes `factor`", gt=0)
    tokens: Int | None = setting(None, "room of each expert as a number instead of a factor", unit="tokens", ge=1)
    group: Literal["row", "batch"] = setting("row", "tokens that compete for room: those of a row, or of the batch")


class Dropless(Config):
    """Every token reaches its experts: by buffers of `buffer` times an equal share, again for what does not fit.

    `ragged` is XLA's grouped matrix product, which computes every expert for every token where it has no kernel (CPU);
    `megablox` is the Pallas kernel for TPUs. `auto` takes megablox on a TPU whose experts are not sharded.
    """

    buffer: float = setting(1.25, "room over an equal share before the slow path", ge=1)
    kernel: Literal["auto", "buffer", "ragged", "megablox"] = setting("auto", "what multiplies tokens and experts")


DISPATCHES: dict[str, type[Config]] = {"capacity": Capacity, "dropless": Dropless}
