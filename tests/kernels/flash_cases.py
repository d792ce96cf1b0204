"""Inputs for the tests of the TPU kernels, and attention and its gradients by the definition, in float64."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.kernels.arguments import GatedText


class Case(NamedTuple):
    """Arrays in float64, as `attend` takes them."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    segments: np.ndarray
    scale: float
    text: tuple[np.ndarray, ...] | None
    """Keys, values, gate, segments, and queries or nothing."""


def case(segments, text_segments=None, *, heads=2, key_heads=2, width=64, scale=None, own_queries=False, seed=0):
    """Random values for given segments [b l] and text segments [b t]."""
    random = np.random.default_rng(seed)
    segments = np.asarray(segments, np.int32)
    batch, length = segments.shape

    def normal(tokens, count):
        # Values that bfloat16 and float32 hold exactly, so that only the arithmetic differs.
        return random.standard_normal((batch, tokens, count, width)).astype(jnp.bfloat16).astype(float)

    text = None
    if text_segments is not None:
        words = np.asarray(text_segments, np.int32)
        gate = random.standard_normal(heads).astype(np.float32).astype(float)
        gate[0] = 0.0
        text = (normal(words.shape[1], key_heads), normal(words.shape[1], key_heads), gate, words)
        text += (normal(length, heads),) if own_queries else ()
    of_tokens = normal(length, heads), normal(length, key_heads), normal(length, key_heads)
    return Case(*of_tokens, segments, scale or width**-0.5, text)


def arrays(of, dtype=jnp.float32):
    """The differentiable inputs, in order: q, k, v, then keys, values, gate and queries of the text."""
    values = [of.q, of.k, of.v]
    if of.text is not None:
        values += [of.text[0], of.text[1], of.text[2], *of.text[4:]]
    return [jnp.asarray(x, jnp.float32 if x.ndim == 1 else dtype) for x in values]


def with_gradients(function, gradient, *inputs):
    """function(*inputs) and the gradients of all inputs for a gradient of the output, in one compiled program."""

    def both(gradient, *inputs):
        out, pull_back = jax.vjp(function, *inputs)
        return out, pull_back(gradient)

    return jax.jit(both)(jnp.asarray(gradient, jnp.float32), *inputs)


def gated(of, keys, values, gate, queries=None):
    return GatedText(keys, values, gate, jnp.asarray(of.text[3]), queries)


def softmax(q, k, v, query_segments, key_segments, scale):
    """[l d] of one head, the weights [l n], and zeros where nothing may be seen."""
    visible = (query_segments[:, None] == key_segments[None, :]) & (query_segments[:, None] > 0)
    logits = np.where(visible, scale * q @ k.T, -np.inf)
    largest = np.max(logits, axis=1, keepdims=True)
    weights = np.exp(logits - np.where(np.isfinite(largest), largest, 0.0))
    total = weights.sum(1, keepdims=True)
    weights = weights / np.where(total == 0, 1.0, total)
    return weights @ v, weights


def slopes(weights, q, k, v, gradient, scale):
    """Gradients of q, k and v of one head's softmax, and gradient . output of each row."""
    of_weights = gradient @ v.T
    delta = np.sum(weights * of_weights, axis=1, keepdims=True)
    of_logits = scale * weights * (of_weights - delta)
    return of_logits @ k, of_logits.T @ q, weights.T @ gradient, delta


def by_definition(of, gradient=None):
    """The output, and with a gradient of it those of all `arrays`."""
    heads, group = of.q.shape[2], of.q.shape[2] // of.k.shape[2]
    out = np.zeros(of.q.shape)
    found = [np.zeros(x.shape) for x in ([of.q, of.k, of.v] + ([*of.text[:3], *of.text[4:]] if of.text else []))]
    for b in range(of.q.shape[0]):
        for h in range(heads):
            at, key_at = (b, slice(None), h), (b, slice(None), h // group)
            kinds = [(of.q, of.k, of.v, of.segments, of.scale, 1.0, (0, 1, 2))]
            if of.text:
                own = len(of.text) == 5
                queries, gate = of.text[4] if own else of.q, np.tanh(of.text[2][h])
                inputs = (6 if own else 0, 3, 4)
                kinds.append((queries, of.text[0], of.text[1], of.text[3], of.q.shape[-1] ** -0.5, gate, inputs))
            for q, k, v, segments, scale, share, inputs in kinds:
                one, weights = softmax(q[at], k[key_at], v[key_at], of.segments[b], segments[b], scale)
                out[at] += share * one
                if gradient is not None:
                    *three, delta = slopes(weights, q[at], k[key_at], v[key_at], gradient[at], scale)
                    for input_, index, slope in zip(inputs, (at, key_at, key_at), three):
                        found[input_][index] += share * slope
                    if inputs[1] == 3:
                        found[5][h] += (1 - share**2) * delta.sum()
    return out if gradient is None else (out, found)


def relative(ours, theirs):
    """The greatest difference, in units of the greatest value; where all are zero, zero for the same."""
    difference, largest = np.max(np.abs(np.asarray(ours, float) - theirs)), np.max(np.abs(theirs))
    return float(difference / largest) if largest else float(difference)
