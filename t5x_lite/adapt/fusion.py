"""Several trained adapters in one model, and what chooses among them (AdapterFusion: Pfeiffer et al. 2021)."""

import re
from typing import TYPE_CHECKING, ClassVar, Literal

from jaxtyping import Float

from t5x_lite.adapt.adapters import Pfeiffer, bottleneck_parameters
from t5x_lite.adapt.method import AdaptationMethod, ModelPair, NamedArrays
from t5x_lite.arrays import Array
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.feedforward.config import Activation
from t5x_lite.schema import Config, Int, Strings, setting

if TYPE_CHECKING:
    from flax import nnx

    from t5x_lite.models.surgery import Adapter, Parameters, Surgeon

FUSED_ADAPTER = re.compile(r"\.adapters\.feedforward\.adapters\.(\d+)\.")
"""Part of the names of the parameters of adapter n."""
INITIAL_STD = 0.02
"""Standard deviation of the first queries and keys."""


class AdapterSize(Config):
    """Size of one adapter."""

    width: Int = setting(48, "channels of the bottleneck", ge=1)
    activation: Activation = setting("relu", "activation of the bottleneck")


class Fusion(AdaptationMethod):
    """Combine frozen adapters of several `pfeiffer` runs on one base; the weights of each token train, with the head.

    `attention`: softmax of queries of x against keys of each adapter's output, over values of it (§3.2). `soft`: a
    router's softmax weighs them. `hard`: its largest alone, with the gradient of the soft choice. `fixed`: always
    adapter `chosen`.
    """

    freezes_base: ClassVar[bool] = True

    adapters: Strings = setting(..., "run directories of adapters that `pfeiffer` has trained on this base")
    route: Literal["attention", "soft", "hard", "fixed"] = setting(
        "attention",
        "how a token chooses: attention, a router's softmax, its largest alone, or `chosen`",
    )
    chosen: Int = setting(0, "which adapter `fixed` takes, from 0", ge=0)
    kind: AdapterSize = setting(AdapterSize(), "size of the adapters, as they were trained")

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the run directories of the adapters."""
        return self.adapters

    def with_sources(self, sources: tuple[str, ...]) -> "Fusion":
        """Return the method with other names for the adapters' runs."""
        return self.model_copy(update={"adapters": sources})

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError if there is no adapter `chosen`."""
        if not self.adapters or self.chosen >= len(self.adapters):
            raise ValueError(
                f"adapt.method fusion.chosen {self.chosen}: there is no such adapter among {len(self.adapters)}"
            )

    def surgery(self, surgeon: "Surgeon") -> None:
        """Add the adapters and what chooses among them after the feed-forward."""
        from flax import nnx

        from t5x_lite.models.layers import Linear
        from t5x_lite.models.surgery import SublayerAdapter

        config = surgeon.config
        adapter_method = Pfeiffer(width=self.kind.width, activation=self.kind.activation)

        def create(rngs: "nnx.Rngs") -> "Parameters":
            adapters = {}
            for number in range(len(self.adapters)):
                bottleneck = bottleneck_parameters(config, self.kind.width, rngs)
                adapters[str(number)] = SublayerAdapter(adapter_method, bottleneck)
            parameters: Parameters = {"adapters": nnx.Dict(adapters)}
            embed = [("embed", config.embed)]
            output = [("embed_out", config.embed)]
            scale = INITIAL_STD / config.init.matrix_std(config, config.embed)
            if self.route == "attention":
                parameters["query"] = Linear(config, embed, output, scale=scale, bias=False, rngs=rngs)
                parameters["key"] = Linear(config, embed, output, scale=scale, bias=False, rngs=rngs)
                # Zero at first: it is added to the identity.
                parameters["value"] = Linear(config, embed, output, scale=0.0, bias=False, rngs=rngs)
            elif self.route != "fixed":
                classes = [("classes", len(self.adapters))]
                parameters["router"] = Linear(config, embed, classes, bias=False, rngs=rngs)
            return parameters

        surgeon.adapt_sublayers(self, ("feedforward",), create)

    def adapt_sublayer(self, adapter: "Adapter", x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Return the adapters' outputs, weighed for each token."""
        import jax
        import jax.numpy as jnp

        if self.route == "fixed":
            return adapter.adapters[str(self.chosen)](x)
        outputs = jnp.stack([adapter.adapters[str(n)](x) for n in range(len(adapter.adapters))], axis=2)
        if self.route == "attention":
            flat = outputs.reshape(x.shape[0], -1, x.shape[-1])
            keys = adapter.key(flat).reshape(outputs.shape)
            values = adapter.value(flat).reshape(outputs.shape)
            scores = jnp.einsum("bld,blnd->bln", adapter.query(x), keys).astype(jnp.float32)
            weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
            return jnp.einsum("bln,blnd->bld", weights, outputs + values)
        weights = jax.nn.softmax(adapter.router(x).astype(jnp.float32), axis=-1)
        if self.route == "hard":
            largest = jax.nn.one_hot(weights.argmax(-1), weights.shape[-1])
            weights = weights + jax.lax.stop_gradient(largest - weights)
        return jnp.einsum("bln,blnd->bld", weights.astype(x.dtype), outputs)

    def first_trained_repeat(self, name: str, model: ModelConfig) -> int | None:
        """Train what chooses, and freeze the adapters."""
        if ".adapters." in name and not FUSED_ADAPTER.search(name):
            return 0
        return None

    def initial_weights(self, old: NamedArrays, fresh: NamedArrays, models: ModelPair) -> dict[str, Array]:
        """Return the weights of the base and of the adapters; those of adapter n are named `n:…` in `old`."""
        weights = super().initial_weights(old, fresh, models)
        for name in fresh:
            fused = FUSED_ADAPTER.search(name)
            if fused is None:
                continue
            number = fused[1]
            source = f"{number}:{name.replace(fused[0], '.adapters.feedforward.')}"
            weights.pop(name, None)
            if source in old:
                weights[name] = old[source]
        return weights
