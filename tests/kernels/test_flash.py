"""The TPU kernels, interpreted on CPU, against attention and its gradients written out in float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from lumina_jax.kernels.arguments import GatedText
from lumina_jax.kernels.attention import attend
from lumina_jax.kernels.flash.blocks import BlockSizes
from lumina_jax.kernels.flash.call import flash_attention
from tests.kernels.flash_cases import arrays, by_definition, case, gated, relative

SMALL = BlockSizes(
    q=256,
    q_compute=256,
    kv=256,
    kv_compute=128,
    tile_q=128,
    tile_kv=128,
    run_q=64,
    run_kv=128,
    q_backward=256,
    q_compute_backward=256,
    kv_backward=256,
    kv_compute_backward=128,
    tile_q_backward=128,
    tile_kv_backward=128,
    heads=2,
    heads_backward=2,
)
STREAMED = BlockSizes(**{**vars(SMALL), "kv": 128, "kv_backward": 128})
ONE = np.ones((1, 256), int)
PADDED = np.repeat([[1, 0]], [200, 56], axis=1)
PACKED = np.repeat([[1, 2, 3, 0]], [150, 28, 50, 28], axis=1)
ANY_ORDER = np.random.default_rng(0).integers(0, 4, (1, 256))
WORDS = np.repeat([[1, 2, 0]], [40, 30, 10], axis=1)
LONG = np.stack([np.repeat([1, 0], [150, 874]), np.repeat([1, 2, 3, 4, 0], [128, 128, 330, 400, 38])])
MANY_WORDS = np.repeat([[1, 1, 1, 0, 0], [1, 2, 3, 4, 0]], [30, 40, 60, 20, 10], axis=1)


@functools.cache
def programs(blocks, scale, has_text, interpret):
    """The kernels, and the kernels with their gradients, compiled once for all cases of the same shapes."""

    def attention(ids, words, *inputs):
        text = GatedText(*inputs[3:6], words, *inputs[6:]) if has_text else None
        options = {"scale": scale, "text": text, "blocks": blocks, "interpret": interpret}
        return flash_attention(*inputs[:3], segment_ids=ids, **options)

    def with_gradients(gradient, ids, words, *inputs):
        out, pull_back = jax.vjp(functools.partial(attention, ids, words), *inputs)
        return out, pull_back(gradient)

    return jax.jit(attention), jax.jit(with_gradients)


def output(of, *, blocks=SMALL, interpret=True):
    attention, _ = programs(blocks, of.scale, of.text is not None, interpret)
    return attention(*segments_of(of), *arrays(of))


def output_and_gradients(of, gradient, *, blocks=SMALL, dtype=jnp.float32, interpret=True):
    _, with_gradients = programs(blocks, of.scale, of.text is not None, interpret)
    return with_gradients(jnp.asarray(gradient, dtype), *segments_of(of), *arrays(of, dtype))


def segments_of(of):
    return jnp.asarray(of.segments), None if of.text is None else jnp.asarray(of.text[3])


ROWS, WORDS_OF_ROWS = np.concatenate([PADDED, PACKED, ANY_ORDER]), np.repeat(WORDS, 3, axis=0)
"""A row with padding, one of three samples, and one with ids in any order."""


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        pytest.param({"heads": 4}, SMALL, id="grouped heads"),
        pytest.param({"own_queries": True}, SMALL, id="text with its own queries", marks=pytest.mark.slow),
        pytest.param({"heads": 4, "own_queries": True, "scale": 0.2}, STREAMED, id="streamed, another scale"),
    ],
)
def test_output_and_every_gradient_are_those_of_the_definition_and_the_same_every_time(options, blocks):
    of = case(ROWS, WORDS_OF_ROWS, **options)
    gradient = np.random.default_rng(9).standard_normal(of.q.shape)
    out, gradients = output_and_gradients(of, gradient, blocks=blocks)
    wanted, of_inputs = by_definition(of, gradient)
    assert relative(out, wanted) <= 2e-6
    assert len(gradients) == len(of_inputs)
    assert [relative(ours, theirs) < 1e-5 for ours, theirs in zip(gradients, of_inputs)] == [True] * len(gradients)
    assert not np.any(np.asarray(out)[ROWS == 0])
    assert not np.any(np.asarray(gradients[1])[ROWS == 0])
    chex.assert_trees_all_equal((out, gradients), output_and_gradients(of, gradient, blocks=blocks))


@pytest.mark.parametrize(
    ("width", "heads", "few"),
    [
        pytest.param(48, 8, 2, marks=pytest.mark.slow),
        pytest.param(72, 3, 3, marks=pytest.mark.slow),
        pytest.param(96, 4, 4, marks=pytest.mark.slow),
        pytest.param(128, 1, 1, marks=pytest.mark.slow),
        pytest.param(192, 2, 2, marks=pytest.mark.slow),
    ],
)
def test_every_width_of_head_is_read_from_the_lanes_where_it_lies(width, heads, few):
    of = case(PADDED, WORDS, width=width, heads=heads, key_heads=heads)
    blocks = BlockSizes(**{**vars(SMALL), "heads": heads, "heads_backward": few})
    gradient = np.random.default_rng(9).standard_normal(of.q.shape)
    out, gradients = output_and_gradients(of, gradient, blocks=blocks)
    wanted, of_inputs = by_definition(of, gradient)
    assert relative(out, wanted) <= 2e-6
    assert np.max([relative(ours, theirs) for ours, theirs in zip(gradients, of_inputs)]) < 1e-5


@pytest.mark.parametrize(
    ("width", "heads", "key_heads", "few", "text"),
    [
        (72, 2, 1, 1, None),
        pytest.param(72, 4, 2, 2, {"own_queries": True}, marks=pytest.mark.slow),
        pytest.param(96, 8, 2, 2, {}, marks=pytest.mark.slow),  # two repeats in a block, two blocks
        pytest.param(72, 4, 2, 1, {"own_queries": True}, marks=pytest.mark.slow),  # other groups for the backward pass
    ],
)
def test_rows_and_heads_that_end_within_a_block_are_read_as_they_are(width, heads, key_heads, few, text):
    words = None if text is None else WORDS
    of = case(PACKED[:, :-15], words, width=width, heads=heads, key_heads=key_heads, **(text or {}))
    changed = {"q": 128, "q_compute": 128, "q_backward": 128, "q_compute_backward": 128}
    blocks = BlockSizes(**{**vars(SMALL), **changed, "heads": key_heads, "heads_backward": few})
    gradient = np.random.default_rng(9).standard_normal(of.q.shape)
    out, gradients = output_and_gradients(of, gradient, blocks=blocks)
    wanted, of_inputs = by_definition(of, gradient)
    assert relative(out, wanted) <= 2e-6
    assert np.max([relative(ours, theirs) for ours, theirs in zip(gradients, of_inputs)]) < 1e-5


def with_one_huge(keys, index):
    """Factors of keys: queries that look away from the huge one see all others as before."""
    return np.where(np.arange(keys.shape[1]) == index, 3e3, 1.0)[:, None, None]


@pytest.mark.parametrize(
    ("words", "options", "q"),
    [
        pytest.param(None, {"heads": 2, "key_heads": 2, "width": 48}, 256, id="two heads in a register, no text"),
        pytest.param(MANY_WORDS, {"heads": 4, "key_heads": 2, "width": 72}, 128, id="grouped heads, text"),
    ],
)
def test_gradients_of_packed_rows_are_summed_over_windows_of_keys(words, options, q):
    """Windows that some or no blocks of queries see, of one or several samples; heads get registers of their own."""
    of = case(LONG, words, **options)
    few = {"heads_backward": 128 // options["width"], "q_backward": q, "q_compute_backward": q}
    few |= {"kv_backward": 512, "kv_compute_backward": 256}
    gradient = np.random.default_rng(9).standard_normal(of.q.shape)
    _, gradients = output_and_gradients(of, gradient, blocks=BlockSizes(**{**vars(SMALL), **few}))
    _, wanted = by_definition(of, gradient)
    assert [relative(ours, theirs) < 1e-5 for ours, theirs in zip(gradients, wanted)] == [True] * len(wanted)
    assert not np.any(np.asarray(gradients[1])[LONG == 0])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda of: of._replace(q=of.q * 5e3), id="logits of +-1e4"),
        pytest.param(lambda of: of._replace(k=of.k * with_one_huge(of.k, 0)), id="one huge key"),
        pytest.param(lambda of: of._replace(k=of.k * with_one_huge(of.k, 190)), id="one huge key late"),
        pytest.param(lambda of: of._replace(k=np.ones_like(of.k)), id="all equal"),
        pytest.param(lambda of: of._replace(q=abs(of.q) * 900, k=-abs(of.k)), id="all far below zero"),
    ],
)
@pytest.mark.parametrize("blocks", [SMALL, STREAMED])
def test_softmax_is_exact_for_any_logits(change, blocks):
    of = change(case(PADDED, heads=2))
    # Whole numbers of few bits: products are exact in float32 but for log2 e, which is a factor of the queries; so a
    # logit is rounded to half a unit of its last digit, and its exponential is off by as much relatively.
    of = of._replace(q=np.round(of.q), k=np.round(of.k * 8) / 8, scale=0.125)
    out = output(of, blocks=blocks)
    largest = np.abs(np.einsum("blhd,bnhd->bhln", of.q, np.repeat(of.k, of.q.shape[2] // of.k.shape[2], 2))).max()
    assert relative(out, by_definition(of)) <= 2e-6 + of.scale * largest * 2.0**-24


def test_samples_longer_than_a_window_of_keys_are_summed_over_several():
    """260 keys take a medium window, 1500 a long one and a medium one, which is moved back into the row."""
    words = np.repeat([[3, 1, 2]], [10, 300, 70], axis=1)
    of = case(np.repeat([[1, 2, 3]], [260, 288, 1500], axis=1), words, heads=1, key_heads=1)
    sizes = {"q": 2048, "q_compute": 1024, "kv": 2048, "run_q": 288, "run_kv": 1152, "heads": 1, "heads_backward": 1}
    out = output(of, blocks=BlockSizes(**{**vars(SMALL), **sizes}))
    assert relative(out, by_definition(of)) <= 2e-6


def test_one_unsafe_sample_of_a_packed_row_is_exact_and_so_are_its_neighbours():
    of = case(ROWS, WORDS_OF_ROWS, heads=4)
    of = of._replace(q=np.where(ROWS[..., None, None] == 2, 3e3 * of.q, of.q))
    (out, _), wanted = output_and_gradients(of, of.q), by_definition(of)
    out, wanted = np.asarray(out)[1], wanted[1]
    ordinary = np.isin(PACKED[0], [1, 3])
    assert relative(out[ordinary], wanted[ordinary]) <= 2e-6
    # Logits of thousands are rounded to 2^-12, and their weights by as much.
    assert relative(out, wanted) <= 2e-3


@pytest.mark.slow
def test_bfloat16_is_within_a_percent():
    of = case(PACKED, WORDS, width=128)
    gradient = np.random.default_rng(9).standard_normal(of.q.shape).astype(jnp.bfloat16).astype(float)
    out, gradients = output_and_gradients(of, gradient, dtype=jnp.bfloat16)
    wanted, of_inputs = by_definition(of, gradient)
    assert out.dtype == jnp.bfloat16
    assert relative(out, wanted) <= 0.01
    assert np.max([relative(ours, theirs) for ours, theirs in zip(gradients, of_inputs)]) <= 0.02


def test_gradients_of_the_definition_agree_with_finite_differences():
    of = case(PACKED[:, 100:260:4], WORDS[:, ::4], heads=4, width=8, own_queries=True)
    random = np.random.default_rng(9)
    gradient = random.standard_normal(of.q.shape)
    inputs = [of.q, of.k, of.v, *of.text[:3], of.text[4]]
    steps = [random.standard_normal(x.shape) for x in inputs]

    def along(size):
        q, k, v, keys, values, gate, queries = (x + size * step for x, step in zip(inputs, steps))
        moved = of._replace(q=q, k=k, v=v, text=(keys, values, gate, of.text[3], queries))
        return np.sum(by_definition(moved) * gradient)

    _, gradients = by_definition(of, gradient)
    slope = sum(np.sum(x * step) for x, step in zip(gradients, steps))
    assert (along(1e-5) - along(-1e-5)) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_attend_takes_rows_that_no_block_divides_and_agrees_with_the_reference():
    of = case(np.repeat([[1, 2]], [40, 61], axis=1), WORDS[:, :70], heads=4, key_heads=2, width=48)

    def call(q, k, v, *text):
        options = {"segment_ids": jnp.asarray(of.segments), "scale": 0.3, "text": gated(of, *text)}
        ours = attend(q, k, v, implementation="pallas", interpret=True, **options)
        return ours, attend(q, k, v, implementation="reference", **options)

    ours, theirs = jax.jit(call)(*arrays(of))
    assert ours.shape == of.q.shape
    np.testing.assert_allclose(ours, theirs, atol=3e-6)


def test_explicit_choice_off_tpu_is_refused_with_the_remedy():
    of = case(ONE)
    with pytest.raises(ValueError, match=r"neither the default device nor the mesh.*interpret=True"):
        attend(*arrays(of), segment_ids=jnp.asarray(of.segments), scale=1.0, implementation="pallas")


@functools.cache
def inside_shard_map():
    """The kernels without text and their gradients, one row on each device of a mesh."""
    mesh = jax.make_mesh((1,), ("rows",), (jax.sharding.AxisType.Auto,))

    def attention(ids, q, k, v):
        return flash_attention(q, k, v, segment_ids=ids, scale=0.125, blocks=SMALL, interpret=True)

    divided = jax.shard_map(attention, mesh=mesh, in_specs=(P("rows"),) * 4, out_specs=P("rows"), check_vma=False)

    def with_gradients(gradient, ids, *inputs):
        out, pull_back = jax.vjp(functools.partial(divided, ids), *inputs)
        return out, pull_back(gradient)

    return jax.jit(with_gradients)


@pytest.mark.parametrize("segments", [PADDED, ONE], ids=["padded", "one sample"])
def test_gradients_flow_inside_shard_map(segments):
    of = case(segments)
    gradient = np.random.default_rng(9).standard_normal(of.q.shape)
    out, gradients = inside_shard_map()(jnp.asarray(gradient, jnp.float32), jnp.asarray(segments), *arrays(of))
    wanted, of_inputs = by_definition(of, gradient)
    assert relative(out, wanted) <= 2e-6
    assert np.max([relative(ours, theirs) for ours, theirs in zip(gradients, of_inputs, strict=True)]) < 1e-5


lengths = st.lists(st.integers(1, 120), min_size=1, max_size=5)


@given(
    lengths=lengths,
    words=st.lists(st.integers(0, 40), min_size=5, max_size=5),
    heads=st.sampled_from([(2, 2), (4, 2), (2, 1)]),
    streamed=st.booleans(),
    ordered=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@pytest.mark.slow
def test_any_rows_agree_with_the_definition(lengths, words, heads, streamed, ordered, seed):
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)[:256]
    segments = np.pad(ids, (0, 256 - len(ids)))
    text = np.repeat([1, 2, 3, 4, 5], words)[:100]
    text = np.pad(text, (0, 100 - len(text)))
    if not ordered:
        random = np.random.default_rng(seed)
        segments, text = random.permutation(segments), random.permutation(text)
    query_heads, key_heads = heads
    of = case(segments[None], text[None], heads=query_heads, key_heads=key_heads, seed=seed)
    blocks = BlockSizes(**{**vars(STREAMED if streamed else SMALL), "heads": key_heads, "heads_backward": key_heads})
    gradient = np.random.default_rng(seed).standard_normal(of.q.shape)
    out, gradients = output_and_gradients(of, gradient, blocks=blocks)
    wanted, of_inputs = by_definition(of, gradient)
    assert np.max(np.abs(out - wanted)) <= 4e-6
    assert all(np.max(np.abs(ours - theirs)) < 3e-5 for ours, theirs in zip(gradients, of_inputs))


RACES = pltpu.InterpretParams(detect_races=True)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [SMALL, STREAMED])
@pytest.mark.parametrize("huge", [1, 1e4])
@pytest.mark.parametrize(("width", "heads", "rows"), [(64, 2, 256), (96, 4, 256), (72, 3, 241)])
def test_no_race_and_no_read_of_what_was_never_written(blocks, huge, width, heads, rows):
    segments = np.concatenate([PADDED, PACKED])[:, :rows]
    of = case(segments, np.concatenate([WORDS, WORDS]), width=width, heads=heads, key_heads=heads)
    blocks = BlockSizes(**{**vars(blocks), "heads": heads, "heads_backward": heads})
    check_races(of._replace(q=of.q * huge), blocks, exact=huge == 1)


@pytest.mark.slow
def test_blocks_of_queries_that_a_window_passes_over_keep_their_gradient():
    """The two blocks of the second row before its second sample are not brought for the window of that sample."""
    segments = np.stack([np.repeat([1, 0], [100, 284]), np.repeat([1, 2], [256, 128])])
    words = np.repeat([[1, 1, 0], [1, 2, 0]], [40, 30, 10], axis=1)
    sizes = {"q": 128, "q_compute": 128, "q_backward": 128, "q_compute_backward": 128, "heads_backward": 1}
    of = case(segments, words, width=72, heads=4, key_heads=2)
    check_races(of, BlockSizes(**{**vars(STREAMED), **sizes}))


def check_races(of, blocks, *, exact=True):
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    gradient = np.random.default_rng(9).standard_normal(of.q.shape)
    out, gradients = output_and_gradients(of, gradient, blocks=blocks, interpret=RACES)
    jax.block_until_ready(gradients)
    assert not interpret_pallas_call.races.races_found
    assert all(np.isfinite(x).all() for x in (out, *gradients))
    if exact:
        wanted, of_inputs = by_definition(of, gradient)
        assert relative(out, wanted) <= 2e-6
        assert np.max([relative(ours, theirs) for ours, theirs in zip(gradients, of_inputs)]) < 1e-5
