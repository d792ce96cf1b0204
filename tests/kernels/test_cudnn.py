"""Attention by cuDNN without a GPU: its kernel replaced by the same function of jax, and programs lowered for CUDA.

The replacement gives NaN for everything that cuDNN leaves undefined, in the output and in gradients.
"""

import dataclasses
import functools
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo

from lumina_jax.kernels import blockwise, cudnn
from lumina_jax.kernels.arguments import GatedText
from lumina_jax.kernels.attention import attend
from lumina_jax.kernels.ring_blocks import block_attention
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.models.stack import REMAT_POLICIES
from lumina_jax.tokens import pack, pack_text
from tests.kernels.flash_cases import arrays, by_definition, case, gated, relative, with_gradients
from tests.models.random_models import random_parameters
from tests.models.test_flag_dit import CONFIG, LAYOUT, samples

PACKED = np.repeat([[1, 2, 3, 0], [1, 1, 2, 0]], [5, 9, 3, 2], axis=1)
"""A row of three segments, and one of two whose second has no text."""
PACKED_TEXT = [[2, 1, 0, 3, 1, 2], [0, 0, 1, 1, 1, 0]]
ON_CUDA = cudnn.on_cuda
ALONE = np.repeat([[1, 1], [1, 0]], [12, 7], axis=1)
LEFT_PADDED_TEXT = [[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]


@pytest.fixture
def on_gpu(monkeypatch):
    """Programs are traced as on a machine with one NVIDIA GPU."""
    monkeypatch.setattr(cudnn, "on_cuda", lambda: True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)


@pytest.fixture
def calls(on_gpu, monkeypatch):
    """The shapes of the queries and keys that were given to cuDNN, which the replacement computes."""
    plain, shapes = jax.nn.dot_product_attention, []

    def replacement(q, k, v, *, scale, implementation, query_seq_lengths, key_value_seq_lengths):
        assert implementation == "cudnn"
        assert not q.shape[-1] % 8
        shapes.append((q.shape, k.shape))
        used = [
            jnp.arange(x.shape[1]) < lengths[:, None]
            for x, lengths in ((q, query_seq_lengths), (k, key_value_seq_lengths))
        ]
        q, k, v = (undefined_gradient(x, used[index]) for x, index in ((q, 0), (k, 1), (v, 1)))
        out = plain(q, k, v, mask=used[1][:, None, None, :], scale=scale, implementation="xla")
        return jnp.where(used[0][:, :, None, None], out, jnp.nan)

    monkeypatch.setattr(jax.nn, "dot_product_attention", replacement)
    return shapes


@jax.custom_vjp
def undefined_gradient(x, used):
    return x


undefined_gradient.defvjp(
    lambda x, used: (x, used),
    lambda used, gradient: (jnp.where(used[:, :, None, None], gradient, jnp.nan), None),
)


@pytest.mark.parametrize(
    ("segments", "text", "shape"),
    [
        (PACKED, PACKED_TEXT, {"heads": 4, "width": 12, "own_queries": True}),
        (ALONE, LEFT_PADDED_TEXT, {"heads": 2, "width": 16}),
    ],
    ids=["packed rows", "rows of one segment"],
)
def test_attention_around_cudnn_gives_the_values_and_gradients_of_the_definition(calls, segments, text, shape):
    of = case(segments, text, scale=0.3, **shape)
    gradient = np.random.default_rng(9).standard_normal(of.q.shape)

    def ours(q, k, v, *text):
        rows = {"segment_ids": jnp.asarray(of.segments), "segments": int(of.segments.max())}
        return attend(q, k, v, scale=of.scale, text=gated(of, *text), implementation="cudnn", **rows)

    out, gradients = with_gradients(ours, gradient, *arrays(of))
    wanted, of_inputs = by_definition(of, gradient)
    assert {shapes[1][1] for shapes in calls} == {of.q.shape[1], len(text[0])}
    assert relative(out, wanted) <= 2e-6
    assert np.max([relative(ours, theirs) for ours, theirs in zip(gradients, of_inputs, strict=True)]) < 1e-5
    assert not any(np.asarray(x)[of.segments == 0].any() for x in (out, *gradients[:3]))


def test_text_of_the_first_heads_goes_through_cudnn_with_these_heads_alone(calls):
    of = case(ALONE, LEFT_PADDED_TEXT, heads=4, key_heads=2, width=8)
    q, k, v, keys, values, gate = arrays(of)
    text = GatedText(keys[:, :, :1], values[:, :, :1], gate[:2] + 1, jnp.asarray(of.text[3]))
    call = functools.partial(attend, q, k, v, segment_ids=jnp.asarray(of.segments), scale=0.3, text=text, segments=1)
    ours, theirs = jax.jit(lambda: (call(), call(implementation="reference")))()
    assert calls[-1] == ((2, 19, 2, 8), (2, 5, 1, 8))
    assert relative(ours, np.asarray(theirs, float)) <= 2e-6


def gradients_lowered_for_cuda(width, segments, **settings):
    """The text of a program for all gradients at 4,096 tokens, and the number of values in its largest arrays."""

    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype)

    tokens, keys, text, ids = shape(1, 4096, 4, width), shape(1, 4096, 2, width), shape(1, 96, 2, width), jnp.int32

    def total(inputs, ids, text_ids):
        q, k, v, *text = inputs
        out = attend(
            q, k, v, segment_ids=ids, scale=0.1, text=GatedText(*text, text_ids), segments=segments, **settings
        )
        return jnp.sum(out.astype(jnp.float32))

    inputs = (tokens, keys, keys, text, text, shape(4))
    traced = jax.jit(jax.grad(total)).trace(inputs, shape(1, 4096, dtype=ids), shape(1, 96, dtype=ids))
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    return program, max(
        math.prod(int(size) for size in sizes.split("x") if size)
        for sizes in re.findall(r"tensor<((?:\d+x)+)\w+>", program)
    )


@pytest.mark.parametrize(
    ("width", "segments"),
    [(72, 1), (96, 4), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((128, 1), (20, 2)))],
)
def test_a_program_for_gpus_calls_cudnn_forward_and_backward_and_has_no_array_of_all_pairs(on_gpu, width, segments):
    program, largest = gradients_lowered_for_cuda(width, segments)
    assert len(re.findall(r"@__cudnn\$fmhaSoftmax\(", program)) >= 2  # of tokens, and of text
    assert len(re.findall(r"@__cudnn\$fmhaSoftmaxBackward\(", program)) == 2
    assert largest <= 4096 * 4 * max(width, 24)


@pytest.mark.parametrize(
    ("segments", "why"),
    [
        (200, r"up to 200 segments, .* for at most 32"),
        pytest.param(None, "it is not known how many", marks=pytest.mark.slow),
    ],
)
def test_what_cudnn_cannot_serve_is_computed_some_queries_at_a_time_and_said(on_gpu, caplog, segments, why):
    program, largest = gradients_lowered_for_cuda(128, segments)
    assert "cudnn" not in program
    assert re.search(f"1024 queries at a time: .*{why}", caplog.text)
    assert largest == 4 * 1024 * 4096
    with pytest.raises(ValueError, match=r"implementation='cudnn' cannot be used: .* Ask for 'auto'"):
        gradients_lowered_for_cuda(264, 1, implementation="cudnn")


@pytest.mark.parametrize(("remat", "forward_calls"), [("full", 2), ("attention", 1)])
def test_a_backward_pass_computes_cudnn_again_unless_remat_keeps_attention(on_gpu, remat, forward_calls):
    def total(q, ids):
        out = attend(q, q, q, segment_ids=ids, scale=0.1, segments=1)
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    shapes = jax.ShapeDtypeStruct((1, 64, 2, 16), jnp.bfloat16), jax.ShapeDtypeStruct((1, 64), jnp.int32)
    gradient = jax.jit(jax.value_and_grad(jax.checkpoint(total, policy=REMAT_POLICIES[remat])))
    program = gradient.trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    assert len(re.findall(r"@__cudnn\$fmhaSoftmax\(", program)) == forward_calls


def test_a_ring_on_gpus_takes_some_queries_at_a_time_and_refuses_cudnn(on_gpu, caplog):
    q = jnp.zeros((1, 9, 2, 16))
    assert block_attention(q, q, "auto").forward.keywords == {"at_once": 1024}
    assert "with mesh.ring 1 cuDNN can serve" in caplog.text
    with pytest.raises(ValueError, match=r"'cudnn' cannot be used in a ring.*mesh\.ring 1"):
        block_attention(q, q, "cudnn")


def test_auto_asks_jax_which_types_and_widths_cudnn_takes(on_gpu):
    def refusal(width, dtype=jnp.bfloat16):
        x = jnp.zeros((1, 64, 2, width), dtype)
        return cudnn.refusal(x, x, 1, auto=True)

    assert refusal(128) is None
    assert "head dim must be <= 128" in refusal(136)
    assert "got float32" in refusal(64, jnp.float32)


@pytest.mark.parametrize(
    ("version", "capability", "why"),
    [
        ("PJRT C API cuda 12090", "7.5", r"compute capability 8\.0 \(Ampere\) or newer, but this has 7\.5"),
        ("PJRT C API cuda 12090", "12.0", None),
        ("rocm 70000", "9.4", "not an NVIDIA GPU"),
    ],
)
def test_gpus_that_cudnn_does_not_serve_are_named(on_gpu, monkeypatch, version, capability, why):
    client = types.SimpleNamespace(platform_version=version)
    device = types.SimpleNamespace(client=client, compute_capability=capability)
    x = jnp.zeros((1, 64, 2, 64), jnp.bfloat16)
    monkeypatch.setattr(cudnn, "on_cuda", ON_CUDA)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    found = cudnn.refusal(x, x, 1, auto=True)
    assert found is None if why is None else re.search(why, found)


def test_attention_some_queries_at_a_time_is_the_definition_for_lengths_that_parts_do_not_divide(monkeypatch):
    monkeypatch.setattr(blockwise, "FEWEST", 8)
    monkeypatch.setattr(blockwise, "LOGITS_AT_ONCE", 1)
    of = case(PACKED, heads=4, width=12, scale=0.3)
    gradient = np.random.default_rng(9).standard_normal(of.q.shape)
    ours = functools.partial(blockwise.attention, segment_ids=jnp.asarray(of.segments), scale=of.scale)
    out, gradients = with_gradients(ours, gradient, *arrays(of))
    wanted, of_inputs = by_definition(of, gradient)
    assert relative(out, wanted) <= 2e-6
    assert np.max([relative(ours, theirs) for ours, theirs in zip(gradients, of_inputs, strict=True)]) < 1e-5


@pytest.mark.slow
def test_a_model_computes_packed_rows_through_cudnn_as_without(calls):
    latents, captions, times = samples()
    tokens, _ = pack([latents], row_tokens=64, **LAYOUT)
    inputs = jax.tree.map(jnp.asarray, (tokens, times[None], pack_text([captions], 16)))
    parameters, gradient = random_parameters(CONFIG), jnp.asarray((tokens.segment_ids > 0)[..., None], jnp.float32)

    def outcome(attention):
        graph = abstract_model(dataclasses.replace(CONFIG, attention=attention))[0]
        out, pull_back = jax.vjp(lambda parameters: nnx.merge(graph, parameters)(*inputs) * gradient, parameters)
        return out, pull_back(jnp.broadcast_to(gradient, out.shape))

    ours, theirs = (jax.jit(functools.partial(outcome, attention))() for attention in ("cudnn", "reference"))
    assert len(calls) > 2
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(jnp.max(jnp.abs(other))) + 1e-6)
