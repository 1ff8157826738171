"""Mixture-of-Experts: routers, dispatch of tokens to experts and back, and what is measured of both.

Letters beside those of `layers.py`: g groups of tokens that are dispatched together, t tokens of a group, n choices of
a group (each token's first choices before all second ones), c places in an expert's buffer.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from t5x_lite.models.config import ModelConfig, MoE
from t5x_lite.models.experts import Capacity, DeepSeek, Dropless, ExpertChoice, GShard, Router, Switch, TopK
from t5x_lite.models.feedforward import PERCEPTRONS
from t5x_lite.models.layers import Experts, Groups, Linear, Weight, weight
from t5x_lite.models.sharding import constrain, platform, shards, spec

LISTED = 128
"""Experts up to which the load of each is a metric of its own."""
TILE = 128
"""Rows that megablox multiplies at a time."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seen:
    """What a router did, as sums over the real tokens of each row.

    `counted` and `probability` (`[b, e]`) are what the balance loss is made of; `sent` (`[b, e]`) are all choices,
    `dropped` (`[b]`) those that found no room; `log_z` sums log²Σexp of the logits; `tokens` counts.
    """

    counted: Float[Array, "b e"]
    probability: Float[Array, "b e"]
    sent: Float[Array, "b e"]
    dropped: Float[Array, "b"]
    log_z: Float[Array, "b"]
    tokens: Float[Array, "b"]


def choose(
    router: Router, logits: Float[Array, "b l e"], bias: Float[Array, "e"] | None, key: PRNGKeyArray | None
) -> tuple[Int[Array, "b l k"], Float[Array, "b l k"], Float[Array, "b l e"]]:
    """Experts of each token, the weights of their outputs, and the probabilities that the balance loss is about.

    An expert that is none (a second one that was not drawn) has a number past the last. A key means training.
    """
    probability = jax.nn.softmax(logits, axis=-1)
    match router:
        case Switch():
            weights, experts = highest(probability, 1)
        case GShard():
            weights, experts = highest(probability, 2)
            weights = weights / weights.sum(-1, keepdims=True)
            if key is not None:
                drawn = jax.random.uniform(key, weights.shape[:-1]) < 2 * weights[..., 1]
                experts = experts.at[..., 1].set(jnp.where(drawn, experts[..., 1], logits.shape[-1]))
        case TopK(k=k):
            scores, experts = highest(logits, k)
            weights = jax.nn.softmax(scores, axis=-1)
        case DeepSeek(k=k):
            assert bias is not None
            scores = jax.nn.sigmoid(logits)
            experts = highest(scores + jax.lax.stop_gradient(bias), k)[1]
            weights = jnp.take_along_axis(scores, experts, axis=-1)
            weights = weights / weights.sum(-1, keepdims=True)
            probability = scores / scores.sum(-1, keepdims=True)
        case _:
            raise TypeError(router)
    return experts, weights, probability


def highest(x: Float[Array, "... e"], k: int) -> tuple[Float[Array, "... k"], Int[Array, "... k"]]:
    """`lax.top_k`, which XLA does not divide over a mesh: each device would choose for the whole batch."""
    values, places, left = [], [], x
    for _ in range(k):
        place = jnp.argmax(left, axis=-1)
        here = jnp.arange(x.shape[-1]) == place[..., None]
        values.append(jnp.sum(jnp.where(here, x, 0), axis=-1))
        places.append(place)
        left = jnp.where(here, -jnp.inf, left)
    return jnp.stack(values, axis=-1), jnp.stack(places, axis=-1)


class MixtureOfExperts(nnx.Module):
    """Experts side by side, of which each token passes those that a router chooses; some may serve every token."""

    def __init__(self, config: ModelConfig, moe: MoE, *, rngs: nnx.Rngs) -> None:
        kind, width = moe.expert or config.dense_feedforward, moe.mlp or config.width_of_mlp
        make, embed = PERCEPTRONS[type(kind)], ("embed", config.embed)
        experts = Experts(moe.experts, min(moe.router.choices / moe.experts, 1.0))
        self.moe = moe
        self.router = Linear(config, [embed], [("router", moe.experts)], bias=False, dtype="float32", rngs=rngs)
        biased = isinstance(moe.router, DeepSeek)
        self.bias = weight(jnp.zeros(moe.experts, jnp.float32), ("router",)) if biased else None
        self.experts = make(config, kind, width, experts=experts, rngs=rngs)
        self.shared = make(config, kind, width * moe.shared, rngs=rngs) if moe.shared else None

    def __call__(
        self, x: Float[Array, "b l d"], real: Bool[Array, "b l"], key: PRNGKeyArray | None
    ) -> Float[Array, "b l d"]:
        """The weighted sum of the outputs of a token's experts, 0 for those without room; padding chooses none."""
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        router, count = self.moe.router, self.moe.experts
        x = constrain(x, "batch", None, None)  # a row's tokens queue together
        logits = self.router(_jittered(x, router.jitter, keys[0]) if isinstance(router, Switch) else x)
        if isinstance(router, ExpertChoice):
            out, probability, sent, dropped = self._by_experts(x, logits, real, router, keys[1])
            counted = sent
        else:
            bias = None if self.bias is None else self.bias[...]
            experts, weights, probability = choose(router, logits, bias, keys[2])
            experts = jnp.where(real[..., None], experts, count)
            out, kept = self._dispatched(x, experts, weights, keys[1])
            sent = _counts(experts, count)
            dropped = sent.sum(1) - kept
            counted = _counts(experts[..., :1], count) if isinstance(router, GShard) else sent
        seen = Seen(
            counted,
            jnp.sum(jnp.where(real[..., None], probability, 0), axis=1),
            sent,
            dropped,
            jnp.sum(jnp.where(real, jax.nn.logsumexp(logits, axis=-1) ** 2, 0), axis=1),
            real.sum(1, dtype=jnp.float32),
        )
        self.seen = nnx.Intermediate(seen)
        return out if self.shared is None else out + self.shared(x, keys[1])

    def _dispatched(
        self, x: Float[Array, "b l d"], experts: Int[Array, "b l k"], weights: Float[Array, "b l k"], key: Any
    ) -> tuple[Float[Array, "b l d"], Float[Array, "b"]]:
        """What comes back from the experts, and how many choices of each row reached one."""
        b, l, d = x.shape
        k, count, dispatch = experts.shape[-1], self.moe.experts, self.moe.dispatch
        run = partial(self._in_buffers, key=key)
        if isinstance(dispatch, Dropless):
            kept = jnp.sum(experts < count, axis=(1, 2), dtype=jnp.float32)
            if dropless_kernel(dispatch, platform()) != "buffer":
                return self._ragged(x, experts, weights, key), kept
            groups = math.gcd(shards("batch"), b)
        else:
            groups = b if dispatch.group == "row" else 1
        x, experts, weights = (a.reshape(groups, -1, a.shape[-1]) for a in (x, experts, weights))
        if isinstance(dispatch, Dropless):
            return without_loss(x, experts, weights, count, dispatch.buffer, run).reshape(b, l, d), kept
        room = _room(dispatch, x.shape[1], k, count, training=key is not None)
        queue = queued(experts, count)
        out = through(x, weights, queue, 0, room, run)
        served = ((queue.expert < count) & (queue.place < room)).reshape(groups, k, b // groups, l)
        return out.reshape(b, l, d), jnp.sum(served, axis=(1, 3), dtype=jnp.float32).reshape(b)

    def _in_buffers(self, x: Float[Array, "g e c d"], key: PRNGKeyArray | None) -> Float[Array, "g e c d"]:
        """Every expert on its buffers; on a mesh they travel to its devices and back (all-to-all)."""
        x = constrain(x, "batch", None, None, None)  # gradients come back to their rows before they are gathered
        x = constrain(jnp.swapaxes(x, 0, 1), "experts", "groups", "length", None)
        y = constrain(self.experts(x, key), "experts", "groups", "length", None)
        return constrain(jnp.swapaxes(y, 0, 1), "batch", None, None, None)

    def _ragged(
        self, x: Float[Array, "b l d"], experts: Int[Array, "b l k"], weights: Float[Array, "b l k"], key: Any
    ) -> Float[Array, "b l d"]:
        """Tokens sorted by expert, multiplied in groups: each device its own rows with all experts."""
        dispatch, count = self.moe.dispatch, self.moe.experts
        assert isinstance(dispatch, Dropless)
        product = PRODUCTS[dropless_kernel(dispatch, platform())]
        graph, params = nnx.split(self.experts)

        def own(params: Any, key: Any, x: Array, experts: Array, weights: Array) -> Array:
            flat, module = x.reshape(1, -1, x.shape[-1]), nnx.merge(graph, params)
            queue = queued(experts.reshape(1, -1, experts.shape[-1]), count)
            n = queue.order.shape[1]
            more = -n % TILE
            token = jnp.pad(queue.order % flat.shape[1], ((0, 0), (0, more)), constant_values=flat.shape[1])
            rank = jnp.moveaxis(queue.rank.reshape(1, -1, flat.shape[1]), 1, 2)
            sorted_rows = rows(flat, token, rank)[0]
            expert = jnp.pad(jnp.take(queue.expert[0], queue.order[0]), (0, more), constant_values=count)
            groups = Groups(queue.counts[0], jnp.minimum(expert, count - 1), product)
            y = jnp.where((expert < count)[:, None], module(sorted_rows, key, groups), 0)
            origin = jnp.pad(queue.order, ((0, 0), (0, more)), constant_values=n)[..., None]
            back = rows(y[None], queue.rank, origin).reshape(1, -1, *flat.shape[1:])
            return _weighted(back, weights.reshape(1, -1, weights.shape[-1])).reshape(x.shape)

        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return own(params, key, x, experts, weights)
        by_row = spec(mesh.shape, ("batch", "length", None), x.shape)
        arrays, structure = jax.tree.flatten(params)
        of_experts = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Weight))
        cut = [spec(mesh.shape, weight.axes.names, weight.shape) for weight in of_experts]

        def gathered(arrays: list[Array], *rest: Any) -> Array:
            """Experts' weights are gathered here, and their gradients summed into parts: never whole outside."""
            whole = [_gathered(array.astype(x.dtype), parts) for array, parts in zip(arrays, cut, strict=True)]
            return own(jax.tree.unflatten(structure, whole), *rest)

        in_specs = (cut, jax.sharding.PartitionSpec(), *[by_row] * 3)
        local = jax.shard_map(gathered, in_specs=in_specs, out_specs=by_row, check_vma=False)
        return local(arrays, key, x, experts, weights)

    def _by_experts(
        self,
        x: Float[Array, "b l d"],
        logits: Float[Array, "b l e"],
        real: Bool[Array, "b l"],
        router: ExpertChoice,
        key: Any,
    ) -> tuple[Float[Array, "b l d"], Float[Array, "b l e"], Float[Array, "b e"], Float[Array, "b"]]:
        """Each expert takes the tokens of a row with the highest probability for it (Zhou et al. 2022, §3.2).

        Also that probability, how many tokens each expert took, and how many no expert took, as `Seen` counts them.
        """
        b, l, d = x.shape
        room = min(math.ceil(router.average * l / self.moe.experts), l)
        probability = jnp.where(real[..., None], jax.nn.softmax(logits, axis=-1), 0)
        weights, tokens = jax.lax.top_k(jnp.swapaxes(probability, 1, 2), room)
        row = jnp.arange(b)[:, None, None]
        y = self._in_buffers(x[row, tokens], key)
        out = jnp.zeros((b, l, d), jnp.float32).at[row, tokens].add(weights[..., None] * y).astype(x.dtype)
        taken = (weights > 0).sum(2, dtype=jnp.float32)
        reached = jnp.zeros((b, l)).at[row, tokens].max((weights > 0).astype(jnp.float32))
        count = real.sum(1, dtype=jnp.float32)
        # A token that no expert took counts as so many choices as the others have on average.
        dropped = (count - reached.sum(1)) * taken.sum(1) / jnp.maximum(count, 1)
        return out, probability, taken, dropped


def _gathered(array: Array, parts: jax.sharding.PartitionSpec) -> Array:
    """The whole of an array of which each device has a part."""
    for axis, over in enumerate(parts):
        array = jax.lax.all_gather(array, over, axis=axis, tiled=True) if over else array
    return array


def _jittered(x: Array, jitter: float, key: PRNGKeyArray | None) -> Array:
    if key is None or jitter == 0:
        return x
    return x * jax.random.uniform(key, x.shape, jnp.float32, 1 - jitter, 1 + jitter)


def _counts(experts: Int[Array, "b l k"], count: int) -> Float[Array, "b e"]:
    return jnp.sum(experts[..., None] == jnp.arange(count), axis=(1, 2), dtype=jnp.float32)


def _room(dispatch: Capacity, tokens: int, choices: int, experts: int, *, training: bool) -> int:
    """Places of each expert for a group."""
    factor = dispatch.factor if training or dispatch.eval_factor is None else dispatch.eval_factor
    return min(dispatch.tokens or math.ceil(factor * tokens * choices / experts), tokens)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Queue:
    """The choices of each group, in the order in which experts serve them: first choices in the order of tokens, second
    ones after them all (Lepikhin et al. 2021, Algorithm 1; Fedus et al. 2022, §2.2).

    `expert` and `place` (in the expert's queue) are those of each choice; `order` sorts choices by expert, `rank`
    undoes that; `counts` is the length of each queue and `starts` where it begins in that order.
    """

    expert: Int[Array, "g n"]
    place: Int[Array, "g n"]
    order: Int[Array, "g n"]
    rank: Int[Array, "g n"]
    counts: Int[Array, "g e"]
    starts: Int[Array, "g e"]


def queued(experts: Int[Array, "g t k"], count: int) -> Queue:
    """Sort choices by expert; a choice of no expert comes last."""
    expert = jnp.moveaxis(experts, -1, 1).reshape(experts.shape[0], -1)
    order = jnp.argsort(expert, axis=1, stable=True)
    rank = jnp.argsort(order, axis=1)
    counts = jnp.sum(expert[..., None] == jnp.arange(count), axis=1)
    starts = jnp.cumsum(counts, axis=1) - counts
    begun = jnp.take_along_axis(starts, jnp.minimum(expert, count - 1), axis=1)
    return Queue(expert, rank - begun, order, rank, counts, starts)


@jax.custom_vjp
def rows(x: Float[Array, "g n d"], index: Int[Array, "g s"], back: Int[Array, "g n k"]) -> Float[Array, "g s d"]:
    """The rows of `x` at `index`, 0 for an index past the last.

    `back` says where each row went (past the last: nowhere), so that the backward pass gathers too: a scatter of rows
    is slow on every backend.
    """
    return jax.vmap(lambda own, at: own.at[at].get(mode="fill", fill_value=0))(x, index)


def _rows_forward(x: Array, index: Array, back: Array) -> tuple[Array, Array]:
    return rows(x, index, back), back


def _rows_backward(back: Array, grad: Array) -> tuple[Array, None, None]:
    g, n, k = back.shape
    gathered = jax.vmap(lambda own, at: own.at[at].get(mode="fill", fill_value=0))(grad, back.reshape(g, n * k))
    return gathered.reshape(g, n, k, -1).sum(2), None, None


rows.defvjp(_rows_forward, _rows_backward)


def through(
    x: Float[Array, "g t d"],
    weights: Float[Array, "g t k"],
    queue: Queue,
    first: Int[Array, ""] | int,
    room: int,
    run: Callable[[Float[Array, "g e c d"]], Float[Array, "g e c d"]],
) -> Float[Array, "g t d"]:
    """Choices with a place from `first` to `first + room` pass their experts; the others contribute nothing."""
    (g, t, d), n, count = x.shape, queue.expert.shape[1], queue.counts.shape[1]
    served = (queue.expert < count) & (queue.place >= first) & (queue.place < first + room)
    slot = jnp.where(served, queue.expert * room + queue.place - first, count * room)
    place = first + jnp.arange(room)
    sorted_at = jnp.minimum(queue.starts[..., None] + place, n - 1).reshape(g, -1)
    filled = (place < queue.counts[..., None]).reshape(g, -1)
    origin = jnp.where(filled, jnp.take_along_axis(queue.order, sorted_at, axis=1), n)
    token = jnp.where(filled, origin % t, t)
    buffers = rows(x, token, jnp.moveaxis(slot.reshape(g, -1, t), 1, 2))
    y = run(buffers.reshape(g, count, room, d)).reshape(g, count * room, d)
    back = rows(y, slot, origin[..., None]).reshape(g, -1, t, d)
    return _weighted(back, weights)


def _weighted(back: Float[Array, "g k t d"], weights: Float[Array, "g t k"]) -> Float[Array, "g t d"]:
    """Sum over a token's choices, in float32."""
    return jnp.einsum("gktd,gtk->gtd", back, weights, preferred_element_type=jnp.float32).astype(back.dtype)


def without_loss(
    x: Float[Array, "g t d"],
    experts: Int[Array, "g t k"],
    weights: Float[Array, "g t k"],
    count: int,
    buffer: float,
    run: Callable[[Float[Array, "g e c d"]], Float[Array, "g e c d"]],
) -> Float[Array, "g t d"]:
    """Every choice passes its expert: in buffers of a fixed size, and where one overflows in more rounds of them."""
    t, k = experts.shape[1:]
    queue = queued(experts, count)
    room = min(math.ceil(buffer * t * k / count), t)
    longest = queue.counts.max()
    out = through(x, weights, queue, 0, room, run)
    rounds = math.ceil(t / room)
    if rounds == 1:
        return out

    @jax.checkpoint
    def one(x: Array, weights: Array, number: Array) -> Array:
        return through(x, weights, queue, number * room, room, run)

    def rest(x: Array, weights: Array) -> Array:
        def add(so_far: Array, number: Array) -> tuple[Array, None]:
            more = jax.lax.cond(longest > number * room, one, lambda x, *_: jnp.zeros_like(x), x, weights, number)
            return so_far + more, None

        return jax.lax.scan(add, jnp.zeros_like(x), jnp.arange(1, rounds))[0]

    return out + jax.lax.cond(longest > room, jax.checkpoint(rest), lambda x, _: jnp.zeros_like(x), x, weights)


def _megablox(x: Array, matrices: Array, sizes: Array) -> Array:
    from jax.experimental.pallas.ops.tpu.megablox import ops

    return ops.gmm(x, matrices, sizes, x.dtype)


PRODUCTS: dict[str, Callable[[Array, Array, Array], Array]] = {"ragged": jax.lax.ragged_dot, "megablox": _megablox}


def check_dispatch(config: ModelConfig, of: str) -> None:
    """Refuse a model whose experts need what a platform does not have; see `dropless_kernel`."""
    for moe in config.mixtures:
        if isinstance(moe.dispatch, Dropless):
            dropless_kernel(moe.dispatch, of)


def dropless_kernel(dispatch: Dropless, of: str) -> str:
    """What multiplies tokens and experts on a platform.

    Raises:
        ValueError: it is asked for what the platform does not have.
    """
    if dispatch.kernel == "megablox" and of != "tpu":
        raise ValueError(f"dropless.kernel=megablox is for TPUs, not for {of}; kernel=buffer works everywhere")
    if dispatch.kernel != "auto":
        return dispatch.kernel
    mesh = jax.sharding.get_abstract_mesh()
    whole = mesh.empty or mesh.shape["expert"] * mesh.shape["tensor"] == 1
    return "megablox" if of == "tpu" and whole else "buffer"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routing:
    """What the routers of a model did with a batch: the term `router` of its loss. Parts of a batch add up.

    `total` is what is minimised; `balance` and `z_loss` are without their factors; `loads` are the choices of each
    expert by layer (`[repeats, e]`), named by the path of the layer's weights.
    """

    total: Float[Array, ""]
    balance: Float[Array, ""]
    z_loss: Float[Array, ""]
    dropped: Float[Array, ""]
    loads: Mapping[str, Float[Array, "r e"]]
    weight: Float[Array, ""]
    updates: Mapping[str, float] = field(default_factory=dict, metadata={"static": True})

    def __add__(self, other: "Routing") -> "Routing":
        return jax.tree.map(jnp.add, self, other)

    def means(self, name: str) -> dict[str, Array]:
        """Losses and the share of dropped choices; entropy of an expert's load (1 is balanced, over log experts) and
        its maximum (1 is balanced), both the mean over layers; and the load of each expert.
        """
        loads = jnp.concatenate([load / load.sum(-1, keepdims=True) for load in self.loads.values()])
        count = loads.shape[-1]
        entropy = -jnp.sum(jax.scipy.special.xlogy(loads, loads), axis=-1) / max(math.log(count), 1e-9)
        return {
            "router_balance_loss": self.balance / self.weight,
            "router_z_loss": self.z_loss / self.weight,
            "dropped_tokens": self.dropped / self.weight,
            "expert_load_entropy": entropy.mean(),
            "expert_load_max": count * loads.max(-1).mean(),
        } | ({"expert_load": loads.mean(0)} if count <= LISTED else {})

    def rebalanced(self, params: Any) -> Any:
        """Parameters with the biases of DeepSeek's routers moved against the load."""
        for path, step in self.updates.items():
            if not _holds(params, f"{path}.bias".split(".")):  # frozen
                continue
            load = self.loads[path]
            move = step * jnp.sign(load.mean(-1, keepdims=True) - load)
            params = _changed(params, f"{path}.bias".split("."), partial(jnp.add, move))
        return params


def _holds(tree: Any, path: list[str]) -> bool:
    return not path or (path[0] in tree and _holds(tree[path[0]], path[1:]))


def _changed(tree: Any, path: list[str], change: Callable[[Array], Array]) -> Any:
    head, *rest = path
    return {**tree, head: _changed(tree[head], rest, change) if rest else change(tree[head])}


def routing(model: nnx.Module, config: ModelConfig) -> Routing | None:
    """What the routers have done since the last call; None for a model without any."""
    sown = {
        ".".join(map(str, path[:-1])): seen.get_value() if hasattr(seen, "get_value") else seen
        for path, seen in nnx.to_flat_state(nnx.pop(model, nnx.Intermediate))
    }
    total = balance = z_loss = jnp.zeros((), jnp.float32)
    dropped, loads, updates = [], {}, {}
    for stack, layers in sown.items():
        routers: dict[Router, list[Seen]] = {}
        for number, seen in layers.items():
            moe = config.feedforward_of(config.pattern[int(number)])
            assert isinstance(moe, MoE)
            routers.setdefault(moe.router, []).append(seen)
            path = f"{stack}.layers.{number}.feedforward"
            loads[path] = seen.sent.sum(1).sum(0, keepdims=True) if config.shared_layers else seen.sent.sum(1)
            dropped.append(seen.dropped.sum() / jnp.maximum(seen.sent.sum(), 1))
            if isinstance(moe.router, DeepSeek):
                updates[path] = moe.router.update
        for router, several in routers.items():
            seen = jax.tree.map(lambda *parts: jnp.concatenate(parts), *several)
            own, z = balance_of(router, seen), jnp.sum(seen.log_z.sum(1) / jnp.maximum(seen.tokens.sum(1), 1))
            total = total + router.balance * own + router.z_loss * z
            balance, z_loss = balance + own, z_loss + z
    if not sown:
        return None
    share = jnp.stack(dropped).mean()
    return Routing(total, balance, z_loss, share, loads, jnp.ones((), jnp.float32), updates)


def balance_of(router: Router, seen: Seen) -> Float[Array, ""]:
    """The load-balance loss of the layers of a stack, without its factor; see `Router`."""
    count = seen.sent.shape[-1]
    axes = {"row": (), "batch": (1,), "model": (0, 1)}[router.over]
    counted, probability = (x.sum(axes, keepdims=True) for x in (seen.counted, seen.probability))
    tokens = seen.tokens.sum(axes, keepdims=True)
    # A row that is all padding has no say.
    shares, means = (x / jnp.maximum(tokens, 1)[..., None] for x in (counted, probability))
    each = count * jnp.sum(shares * means, axis=-1)
    if isinstance(router, DeepSeek):
        each = each / router.k
    return jnp.sum(each.sum(1) / jnp.maximum((tokens > 0).sum(1), 1))
