"""One train step on a mesh: the quantities from which memory, collectives and time are computed."""

from dataclasses import dataclass, replace
from functools import cached_property

import jax
from jax.sharding import Mesh

from t5x_lite.config import RunConfig
from t5x_lite.models.experts.config import Capacity, Dropless, MoE
from t5x_lite.models.pipeline import microbatch_count
from t5x_lite.models.sharding import mesh_axes, partition_spec
from t5x_lite.models.spec import ModelSpec
from t5x_lite.objectives.objective import ExampleLengths
from t5x_lite.parallel.mesh import batch_shards


@dataclass(frozen=True)
class Workload:
    """The train step of a config on a mesh.

    Attributes:
        config: the run.
        spec: its model, without weights.
        lengths: tokens in one example.
        mesh: the devices.
    """

    config: RunConfig
    spec: ModelSpec
    lengths: ExampleLengths
    mesh: Mesh

    @property
    def bytes_per_activation(self) -> int:
        """Bytes of one value of the activations."""
        return 2 if self.config.model.compute == "bfloat16" else 4

    @property
    def recomputes_layers(self) -> bool:
        """True if the backward pass repeats the whole forward pass of a layer."""
        return self.config.model.remat in {"full", "offload"}

    @property
    def layers_per_device(self) -> float:
        """Layers of one pipeline stage."""
        return self.config.model.layers / self.mesh.shape["pipeline"]

    @property
    def tokens_per_device(self) -> float:
        """Tokens of one microbatch that a device holds: those of the encoder and of the decoder."""
        train = self.config.train
        rows = train.batch_size / train.microbatches / batch_shards(self.mesh)
        targets = self.lengths.targets if self.config.model.family == "encoder_decoder" else 0
        return rows * self.lengths.texts * (self.lengths.tokens + targets) / self.mesh.shape["context"]

    @cached_property
    def trained_spec(self) -> ModelSpec:
        """The weights that train, which have gradients."""
        split = self.config.trainable_split(self.spec.axes)
        shapes = jax.eval_shape(split.trained, self.spec.shapes)
        return replace(self.spec, shapes=shapes, axes=split.trained_leaves(self.spec.axes))

    @property
    def weight_axes(self) -> tuple[str, ...]:
        """The mesh axes over which the width of the weights is sharded."""
        return mesh_axes(partition_spec(self.mesh.shape, ("embed",), (self.config.model.embed,)))

    @property
    def exchanged_copies(self) -> float:
        """Copies of a token that are sent to experts in a period, with the slots that capacity leaves empty."""
        if self.mesh.shape["expert"] == 1:
            return 0.0
        return sum(_copies_per_token(moe) for moe in self.config.model.mixtures)

    @property
    def exchange_slots(self) -> float:
        """Places in the buffers of experts on other devices for each token, in a period."""
        if self.mesh.shape["expert"] == 1:
            return 0.0
        slots = 0.0
        for moe in self.config.model.mixtures:
            spare = moe.dispatch.buffer if isinstance(moe.dispatch, Dropless) else 1.0
            slots += _copies_per_token(moe) * spare
        return slots

    @property
    def pipeline_slowdown(self) -> float:
        """Time of a pipeline, with its bubble, over that of its stages at full use (Huang et al. 2019, §2.3)."""
        stages = self.mesh.shape["pipeline"]
        train = self.config.train
        with jax.set_mesh(self.mesh):
            parts = microbatch_count(
                self.config.model.pipeline_microbatches, train.batch_size // train.microbatches, stages
            )
        return (parts + stages - 1) / parts


def _copies_per_token(moe: MoE) -> float:
    """Return the number of times that a layer sends a token to experts, with the slots that capacity leaves empty."""
    if isinstance(moe.dispatch, Capacity):
        return moe.router.mean_choices * moe.dispatch.factor
    return moe.router.mean_choices
