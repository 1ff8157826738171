"""The policies of rematerialisation, and the names of the activations that they keep. No JAX here."""

from typing import Literal

RematPolicy = Literal[
    "none", "dots", "dots_no_batch", "save_inner", "save_projections", "save_attention", "full", "offload", "auto"
]

ATTENTION_OUTPUT = "attention_output"
"""Outputs of attention before their projection, and the logarithms of the sums of its softmax."""
PROJECTION = "projection"
"""Queries, keys and values, their latents, and what other mixers project the states to."""
INNER_PRODUCT = "inner_product"
"""Products of the feed-forward before its activation: of its gate too, and of experts."""
EXCHANGED_ROWS = "exchanged_rows"
"""Tokens and outputs of experts that the devices of `mesh.expert` have sent each other."""
OUTPUT_PRODUCT = "output_product"
"""Products that return to the residual stream."""

PINNED_HOST = "pinned_host"
"""JAX's name of host memory that a device copies to and from, where `offload` keeps activations."""

SAVED_NAMES: dict[RematPolicy, tuple[str, ...]] = {
    "save_inner": (ATTENTION_OUTPUT, PROJECTION, INNER_PRODUCT, EXCHANGED_ROWS),
    "save_projections": (ATTENTION_OUTPUT, PROJECTION),
    "save_attention": (ATTENTION_OUTPUT,),
}
"""The activations that a policy keeps by name; each policy keeps those of the next and more."""

LEAST_RECOMPUTATION_FIRST: tuple[RematPolicy, ...] = (
    "none",
    "dots",
    "save_inner",
    "save_projections",
    "save_attention",
    "full",
)
"""The policies that `auto` chooses from."""

REMAT_DESCRIPTION = (
    "what the backward pass computes again instead of keeping: all of a layer (full); all but the output of attention "
    "(save_attention), its projections too (save_projections), the feed-forward's inner products too, with what the "
    "devices of experts exchange (save_inner); all but products and fused attention (dots), all but products with "
    "weights (dots_no_batch); all, with what passes between layers kept in host memory (offload); auto: the least that "
    "fits into 92 % of a device by formula, chosen when the run starts"
)


def product_name(output_axes: tuple[str, ...]) -> str:
    """Return the name of a product with a matrix whose outputs have these logical axes."""
    if "mlp" in output_axes:
        return INNER_PRODUCT
    if {"heads", "kv_heads", "latent", "gates"}.isdisjoint(output_axes):
        return OUTPUT_PRODUCT
    return PROJECTION
