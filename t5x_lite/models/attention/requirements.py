"""Requirements of a layer that the kernel of its attention must meet."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KernelRequirements:
    """Features that a kernel must support to compute one layer's attention.

    Attributes:
        length: queries of a row.
        head_dim: channels of a head.
        dtype: type of queries, keys and values.
        causal: a query attends to no later key.
        self_attention: queries and keys are the same tokens.
        in_order: queries and keys are at positions 0, 1, 2, … of their rows.
        bias: position encodings add a bias to the scores.
        dropout: attention weights are dropped.
        prefix: a prefix is visible to earlier queries.
        softcap: the scores are bounded by a tanh.
        value_dim: channels of a value; 0: those of a head.
        sinks: heads have a score beside those of the keys.
        content_bias: position encodings add a bias that depends on the content of queries and keys.
        memory: keys are those of the row and of tokens of the batch before.
        rank: an order of factorisation hides keys.
        traced_positions: the positions of queries are known when the program runs, as in a cache.
        documents: a row may hold several documents, or padding.
    """

    length: int
    head_dim: int
    dtype: str
    causal: bool
    self_attention: bool = True
    in_order: bool = True
    bias: bool = False
    dropout: bool = False
    prefix: bool = False
    softcap: bool = False
    value_dim: int = 0
    sinks: bool = False
    content_bias: bool = False
    memory: bool = False
    rank: bool = False
    traced_positions: bool = False
    documents: bool = False
