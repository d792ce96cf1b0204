"""The implementations that ours is held against: jax's flash and splash attention, and tokamax's splash attention.

Each gets [h l d] arrays, the layout that it wants, so that no transposition is held against it. Text is a second call
of the same implementation, gated and added by XLA. None skips blocks of a packed row.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lumina_jax.kernel_bench.contestants import Blocks, Case, Contestant, near, padded, with_gradients
from lumina_jax.kernel_bench.problems import Problem

Softmax = Callable[..., Float[Array, "h l d"]]
"""(q [h l d], k and v [h n d], segment ids of both or None twice) -> [h l d]."""
Builder = Callable[[Problem, Blocks, int], Softmax]
"""(problem, blocks, number of keys) -> what computes it."""
TOKAMAX_BOUND = 20.0
"""The constant that tokamax subtracts instead of the largest logit; its value does not change the schedule."""
FORWARD_TARGETS = ((1408, 4224, 384), (384, 4224, 1408), (1408, 1408, 1408), (704, 4224, 704), (1024, 2048, 512))
BACKWARD_TARGETS = ((1408, 1408, 384), (1408, 1408, 1408), (704, 1408, 384), (384, 1408, 384), (704, 704, 704))


def _case(softmax: Builder, problem: Problem, blocks: Blocks) -> Case:
    """What is compiled for a problem; rows that its blocks cannot divide are padded, and masked by segment ids."""
    tokens, text = padded(problem.tokens), padded(problem.text_tokens)
    masked = problem.is_packed or tokens > problem.tokens
    of_tokens = softmax(problem, blocks, tokens)
    of_text = softmax(problem, blocks, text) if text else None
    text_masked = masked or problem.samples > 1 or text > problem.text_tokens

    def attention(ids, text_ids, q, k, v, *text_inputs):
        out = of_tokens(q, k, v, ids if masked else None, ids if masked else None)
        if of_text is None:
            return out
        text_k, text_v, gate = text_inputs
        from_text = of_text(q, text_k, text_v, ids if text_masked else None, text_ids if text_masked else None)
        return out + jnp.tanh(gate)[:, None, None].astype(out.dtype) * from_text

    of = jax.ShapeDtypeStruct
    row = of((problem.heads, tokens, problem.width), jnp.bfloat16)
    inputs: tuple[jax.ShapeDtypeStruct, ...] = (row, row, row)
    if text:
        text_row = of((problem.heads, text, problem.width), jnp.bfloat16)
        inputs += (text_row, text_row, of((problem.heads,), jnp.float32))
    ids = problem.segment_ids(tokens), problem.text_segment_ids(max(text, 1))
    return with_gradients(attention, ids, inputs, row, backward=problem.backward)


def _forward(problem: Problem) -> Iterator[Blocks]:
    for q, kv, compute in _triples(problem, FORWARD_TARGETS):
        yield {"q": q, "kv": kv, "kv_compute": compute}


def _backward(problem: Problem) -> Iterator[Blocks]:
    for q, kv, compute in _triples(problem, BACKWARD_TARGETS):
        yield {"q_backward": q, "kv_backward": kv, "kv_compute_backward": compute}


def _backward_of_splash(problem: Problem) -> Iterator[Blocks]:
    """The dq kernel fused into that of dk and dv, or apart."""
    for blocks in _backward(problem):
        yield {**blocks, "fused": 1}
        yield {**blocks, "fused": 0}


def _triples(problem: Problem, targets: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Block sizes near the targets (q, kv, kv_compute), each kv a multiple of its kv_compute; none twice."""
    seen = set()
    for q, kv, compute in targets:
        found_kv = near(problem.tokens, kv)
        found = near(problem.tokens, q), found_kv, near(found_kv, compute)
        if found not in seen:
            seen.add(found)
            yield found


def _flash(problem: Problem, blocks: Blocks, keys: int) -> Softmax:
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    fitted = _for_keys(blocks, keys)
    backward = {}
    if problem.backward:
        q, kv, compute = fitted["q_backward"], fitted["kv_backward"], fitted["kv_compute_backward"]
        backward = {
            "block_q_major_dkv": q,
            "block_q_dkv": q,
            "block_k_major_dkv": kv,
            "block_k_dkv": compute,
            "block_q_dq": q,
            "block_k_major_dq": kv,
            "block_k_dq": compute,
        }
    sizes = flash.BlockSizes(fitted["q"], fitted["kv"], fitted["kv_compute"], 1, **backward)

    def softmax(q, k, v, ids, key_ids):
        segments = None if ids is None else flash.SegmentIds(ids[None], key_ids[None])
        scale = problem.width**-0.5
        return flash.flash_attention(
            q[None], k[None], v[None], segment_ids=segments, sm_scale=scale, block_sizes=sizes
        )[0]

    return softmax


def _splash(problem: Problem, blocks: Blocks, keys: int) -> Softmax:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    fitted = _for_keys(blocks, keys)
    mask = masks.MultiHeadMask([masks.FullMask((padded(problem.tokens), keys))] * problem.heads)
    sizes = splash.BlockSizes(**_splash_blocks(fitted, fused=bool(fitted.get("fused", 1)), backward=problem.backward))
    kernel = splash.make_splash_mha(mask=mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)
    return _scaled(kernel, splash.SegmentIds, problem.width)


def _tokamax(problem: Problem, blocks: Blocks, keys: int, *, bound: float | None) -> Softmax:
    from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel as splash
    from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_mask as masks

    fitted = _splash_blocks(_for_keys(blocks, keys), fused=True, backward=problem.backward)
    config = splash.SplashConfig(**fitted, max_logit_const=bound)
    kernel = splash.make_splash_mha(mask=masks.FullMask((padded(problem.tokens), keys)), config=config, q_seq_shards=1)
    return _scaled(kernel, splash.SegmentIds, problem.width)


def _scaled(kernel: Callable[..., Array], segments: Callable[..., Any], width: int) -> Softmax:
    """Splash kernels leave the scale to the caller."""

    def softmax(
        q: Float[Array, "h l d"],
        k: Float[Array, "h n d"],
        v: Float[Array, "h n d"],
        ids: Int[Array, " l"] | None,
        key_ids: Int[Array, " n"] | None,
    ) -> Float[Array, "h l d"]:
        scaled = q * jnp.asarray(width**-0.5, q.dtype)
        return kernel(scaled, k, v, segment_ids=None if ids is None else segments(ids, key_ids))

    return softmax


def _splash_blocks(fitted: Blocks, *, fused: bool, backward: bool) -> dict[str, Any]:
    sizes = {
        "block_q": fitted["q"],
        "block_kv": fitted["kv"],
        "block_kv_compute": fitted["kv_compute"],
    }
    if not backward:
        return sizes
    q, kv, compute = fitted["q_backward"], fitted["kv_backward"], fitted["kv_compute_backward"]
    sizes |= {"block_q_dkv": q, "block_kv_dkv": kv, "block_kv_dkv_compute": compute}
    apart = {} if fused else {"block_q_dq": q, "block_kv_dq": kv}
    return sizes | apart | {"use_fused_bwd_kernel": fused}


def _for_keys(blocks: Blocks, keys: int) -> dict[str, int]:
    """The same blocks where they divide the keys, smaller ones where these are text and fewer."""
    return {name: near(keys, size) if name.startswith("kv") and keys % size else size for name, size in blocks.items()}


PEERS = (
    Contestant("jax flash", "jax", partial(_case, _flash), _forward, _backward),
    Contestant("jax splash", "jax", partial(_case, _splash), _forward, _backward_of_splash),
    Contestant("tokamax splash", "tokamax", partial(_case, partial(_tokamax, bound=None)), _forward, _backward),
    Contestant(
        "tokamax bounded",
        "tokamax",
        partial(_case, partial(_tokamax, bound=TOKAMAX_BOUND)),
        _forward,
        _backward,
        note="a constant instead of the largest logit, which is exact only where logits stay near it",
    ),
)
