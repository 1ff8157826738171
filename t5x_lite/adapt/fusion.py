"""Several trained adapters in one model, and what chooses among them (AdapterFusion: Pfeiffer et al. 2021)."""

import re
from typing import TYPE_CHECKING, ClassVar, Literal

from jaxtyping import Float

from t5x_lite.adapt.adapters import Bottleneck, Pfeiffer
from t5x_lite.adapt.method import AdaptationMethod, ModelPair, NamedArrays, WriteOutput
from t5x_lite.arrays import Array
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Int, Strings, setting

if TYPE_CHECKING:
    from flax import nnx

    from t5x_lite.models.surgery import Adapter, Parameters, Surgeon

FUSED_ADAPTER = re.compile(r"\.adapters\.feedforward\.adapters\.(\d+)\.")
"""Part of the names of the parameters of adapter n."""
INITIAL_STD = 0.02
"""Standard deviation of the first queries and keys."""


class Fusion(AdaptationMethod):
    """Combine frozen adapters of several `pfeiffer` runs on one base; the weights of each token train, with the head.

    `attention`: softmax of queries of the sublayer's output y against keys of each adapter's output, over values of it
    (§3.2); the value matrix is a change of the identity. `soft`: a router's softmax weighs them. `hard`: its largest
    alone, with the gradient of the soft choice. `fixed`: always adapter `chosen`. AdapterHub's fusion `dynamic` of its
    adapters `pfeiffer` has `kind.original_ln_before` and `query_key_bias`, not `query_before_ln` and `residual_before`.
    """

    freezes_base: ClassVar[bool] = True

    adapters: Strings = setting(..., "run directories of adapters that `pfeiffer` has trained on this base")
    route: Literal["attention", "soft", "hard", "fixed"] = setting(
        "attention",
        "how a token chooses: attention, a router's softmax, its largest alone, or `chosen`",
    )
    chosen: Int = setting(0, "which adapter `fixed` takes, from 0", ge=0)
    kind: Bottleneck = setting(Bottleneck(), "sizes and place of the adapters, as they were trained")
    residual_before: bool = setting(
        True, "attention's keys and values are of the adapters' outputs with the residual; false adds it afterwards"
    )
    query_before_ln: bool = setting(True, "attention's queries are of y; false takes the adapters' input")
    query_key_bias: bool = setting(False, "attention's queries and keys have biases")

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the run directories of the adapters."""
        return self.adapters

    def with_sources(self, sources: tuple[str, ...]) -> "Fusion":
        """Return the method with other names for the adapters' runs."""
        return self.model_copy(update={"adapters": sources})

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError if there is no adapter `chosen`, or the model has not the adapters' input."""
        self.kind.check_sublayers(model)
        if not self.adapters or self.chosen >= len(self.adapters):
            raise ValueError(
                f"adapt.method fusion.chosen {self.chosen}: there is no such adapter among {len(self.adapters)}"
            )

    def check_source(self, method: AdaptationMethod) -> None:
        """Raise ValueError for an adapter of another kind than `kind`."""
        if type(method) is not Pfeiffer:
            raise ValueError(f"was trained by {type(method).__name__.lower()}, and fusion is of pfeiffer adapters")
        differences = []
        for name in Bottleneck.model_fields:
            trained = getattr(method, name)
            expected = getattr(self.kind, name)
            if trained != expected:
                differences.append(f"{name} {trained}, not {expected}")
        if differences:
            raise ValueError(f"was trained with {'; '.join(differences)}: set adapt.method fusion.kind to what it has")

    def surgery(self, surgeon: "Surgeon") -> None:
        """Add the adapters and what chooses among them after the feed-forward."""
        from flax import nnx

        from t5x_lite.models.layers import Linear
        from t5x_lite.models.surgery import SublayerAdapter

        config = surgeon.config
        adapter_method = Pfeiffer(**self.kind.model_dump())

        def create(rngs: "nnx.Rngs") -> "Parameters":
            adapters = {}
            for number in range(len(self.adapters)):
                adapters[str(number)] = SublayerAdapter(adapter_method, self.kind.parameters(config, rngs))
            parameters: Parameters = {"adapters": nnx.Dict(adapters)}
            embed = [("embed", config.embed)]
            output = [("embed_out", config.embed)]
            scale = INITIAL_STD / config.init.matrix_std(config, config.embed)
            if self.route == "attention":
                bias = self.query_key_bias
                parameters["query"] = Linear(config, embed, output, scale=scale, bias=bias, rngs=rngs)
                parameters["key"] = Linear(config, embed, output, scale=scale, bias=bias, rngs=rngs)
                # Zero at first: it is added to the identity.
                parameters["value"] = Linear(config, embed, output, scale=0.0, bias=False, rngs=rngs)
            elif self.route != "fixed":
                classes = [("classes", len(self.adapters))]
                parameters["router"] = Linear(config, embed, classes, bias=False, rngs=rngs)
            return parameters

        surgeon.adapt_sublayers(self, ("feedforward",), create)

    def adapt_sublayer(self, adapter: "Adapter", y: Float[Array, "b l d"], write: WriteOutput) -> Float[Array, "b l d"]:
        """Add the adapters' outputs, weighed for each token."""
        import jax
        import jax.numpy as jnp

        x, residual = self.kind.split(y, write)
        if self.route == "fixed":
            output = self.kind.output(adapter.adapters[str(self.chosen)], x)
            return self.kind.finish(residual + output, write)
        outputs = jnp.stack([self.kind.output(adapter.adapters[str(n)], x) for n in range(len(self.adapters))], axis=2)
        if self.route == "attention":
            query = y if self.query_before_ln else x
            return self.kind.finish(self._attend(adapter, query, outputs, residual), write)
        weights = jax.nn.softmax(adapter.router(y).astype(jnp.float32), axis=-1)
        if self.route == "hard":
            largest = jax.nn.one_hot(weights.argmax(-1), weights.shape[-1])
            weights = weights + jax.lax.stop_gradient(largest - weights)
        output = jnp.einsum("bln,blnd->bld", weights.astype(y.dtype), outputs)
        return self.kind.finish(residual + output, write)

    def _attend(
        self,
        adapter: "Adapter",
        query: Float[Array, "b l d"],
        outputs: Float[Array, "b l n d"],
        residual: Float[Array, "b l d"],
    ) -> Float[Array, "b l d"]:
        """Return the sum of the residual and what each token's query reads of the adapters' outputs."""
        import jax
        import jax.numpy as jnp

        if self.residual_before:
            outputs = outputs + residual[:, :, None]
        flat = outputs.reshape(query.shape[0], -1, query.shape[-1])
        keys = adapter.key(flat).reshape(outputs.shape)
        values = outputs + adapter.value(flat).reshape(outputs.shape)
        scores = jnp.einsum("bld,blnd->bln", adapter.query(query), keys).astype(jnp.float32)
        weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
        read = jnp.einsum("bln,blnd->bld", weights, values)
        return read if self.residual_before else residual + read

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
