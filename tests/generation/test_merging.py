"""Patches that attention sees as one: which ones, what attention to them is, when, and what it saves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.generation.style import StyleOf
from lumina_jax.kernels import attention, blockwise
from lumina_jax.models.merged_attention import Groups, Merging, square_groups
from lumina_jax.tokens import Grid
from tests.compiled import compiled
from tests.generation.test_pipeline import SETTINGS, Words, new_pipeline
from tests.training.tiny import config

RANDOM = np.random.default_rng(0)
GRID = Grid(frames=2, rows=3, columns=4, nextline=True, nextframe=True)
LENGTH = GRID.length + 3
"""Three tokens more than a sample has."""
SCALE = 0.4


def members(groups):
    return [set(tokens[:size].tolist()) for tokens, size in zip(groups.tokens, groups.sizes)]


def values(heads, width=6):
    return RANDOM.standard_normal((2, LENGTH, heads, width)).astype(np.float32)


def segment_ids():
    ids = np.ones((2, LENGTH), np.int32)
    ids[:, GRID.length :] = 0
    return ids


def merged(q, k, v, groups, is_on=True):
    merging = Merging(jnp.asarray(is_on), groups)
    whole = lambda: jnp.full(q.shape, 7.0)  # noqa: E731
    return np.asarray(merging.attended(whole, *map(jnp.asarray, (q, k, v, segment_ids())), SCALE))


def test_squares_of_patches_of_a_frame_are_groups_and_markers_are_alone():
    found = members(square_groups(GRID, LENGTH, 2))
    assert sorted(token for group in found for token in group) == list(range(LENGTH))
    assert {0, 1, 5, 6} in found
    assert {2, 3, 7, 8} in found
    assert {10, 11} in found  # the third row has no fourth
    frame = GRID.length // 2
    assert {frame, frame + 1, frame + 5, frame + 6} in found
    assert all({marker} in found for marker in (4, 9, 14, 15, *range(GRID.length, LENGTH)))
    assert len(found) == 2 * (4 + 4) + 3


def test_squares_of_one_patch_are_the_patches():
    groups = square_groups(GRID, LENGTH, 1)
    assert sorted(groups.tokens[:, 0].tolist()) == list(range(LENGTH))
    assert (groups.sizes == 1).all()


def test_attention_to_a_group_is_that_to_the_mean_of_its_keys_as_often_as_it_has_tokens():
    """Held against sums over the groups for each query; two query heads share a key head."""
    q, k, v = values(4), values(2), values(2)
    groups = square_groups(GRID, LENGTH, 2)
    found, seen = merged(q, k, v, groups), [sorted(one) for one in members(groups) if max(one) < GRID.length]
    for row, query, head in np.ndindex(2, GRID.length, 4):
        keys, means = ([x[row, one, head // 2].mean(axis=0) for one in seen] for x in (k, v))
        weights = np.array([len(one) * np.exp(SCALE * q[row, query, head] @ key) for one, key in zip(seen, keys)])
        expected = weights @ np.stack(means) / weights.sum()
        np.testing.assert_allclose(found[row, query, head], expected, rtol=1e-4, atol=1e-5)
    assert (found[:, GRID.length :] == 0).all()


def test_where_the_keys_of_squares_are_equal_nothing_changes():
    q, k, v = values(4), values(2), values(2)
    groups = square_groups(GRID, LENGTH, 2)
    for one in map(sorted, members(groups)):
        k[:, one] = k[:, one[:1]]
    found = merged(q, k, v, groups)
    ids = jnp.asarray(segment_ids())
    expected = attention.attend(*map(jnp.asarray, (q, k, v)), segment_ids=ids, scale=SCALE, implementation="reference")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_some_queries_at_a_time_see_what_all_would(monkeypatch):
    q, k, v = values(4), values(2), values(2)
    groups = square_groups(GRID, LENGTH, 2)
    together = merged(q, k, v, groups)
    monkeypatch.setattr(blockwise, "queries_at_once", lambda q, k: 8)
    np.testing.assert_allclose(merged(q, k, v, groups), together, rtol=1e-5, atol=1e-6)


def test_groups_are_seen_only_while_they_are_on():
    q, k, v = values(4), values(2), values(2)
    groups = square_groups(GRID, LENGTH, 2)
    assert (merged(q, k, v, groups, is_on=False) == 7).all()
    of_rows = merged(q, k, v, groups, is_on=[False, True])
    assert (of_rows[0] == 7).all()
    np.testing.assert_allclose(of_rows[1], merged(q, k, v, groups)[1], rtol=1e-5, atol=1e-6)
    assert (merged(q, k, v, groups, is_on=[False, False]) == 7).all()
    np.testing.assert_allclose(
        merged(q, k, v, groups, is_on=[True, True]), merged(q, k, v, groups), rtol=1e-5, atol=1e-6
    )


def test_attention_to_squares_of_four_takes_a_quarter_of_the_products():
    grid = Grid(1, 32, 32, nextline=False, nextframe=False)
    q, ids = jnp.zeros((1, grid.length, 2, 32)), jnp.ones((1, grid.length), jnp.int32)

    def flops(side):
        groups = square_groups(grid, grid.length, side)
        only = Groups(groups.tokens, groups.weights, groups.sizes)
        function = jax.jit(lambda q: Merging(jnp.ones(1, bool), only).attended(lambda: q, q, q, q, ids, SCALE))
        return function.lower(q).compile().cost_analysis()["flops"]

    assert flops(2) < 0.35 * flops(1)


# What is drawn


@pytest.fixture(scope="module")
def pipeline():
    return new_pipeline(config(), Words())


def drawn(pipeline, prompts=("cat", "dog"), seed=1, **changes):
    return np.stack(pipeline(prompts, dataclasses.replace(SETTINGS, **changes), seed=seed))


def test_merging_changes_what_is_drawn_while_it_is_on_and_nothing_afterwards(pipeline):
    """But for rounding, as the text is then added after the attention of both, by another program."""
    plain, never, half, always = (
        drawn(pipeline, **changes)
        for changes in ({}, *({"merge_tokens": 2, "merge_until": until} for until in (0.0, 0.5, 2.0)))
    )
    np.testing.assert_allclose(never.astype(int), plain, atol=1)
    assert (never != plain).mean() < 0.002
    assert (half != plain).mean() > 0.02
    assert (always != plain).mean() > 1.1 * (half != plain).mean()


def test_one_program_serves_other_prompts_and_seeds(pipeline, caplog):
    drawn(pipeline, merge_tokens=2)
    with compiled(caplog) as programs:
        drawn(pipeline, ("sun", "moon"), seed=5, merge_tokens=2)
    assert not programs


def test_samples_in_one_style_are_refused(pipeline):
    settings = dataclasses.replace(SETTINGS, merge_tokens=2)
    with pytest.raises(ValueError, match=r"see each patch of a reference.*set it to 1"):
        pipeline(["cat", "dog"], settings, style=StyleOf(0))
