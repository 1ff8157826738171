"""Inputs of the layers of a stack by rows, so that the microbatches of a pipeline can select theirs."""

from dataclasses import dataclass, replace

import jax
from jaxtyping import Array, Float, Int

from t5x_lite.models.attention.context import ArraysByRow, AttentionContext
from t5x_lite.models.block import EncoderOutput


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowInputs:
    """Inputs of every layer that each row of a batch has, so that rows can be selected."""

    tokens: ArraysByRow
    positions: Int[Array, "b l"] | None
    encoder_segment_ids: Int[Array, "b m"] | None
    encoder_states: Float[Array, "b m d"] | None

    @classmethod
    def of(cls, context: AttentionContext, encoder_output: EncoderOutput | None) -> "RowInputs":
        """Return the inputs of rows that attend to themselves and to an encoder's output."""
        encoder_segment_ids = None
        encoder_states = None
        if encoder_output is not None:
            encoder_segment_ids = encoder_output.positions.segment_ids
            encoder_states = encoder_output.states
        return cls(
            tokens=context.queries.by_row,
            positions=context.positions,
            encoder_segment_ids=encoder_segment_ids,
            encoder_states=encoder_states,
        )

    def select_rows(
        self, context: AttentionContext, encoder_output: EncoderOutput | None
    ) -> tuple[AttentionContext, EncoderOutput | None]:
        """Return what the layers attend to in these rows alone."""
        positions = replace(context.queries, **self.tokens)
        context = replace(context, queries=positions, keys=positions, positions=self.positions)
        if encoder_output is None or self.encoder_segment_ids is None:
            return context, None
        encoder_positions = replace(encoder_output.positions, segment_ids=self.encoder_segment_ids)
        return context, EncoderOutput(encoder_positions, self.encoder_states)
