"""The conditions of batches whose rows continue those of the batch before them."""

from collections.abc import Iterator

from t5x_lite.data.config import DataConfig
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.mixers import SelfAttention
from t5x_lite.objectives.causal import Causal
from t5x_lite.objectives.objective import Objective
from t5x_lite.train.config import TrainConfig


def order_problems(
    model: ModelConfig, data: DataConfig, objective: Objective, train: TrainConfig, pipeline: int
) -> Iterator[str]:
    """Yield what `data.order=consecutive` does not work with."""
    start = "data.order=consecutive"
    for layer in (*model.first, *model.period):
        if isinstance(layer.mixer, SelfAttention) and not layer.mixer.memory:
            yield (
                f"{start} carries states on, but a layer of the model is attention, which has none without "
                "mixer.attention.memory"
            )
            break
    if not isinstance(objective, Causal):
        yield f"{start} is for objective causal, not {objective.name}"
    if model.mixtures:
        yield f"{start} is for layers without experts"
    packings = {data.of_source(source).packing for source in data.sources}
    if packings != {"stream"} or len(data.sources) > 1 or data.schedule:
        yield f"{start} reads one text from its start to its end: it needs data.packing=stream, one source, no schedule"
    if train.spike_factor is not None:
        yield f"{start} hands states over from batch to batch, and train.spike_factor skips batches: set it to null"
    if train.microbatches > 1 or train.data_reduction == "step" or pipeline > 1:
        yield (
            f"{start} hands states over from batch to batch: it needs train.microbatches=1, "
            "train.data_reduction=microbatch and mesh.pipeline=1"
        )


def memory_problems(model: ModelConfig) -> Iterator[str]:
    """Yield layers that would never have anything in their memory, because the rows of a batch continue no others."""
    mixers = [layer.mixer for layer in (*model.first, *model.pattern)]
    if any(isinstance(mixer, SelfAttention) and mixer.memory for mixer in mixers):
        yield "mixer.attention.memory needs data.order=consecutive, or it stays empty"
