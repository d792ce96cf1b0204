"""Attention on NVIDIA GPUs by the fused kernels of cuDNN: what `attend(implementation="cudnn")` calls.

In: queries, keys and values [b l h d] and their segment ids. Out: softmax(scale q k^T) v within segments [b l h d],
differentiable. No array holds a logit for each pair of tokens. `jax.nn.dot_product_attention` calls the kernels, which
know one rule for who sees whom besides causal masks: in each row the first n queries see the first m keys. So a row of
one segment is one call. Of a row of several, one segment after another is brought to the front:

    segment_ids   1 1 1 2 2 0  ->  1 1 1 2 2 0 (n = 3)  and  2 2 0 1 1 1 (n = 2)

cuDNN computes the tiles of the first tokens alone, so that this costs a copy of the row for each segment, and no
products of tokens of different segments. Heads are padded with zeros to a multiple of 8 values.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

WIDTH_UNIT = 8
OLDEST = 8.0
"""docs.nvidia.com/cudnn/operations/Attention"""
FORWARD = "dot_product_attention_fwd_wrapper"
"""jax's primitive of the forward pass: its output and the logarithms of its denominators are what a backward pass
needs besides its input."""


def refusal(q: Float[Array, "b l h d"], k: Float[Array, "b n k d"], segments: int | None, *, auto: bool) -> str | None:
    """Why cuDNN cannot, or with `auto` should not, serve these arrays where this is traced; None: it can.

    Args:
      segments: as in `attention`; None: not known.
      auto: nobody asked for cuDNN, so it must be faster, and certain that XLA need not divide it over devices.
    """
    if not on_cuda():
        return "the default device is not an NVIDIA GPU"
    capability = getattr(jax.devices()[0], "compute_capability", None)
    if capability is not None and float(capability) < OLDEST:
        return f"cuDNN's kernel needs a GPU of compute capability {OLDEST} (Ampere) or newer, but this has {capability}"
    if k.shape[1] == 1:
        return "cuDNN has no backward pass for a single key"
    if auto and jax.device_count() > 1 and not jax.sharding.get_abstract_mesh().are_all_axes_manual:
        return "several devices may share the arrays, and cuDNN needs whole rows: call it inside jax.shard_map"
    if segments is None:
        return "it is not known how many segments a row has at most: give `segments`"
    length, width = q.shape[1], q.shape[3]
    if auto and segments > 1 and segments * width > length:
        return (
            f"rows of {length} tokens have up to {segments} segments, each of which costs a copy of the row, and with "
            f"heads of {width} that is worth it for at most {length // width}"
        )
    lengths = jax.ShapeDtypeStruct(q.shape[:1], jnp.int32)
    try:
        jax.eval_shape(functools.partial(_fused, scale=1.0), q, k, k, lengths, lengths)
    except (ValueError, NotImplementedError, RuntimeError) as error:
        return f"jax says: {error}"
    return None


def on_cuda() -> bool:
    """Whether the default devices are NVIDIA GPUs."""
    return jax.default_backend() == "gpu" and "cuda" in jax.devices()[0].client.platform_version


def attention(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b n k d"],
    v: Float[Array, "b n k d"],
    *,
    segment_ids: Int[Array, "b l"],
    key_ids: Int[Array, "b n"] | None = None,
    segments: int,
    scale: float,
) -> Float[Array, "b l h d"]:
    """softmax(scale q k^T) v within segments; zeros for padding and for queries that see nothing.

    Args:
      segment_ids: of the queries, and of the keys unless there are `key_ids`: 1 to `segments`, and 0 for padding, in
        the order of `tokens.packing`: the tokens of a segment lie side by side, and padding comes last.
      key_ids: in any order.
      segments: the most segments of a row.

    Raises:
      ValueError, NotImplementedError, RuntimeError: from jax, where `refusal` says why.
    """
    if segments > 1:
        keys = segment_ids if key_ids is None else key_ids
        return _by_segment(segments, scale, key_ids is None, q, k, v, segment_ids, keys)
    queries, keys = segment_ids > 0, segment_ids > 0 if key_ids is None else key_ids > 0
    moves = None if key_ids is None else _sorted(keys)
    return _of_first(q, _moved(k, moves), _moved(v, moves), _count(queries), _count(keys), scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _by_segment(
    segments: int,
    scale: float,
    is_self: bool,
    q: Float[Array, "b l h d"],
    k: Float[Array, "b n k d"],
    v: Float[Array, "b n k d"],
    query_ids: Int[Array, "b l"],
    key_ids: Int[Array, "b n"],
) -> Float[Array, "b l h d"]:
    """One segment after another. The backward pass computes each again, and keeps no copies of the row.

    Args:
      is_self: keys are in the order of queries.
    """

    def with_segment(out: Float[Array, "b l h d"], segment: Int[Array, ""]) -> tuple[Float[Array, "b l h d"], None]:
        found = _of_segment(q, k, v, query_ids == segment, key_ids == segment, scale, is_self)
        return _where(query_ids == segment, found, out), None

    return jax.lax.scan(with_segment, jnp.zeros_like(q), jnp.arange(1, segments + 1))[0]


def _by_segment_forward(
    segments: int, scale: float, is_self: bool, q: Array, k: Array, v: Array, query_ids: Array, key_ids: Array
) -> tuple[Array, tuple[Array, ...]]:
    out = _by_segment(segments, scale, is_self, q, k, v, query_ids, key_ids)
    return checkpoint_name(out, "attention_out"), (q, k, v, query_ids, key_ids)


def _by_segment_backward(
    segments: int, scale: float, is_self: bool, saved: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, Array, None, None]:
    q, k, v, query_ids, key_ids = saved

    def with_segment(so_far: tuple[Array, ...], segment: Int[Array, ""]) -> tuple[tuple[Array, ...], None]:
        queries, keys = query_ids == segment, key_ids == segment
        _, pull_back = jax.vjp(lambda q, k, v: _of_segment(q, k, v, queries, keys, scale, is_self), q, k, v)
        found = pull_back(gradient)  # which is that of the queries of the segment alone
        return tuple(_where(one, *pair) for one, *pair in zip((queries, keys, keys), found, so_far)), None

    zeros = tuple(jnp.zeros_like(x) for x in (q, k, v))
    (to_q, to_k, to_v), _ = jax.lax.scan(with_segment, zeros, jnp.arange(1, segments + 1))
    return to_q, to_k, to_v, None, None


_by_segment.defvjp(_by_segment_forward, _by_segment_backward)


def _of_segment(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b n k d"],
    v: Float[Array, "b n k d"],
    queries: Bool[Array, "b l"],
    keys: Bool[Array, "b n"],
    scale: float,
    is_self: bool,
) -> Float[Array, "b l h d"]:
    """Attention of these queries to these keys; what other queries get is no attention."""
    moves = _turned(queries)
    of_keys = moves if is_self else _sorted(keys)
    first = _moved(q, moves), _moved(k, of_keys), _moved(v, of_keys)
    return _moved(_of_first(*first, _count(queries), _count(keys), scale), moves.inverse)


def _where(chosen: Bool[Array, "b l"], x: Float[Array, "b l h d"], y: Float[Array, "b l h d"]) -> Array:
    return jnp.where(chosen[:, :, None, None], x, y)


class _Moves(NamedTuple):
    """A permutation of the tokens of each row."""

    order: Int[Array, "b l"]
    """For each token after the moves its index before them."""
    back: Int[Array, "b l"]
    """The other way."""

    @property
    def inverse(self) -> "_Moves":
        return _Moves(self.back, self.order)


def _turned(chosen: Bool[Array, "b l"]) -> _Moves:
    """The row from the first chosen token to the last token, then what is before it."""
    indices, start = jnp.arange(chosen.shape[1]), jnp.argmax(chosen, axis=1)[:, None]
    return _Moves((indices + start) % chosen.shape[1], (indices - start) % chosen.shape[1])


def _sorted(chosen: Bool[Array, "b l"]) -> _Moves:
    """The chosen tokens, then the others."""
    order = jnp.argsort(~chosen, axis=1, stable=True)
    return _Moves(order, jnp.argsort(order, axis=1))


def _moved(x: Float[Array, "b l h d"], moves: _Moves | None) -> Float[Array, "b l h d"]:
    return x if moves is None else _permuted(x, *moves)


@jax.custom_vjp
def _permuted(x: Float[Array, "b l h d"], order: Int[Array, "b l"], back: Int[Array, "b l"]) -> Float[Array, "b l h d"]:
    """Reads in both directions: the derivative of a read is a sum at indices, which need not be sums here."""
    return jax.vmap(lambda row, indices: row.at[indices].get(mode="promise_in_bounds"))(x, order)


def _permuted_forward(x: Array, order: Array, back: Array) -> tuple[Array, tuple[Array, Array]]:
    return _permuted(x, order, back), (order, back)


def _permuted_backward(orders: tuple[Array, Array], gradient: Array) -> tuple[Array, None, None]:
    order, back = orders
    return _permuted(gradient, back, order), None, None


_permuted.defvjp(_permuted_forward, _permuted_backward)


def _count(chosen: Bool[Array, "b l"]) -> Int[Array, " b"]:
    return jnp.sum(chosen, axis=1, dtype=jnp.int32)


def _of_first(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b n k d"],
    v: Float[Array, "b n k d"],
    queries: Int[Array, " b"],
    keys: Int[Array, " b"],
    scale: float,
) -> Float[Array, "b l h d"]:
    """Attention of the first `queries` of each row to its first `keys`; zeros for other queries, or without keys.

    cuDNN promises nothing about other tokens, in the output or in gradients, so that both are made zero.
    """
    is_query, is_key = (jnp.arange(x.shape[1]) < count[:, None] for x, count in ((q, queries), (k, keys)))
    sees = is_query & (keys > 0)[:, None]
    q, k, v = _gradient_where(q, is_query), _gradient_where(k, is_key), _gradient_where(v, is_key)
    out = _fused(q, k, v, jnp.maximum(queries, 1), jnp.maximum(keys, 1), scale=scale)
    return _where(sees, out, jnp.zeros_like(out))


@jax.custom_vjp
def _gradient_where(x: Float[Array, "b l h d"], chosen: Bool[Array, "b l"]) -> Float[Array, "b l h d"]:
    """x, with a gradient of zero at tokens that are not chosen, whatever is given back for them."""
    return x


def _gradient_where_backward(chosen: Array, gradient: Array) -> tuple[Array, None]:
    return _where(chosen, gradient, jnp.zeros_like(gradient)), None


_gradient_where.defvjp(lambda x, chosen: (x, chosen), _gradient_where_backward)


def _fused(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b n k d"],
    v: Float[Array, "b n k d"],
    queries: Int[Array, " b"],
    keys: Int[Array, " b"],
    *,
    scale: float,
) -> Float[Array, "b l h d"]:
    """cuDNN's kernel, with heads padded to its unit; what it returns for queries beyond the first is undefined."""
    width = q.shape[3]
    q, k, v = (jnp.pad(x, [(0, 0)] * 3 + [(0, -width % WIDTH_UNIT)]) for x in (q, k, v))
    out = jax.nn.dot_product_attention(
        q, k, v, scale=scale, query_seq_lengths=queries, key_value_seq_lengths=keys, implementation="cudnn"
    )
    return out[..., :width]
