"""A whole run on the latents of an autoencoder: trained, drawn while it trains, and opened again."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from lumina_jax.commands.evaluate import true_samples
from lumina_jax.config import SampleConfig, VaeConfig
from lumina_jax.generation.originals import originals
from lumina_jax.modalities import Shape, load_autoencoders, modality_of
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.trained import open_run
from lumina_jax.training.checkpoint import Checkpoints
from lumina_jax.training.state import abstract_state
from tests.training.tiny import label_config

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "vae_tiny"


def latent_config(folder, **sections):
    """Emoji of 32 pixels as latents of 8 x 8 x 4 in patches of 2."""
    settings = label_config(folder, model={"channels": 4, "patch_size": 2})
    vae = VaeConfig(path=str(GOLDEN), cache=str(folder / "latents"))
    return dataclasses.replace(settings, vae=vae).replace(**sections)


@pytest.mark.slow  # the mixture of latents trains and draws, too
def test_a_run_on_latents_trains_and_draws_pixels(tmp_path):
    settings = latent_config(
        tmp_path, run={"steps": 2, "sample_every": 2, "sample_prompts": ("3", "5"), "checkpoint_every": 2}
    )
    file = tmp_path / "settings.json"
    file.write_text(settings.to_json())
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), str(file)],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "data     14 samples of emoji" in done.stdout
    assert "encoding pictures" in done.stdout
    folder = tmp_path / "tiny"
    with Image.open(folder / "samples" / "step_0000002.png") as sheet:
        assert sheet.size[0] >= 2 * 32
        assert np.asarray(sheet).std() > 1

    pipeline = open_run(folder)
    assert pipeline.step == 2
    state = Checkpoints(folder / "checkpoints", read_only=True).restore(2, abstract_state(settings, make_mesh()))
    drawn_with, average, last = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (pipeline.parameters, state.ema, state.parameters)
    )
    np.testing.assert_array_equal(drawn_with, average)
    assert np.abs(average - last).max() > 0
    _, _, true, _ = true_samples(settings, limit=3)
    assert np.stack(true).shape == (3, 1, 32, 32, 3)
    encoding = pipeline.modality().encoding(pipeline.autoencoders["image"])
    mean = np.split(encoding.encode([true[0]])[0], 2, axis=-1)[0]
    mask = np.zeros((32, 32), bool)
    mask[:, 17:] = True  # of the latents that stand for 4 pixels each, four are kept
    edit = originals(pipeline.modality(), [Shape(32, 32)], true[0], mask, None).edit(
        [0], Shape(32, 32), pipeline.modality(), pipeline.autoencoders["image"]
    )
    noise = np.random.default_rng(0).standard_normal((1, 1, 8, 8, 4), np.float32)
    found = np.asarray(pipeline.latents(noise, ["3"], SampleConfig(steps=2), edit=edit))
    expected = (mean - encoding.scale.shift) * encoding.scale.scaling
    np.testing.assert_allclose(found[0, :, :, :4], expected[:, :, :4], rtol=1e-5, atol=1e-5)
    assert np.abs(found[0, :, :, 4:] - expected[:, :, 4:]).min() > 0
    assert pipeline(["3"], source=true[0], mask=mask)[0].shape == (1, 32, 32, 3)
    with pytest.raises(ValueError, match="multiple of the 8 pixels of a patch"):
        pipeline(["3"], SampleConfig(), seed=0, shape=Shape(32, 36), batch=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"channels": 3}}, "model.channels=3 must be the 4 channels of the latents"),
        (
            {"model": {"patch_size": 3}, "data": {"image_size": 30}},
            "data.image_size=30 must be a multiple of 12",
        ),
        ({"vae": {"path": "nobody/nothing"}}, "download it first with: hf download nobody/nothing"),
    ],
)
def test_an_autoencoder_that_does_not_fit_is_refused(tmp_path, change, message):
    settings = latent_config(tmp_path, **change)
    for check in (modality_of, load_autoencoders):
        with pytest.raises(ValueError, match=message):
            check(settings)


def test_without_an_autoencoder_a_patch_has_its_own_pixels(tmp_path):
    settings = label_config(tmp_path)
    assert load_autoencoders(settings) == {}
    assert modality_of(settings).patch_extent == (8, 8)
