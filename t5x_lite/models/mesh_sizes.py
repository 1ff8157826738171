"""Sizes of the mesh axes that the layers and experts of a model can be sharded over."""

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.config import Capacity, Dropless


def check_mesh_sizes(model: ModelConfig, expert: int, tensor: int, pipeline: int) -> None:
    """Raise ValueError for sizes of the mesh axes that these layers and experts cannot be sharded over."""
    if pipeline > 1:
        _check_pipeline(model, pipeline)
    if expert > 1 and not model.mixtures:
        raise ValueError(f"mesh.expert {expert}: this model has no experts to shard; leave it 1")
    for moe in model.mixtures:
        if moe.experts % expert:
            raise ValueError(f"mesh.expert {expert} does not divide the {moe.experts} experts of a layer")
        kernel = ""
        if isinstance(moe.dispatch, Dropless):
            kernel = moe.dispatch.kernel
        if pipeline > 1 and kernel and (expert > 1 or kernel in {"auto", "buffer"}):
            raise ValueError(
                f"mesh.pipeline {pipeline}: stages run together, so all would do the rounds of dispatch=dropless that "
                "one of them needs; take dispatch=capacity, or mesh.expert=1 and dropless.kernel=megablox on TPUs"
            )
        if pipeline > 1 and isinstance(moe.dispatch, Capacity) and moe.dispatch.group == "batch":
            raise ValueError(
                f"mesh.pipeline {pipeline}: tokens would compete for the capacity of experts in a microbatch of the "
                "pipeline alone, so that the loss would depend on the mesh; set dispatch.capacity.group to row"
            )
        if kernel in {"ragged", "megablox"} and tensor > 1:
            raise ValueError(
                f"dropless.kernel={kernel} multiplies whole experts: it needs mesh.tensor=1; kernel=buffer does not"
            )


def _check_pipeline(model: ModelConfig, pipeline: int) -> None:
    if model.first:
        raise ValueError(f"mesh.pipeline {pipeline}: the layers of model.first are in no stage; leave it 1")
    depths = {"layers": model.layers, "decoder_layers": model.decoder_layers}
    if model.generator is not None:
        depths["generator.layers"] = model.generator.layers
    for name, layers in depths.items():
        repeats = model.count_repeats(layers)
        description = f"{repeats} repeats of the pattern"
        if model.shared_layers:
            description = "one layer for all"
        if repeats % pipeline or model.shared_layers:
            raise ValueError(
                f"mesh.pipeline {pipeline} cannot cut model.{name} {layers}, {description}, into equal stages"
            )
