"""Sequences written out by hand, exact inverses, and packing."""

import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.tokens import Grid, Kind, first_fit, pack, patchify, spread, tokens_of, unpack, unpatchify


def image(rows, columns, channels=3, frames=1, seed=0):
    shape = (frames, rows, columns, channels)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_an_image_of_two_by_three_patches_has_a_nextline_after_each_row():
    kinds, positions = Grid(1, 2, 3, nextline=True, nextframe=True).layout()
    assert kinds.tolist() == [1, 1, 1, 2, 1, 1, 1, 2]
    assert positions[:, 0].tolist() == list(range(8))
    assert positions[:, 2].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert positions[:, 3].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_video_of_two_frames_has_a_nextframe_after_each_frame():
    kinds, positions = Grid(2, 2, 3, nextline=True, nextframe=True).layout()
    assert kinds.tolist() == [1, 1, 1, 2, 1, 1, 1, 2, 3] * 2
    assert positions[:, 0].tolist() == list(range(18))
    assert positions[:, 1].tolist() == [0] * 9 + [1] * 9


def test_two_views_of_an_object_are_two_frames():
    kinds, _ = Grid(2, 1, 2, nextline=True, nextframe=True).layout()
    assert kinds.tolist() == [1, 1, 2, 3, 1, 1, 2, 3]


def test_a_sound_of_five_steps_is_one_row_of_five_patches():
    kinds, positions = Grid(1, 1, 5, nextline=True, nextframe=True).layout()
    assert kinds.tolist() == [1, 1, 1, 1, 1, 2]
    assert positions[:, 0].tolist() == list(range(6))
    sound = np.arange(10, dtype=np.float32).reshape(1, 1, 1, 5, 2)
    tokens, _ = tokens_of(sound, patch_size=1, nextline=True, nextframe=True)
    assert tokens.patches[0].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [0, 0]]


def test_without_markers_the_sequence_is_the_patches_alone():
    kinds, positions = Grid(2, 1, 2, nextline=False, nextframe=False).layout()
    assert kinds.tolist() == [1, 1, 1, 1]
    assert positions[:, 1:].tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]


def test_patch_values_are_ordered_channel_row_column():
    latents = np.arange(2 * 2 * 2, dtype=np.float32).reshape(1, 1, 2, 2, 2)
    patches = patchify(latents, Grid(1, 1, 1, nextline=False, nextframe=False), 2)
    assert patches.ravel().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize("nextline", [True, False])
@pytest.mark.parametrize(("frames", "rows", "columns"), [(1, 2, 5), (3, 4, 2), (1, 1, 1)])
@pytest.mark.parametrize("xp", [np, jnp])
def test_unpatchify_is_the_exact_inverse_of_patchify(frames, rows, columns, nextline, xp):
    latents = xp.asarray(image(rows * 2, columns * 2, frames=frames)[None])
    tokens, grid = tokens_of(latents, patch_size=2, nextline=nextline, nextframe=True)
    assert tokens.patches.shape[1] == grid.length == tokens.kinds.shape[1]
    assert type(tokens.patches) is type(latents)
    np.testing.assert_array_equal(unpatchify(tokens.patches, grid, 2), latents)
    at_markers = np.asarray(tokens.patches)[np.asarray(tokens.kinds) != Kind.PATCH]
    assert not at_markers.any()


def test_packing_writes_the_row_of_the_module_docstring():
    rows = [[image(1, 2, 1), image(2, 1, 1)]]
    tokens, grids = pack(rows, row_tokens=8, patch_size=1, nextline=True, nextframe=True)
    assert tokens.kinds.tolist() == [[1, 1, 2, 1, 2, 1, 2, 0]]
    assert tokens.positions[0, :, 0].tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    assert tokens.segment_ids.tolist() == [[1, 1, 1, 2, 2, 2, 2, 0]]
    unpacked = unpack(tokens.patches, grids, patch_size=1)
    for original, returned in zip(rows[0], unpacked[0]):
        np.testing.assert_array_equal(original, returned)


def test_first_fit_uses_the_first_row_with_room_and_keeps_the_order():
    fit = first_fit([5, 4, 3, 4, 2], 8, rows=2, samples_per_row=2)
    assert fit.rows == [[0, 2], [1, 3]]
    assert fit.left_over == [4]


def test_first_fit_refuses_a_sample_longer_than_a_row():
    with pytest.raises(ValueError, match="9 tokens does not fit into a row of row_tokens=8"):
        first_fit([2, 9], 8, rows=1, samples_per_row=9)


def test_spread_gives_each_token_what_its_segment_has_and_padding_zeros():
    table = jnp.asarray([[[1.5, 2.0], [3.0, -4.0]]])
    segment_ids = jnp.asarray([[2, 1, 1, 0]])
    assert spread(table, segment_ids).tolist() == [[[3.0, -4.0], [1.5, 2.0], [1.5, 2.0], [0.0, 0.0]]]


def test_a_latent_that_patches_do_not_divide_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match="crop it to 4 x 6"):
        tokens_of(image(5, 7)[None], patch_size=2, nextline=True, nextframe=True)
