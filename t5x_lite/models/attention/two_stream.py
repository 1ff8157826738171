"""Two-stream attention (XLNet: Yang et al. 2019, §2.3).

The states of a row are those of its tokens, the content stream, and after them those of the tokens that are predicted,
the query stream. Both attend to the content. A content state sees its own token, a state of the query stream only
tokens that come before its own in the order of factorisation.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from t5x_lite.models.attention.context import AttentionContext
from t5x_lite.models.attention.latent import MultiHeadLatentAttention
from t5x_lite.models.attention.layer import Attention
from t5x_lite.models.gather_positions import gather_positions


def attend_in_two_streams(
    attention: Attention | MultiHeadLatentAttention,
    x: Float[Array, "b n d"],
    context: AttentionContext,
    key: PRNGKeyArray | None,
) -> Float[Array, "b n d"]:
    """Attend from both streams to the content.

    The query stream is computed as a row of its own, in which each state is at the place of the token that it predicts:
    so all rows have the same offsets between queries and keys, and parts of the row are computed as any other. Places
    without a prediction repeat a state, whose output is left out.

    Args:
        attention: the layer.
        x: states of the tokens, then of those that `context.query_stream` names.
        context: the content, with the rank of each token.
        key: turns dropout on.
    """
    stream = context.query_stream
    assert stream is not None
    assert context.queries.rank is not None
    content_key = query_key = None
    if key is not None:
        content_key, query_key = jax.random.split(key)
    length = len(context.queries.index)
    content = x[:, :length]
    source = attention.keys_values(content, context)
    content_out = attention(content, source, context, content_key)
    at_places = gather_positions(x[:, length:], stream.slots)
    queries = replace(context.queries, rank=context.queries.rank - 1)
    out = attention(at_places, source, replace(context, queries=queries, self_attention=False), query_key)
    predicted_out = gather_positions(out, stream.predicted)
    return jnp.concatenate([content_out, predicted_out], axis=1)
