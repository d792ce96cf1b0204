"""Clips that loop, clips in windows, and clips of scenes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh

from lumina_jax.config import SampleConfig
from lumina_jax.generation.clips import Windows, check_clips, stride_around, turned, windows_of
from lumina_jax.generation.composition import composition
from lumina_jax.generation.scenes import Scene, frames_of_blend
from lumina_jax.modalities import Shape, modality_of
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.tokens import tokens_of
from tests.compiled import compiled
from tests.generation.test_pipeline import SETTINGS, Words, new_pipeline, random_parameters
from tests.modalities.test_modalities import SOUNDS, modality
from tests.training.tiny import config, label_config

LONG = Shape(16, 24, 5)
ONE_STEP = dataclasses.replace(SETTINGS, steps=1)


def test_the_network_turns_a_ring_of_frames_by_the_positions_of_tokens():
    """What it says of a clip at turned positions is what it says of the turned clip."""
    settings = label_config().model
    model = nnx.merge(abstract_model(settings)[0], random_parameters(settings))
    clip = np.random.default_rng(0).standard_normal((1, 5, 16, 16, 3)).astype(np.float32)

    def said(latents, t):
        marks = {"nextline": settings.nextline, "nextframe": settings.nextframe}
        tokens, grid = tokens_of(latents, patch_size=settings.patch_size, **marks)
        tokens = tokens._replace(positions=turned(tokens, 5, grid.length, 10, jnp.float32(t)))
        out = model(jax.tree.map(jnp.asarray, tokens), jnp.full((1, 1), 0.5), jnp.array([[3]]))
        return np.asarray(out)[0].reshape(5, -1, out.shape[-1])

    by = 4 * stride_around(5) % 5
    assert by
    np.testing.assert_allclose(np.roll(said(clip, 0.45), by, axis=0), said(np.roll(clip, by, axis=1), 0.0), atol=2e-5)


def test_each_step_opens_the_ring_elsewhere():
    for frames in (2, 5, 8, 12, 16):
        opened = {index * stride_around(frames) % frames for index in range(frames)}
        assert len(opened) == frames
        assert math.gcd(stride_around(frames), frames) == 1
    assert stride_around(8) == 5


def test_windows_overlap_by_half_and_their_shares_sum_to_1():
    settings = SampleConfig(window_frames=4)
    assert windows_of(settings, 4, 40) is None
    found = windows_of(settings, 9, 90)
    assert found == Windows((0, 2, 4, 5), 4, 10)
    np.testing.assert_allclose(found.weights.sum(axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(found.weights[:, 2], [2 / 3, 1 / 3, 0, 0], rtol=1e-6)
    x = np.random.default_rng(0).standard_normal((2, 9, 16, 24, 3)).astype(np.float32)
    tokens, grid = tokens_of(jnp.asarray(x), patch_size=8, nextline=True, nextframe=True)
    windows = windows_of(settings, 9, grid.length)
    cut = windows.cut(tokens)
    assert cut.patches.shape == (8, 4 * grid.length // 9, 192)
    first = tokens_of(x[:, :4], patch_size=8, nextline=True, nextframe=True)[0]
    for row in range(8):
        np.testing.assert_array_equal(cut.positions[row], first.positions[0])
        np.testing.assert_array_equal(cut.kinds[row], first.kinds[0])
    np.testing.assert_array_equal(cut.patches[4], first.patches[1])
    np.testing.assert_allclose(windows.joined(cut.patches), tokens.patches, rtol=1e-5, atol=1e-6)


def test_scenes_share_frames_and_give_way_to_each_other_linearly():
    pictures = modality_of(config())
    scenes = [Scene("a", 3), Scene("b", 4), Scene("c", 2)]
    found = composition(pictures, Shape(16, 24, 9), scenes=scenes, scene_blend=0)
    assert found.captions == ("a", "b", "c")
    assert found.shares.shape == (3, 9, 16, 24)
    np.testing.assert_array_equal(found.shares[:, :, 5, 7], np.repeat(np.eye(3), [3, 4, 2], axis=1))
    soft = composition(pictures, Shape(16, 24, 9), scenes=scenes, scene_blend=2).shares[:, :, 0, 0]
    np.testing.assert_allclose(soft[0], [1, 1, 0.75, 0.25, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(soft.sum(axis=0), 1)


@pytest.mark.parametrize(("shortest", "frames"), [(1, 0), (2, 1), (3, 2), (4, 3), (5, 3), (8, 6), (16, 12)])
def test_scenes_blend_over_three_quarters_of_the_shortest_unless_a_number_is_given(shortest, frames):
    """Rounded down. The 6 of 8 frames are those that docs/scenes.md measured."""
    scenes = [Scene("a", shortest + 2), Scene("b", shortest), Scene("c", shortest + 1)]
    assert frames_of_blend(scenes, None) == frames
    assert [frames_of_blend(scenes, given) for given in (0, 1)] == [0, 1]
    shape = Shape(16, 24, 3 * shortest + 3)
    by_default, given = (
        composition(modality_of(config()), shape, scenes=scenes, **asked).shares
        for asked in ({}, {"scene_blend": frames})
    )
    np.testing.assert_array_equal(by_default, given)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"scenes": [Scene("a", 3), Scene("b", 3)]}, r"the scenes have 3 \+ 3 = 6 frames, .* 5 are drawn"),
        ({"scenes": [Scene("a", 5), Scene("b", 0)]}, "each needs one"),
        ({"scenes": [Scene("a", 3), Scene("b", 2)], "scene_blend": 3}, "from 0 to the 2 frames of the shortest"),
        ({"scenes": [Scene("a", 5)], "also": [("b", 1.0)]}, "leave other captions and regions out"),
    ],
)
def test_scenes_that_do_not_fit_are_refused(asked, reason):
    with pytest.raises(ValueError, match=reason):
        composition(modality_of(config()), LONG, **asked)


def test_sounds_have_no_scenes():
    with pytest.raises(ValueError, match="scenes are parts of clips, but this draws sounds"):
        composition(modality(SOUNDS), Shape(1, 14), scenes=[Scene("a", 1)])


@pytest.mark.parametrize(
    ("changes", "frames", "more", "reason"),
    [
        ({"loop": True}, 1, {}, "joins the ends of clips, but what is drawn has one frame"),
        ({"loop": True, "solver": "dopri5"}, 4, {}, "which the adaptive solver 'dopri5' takes for errors"),
        ({"window_frames": 3}, 4, {"has_style": True}, "draw without a style"),
        ({"window_frames": 3}, 4, {"mesh": AbstractMesh((2,), ("sequence_heads",))}, "with mesh.sequence=1"),
    ],
)
def test_clips_that_cannot_be_drawn_are_refused(changes, frames, more, reason):
    with pytest.raises(ValueError, match=reason):
        check_clips(SampleConfig(**changes), [Shape(16, 24, frames)], **more)


@pytest.mark.slow
def test_one_program_serves_scenes_and_each_frame_moves_by_the_mean_of_its_windows_and_captions(caplog):
    """Held against the Euler method over plain calls, one for each window and caption."""
    pipeline = new_pipeline(config(), Words())
    noise = np.asarray(jax.random.normal(jax.random.key(1), (1, 5, 16, 24, 3)))
    in_windows = dataclasses.replace(ONE_STEP, window_frames=2)
    scenes = [Scene("cat", 2), Scene("dog", 3)]
    parts = composition(pipeline.modality(), LONG, scenes=scenes, scene_blend=2)
    with compiled(caplog) as programs:
        found = np.asarray(pipeline.latents(noise, ["x"], in_windows, composed=parts))
        other = [Scene("owl", 4), Scene("sea", 1)]
        pipeline(["x"], in_windows, shape=LONG, scenes=other, seed=4)
    assert programs.count("draw") == 1
    windows = Windows((0, 1, 2, 3), 2, 1)
    expected = np.zeros_like(noise)
    for scene, share in zip(scenes, parts.shares):
        for start, weights in zip(windows.starts, windows.weights):
            chosen = slice(start, start + 2)
            alone = np.asarray(pipeline.latents(noise[:, chosen], [scene.caption], ONE_STEP))
            expected[:, chosen] += (share[chosen] * weights[chosen, None, None])[..., None] * alone
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_loops_compose_with_sources_and_styles():
    from lumina_jax.generation.style import StyleOf

    pipeline = new_pipeline(config(), Words())
    looping = dataclasses.replace(SETTINGS, loop=True)
    frame = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3), dtype=np.uint8)
    plain = pipeline(["cat"], SETTINGS, shape=LONG, source=frame)[0]
    found = pipeline(["cat"], looping, shape=LONG, source=frame)[0]
    np.testing.assert_array_equal(found[0], frame[0])
    assert not np.array_equal(found, plain)
    styled = pipeline(["cat", "dog"], looping, shape=LONG, style=StyleOf(0))
    alone = pipeline(["cat", "dog"], looping, shape=LONG)
    assert np.abs(styled[0].astype(int) - alone[0]).max() <= 1
    assert np.abs(styled[1].astype(int) - alone[1]).mean() > 0.1
