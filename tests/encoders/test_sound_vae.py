"""The sound autoencoder: against torch in its released layouts, and what it refuses."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from lumina_jax.encoders.autoencoder import Posterior
from lumina_jax.encoders.sound_vae import sound_vae
from lumina_jax.parallel.mesh import make_mesh
from tests.encoders.sound_layout import CHANNELS, VAE, latents, random_tensors, spectrograms

GOLDEN = Path(__file__).parents[1] / "golden/sounds/vae_and_vocoder.safetensors"
SETTINGS = {**VAE, "ch_mult": [1, 2, 2], "attn_layers": [3]}
LOG10 = math.log(10)


def relative_error(got, expected):
    assert got.shape == expected.shape
    return np.abs(np.asarray(got, np.float64) - expected).max() / np.abs(expected).max()


def small_folder(folder, *, around=None, without=(), **changes):
    """An autoencoder of random numbers with one stage, its configuration changed."""
    folder.mkdir()
    usual = {**SETTINGS, "ch_mult": [1], "kernel_size": 3, "down_layers": [], "z_channels": CHANNELS}
    tensors = random_tensors(usual, CHANNELS)
    settings = {name: value for name, value in {**usual, **changes}.items() if value != "absent"}
    config = {"embed_dim": CHANNELS, "ddconfig": settings, **(around or {})}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value for name, value in tensors.items() if name not in without}, folder / "vae.safetensors")
    return folder


def released_layout(folder, tensors, settings, *, prefix):
    """A Lightning checkpoint beside the YAML of the diffusion model, as the authors publish them."""
    import torch

    other = {"epoch": 3, "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}}}
    stored = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    stored |= {"loss.logvar": torch.zeros(())} if not prefix else {"model.x_embedder.weight": torch.zeros(2, 3)}
    stored |= {"scale_factor": torch.tensor(2.5)} if prefix else {}
    torch.save({"state_dict": stored, "optimizer_states": [{"state": {}}], **other}, folder / "maa2.ckpt")
    first = {"target": "models.autoencoder1d.AutoencoderKL", "params": {"embed_dim": CHANNELS, "ddconfig": settings}}
    around = {"scale_by_std": bool(prefix)}
    (folder / "vae.yaml").write_text(yaml.safe_dump({"model": {"params": {**around, "first_stage_config": first}}}))


def test_encoding_and_decoding_equal_what_is_recorded_of_torch(tmp_path):
    (tmp_path / "vae.yaml").write_text(yaml.safe_dump({"params": {"embed_dim": CHANNELS, "ddconfig": VAE}}))
    save_file(random_tensors(VAE, CHANNELS), tmp_path / "vae.safetensors")
    vae, expected = sound_vae(tmp_path), load_file(GOLDEN)
    posterior = vae.encode(spectrograms())
    assert relative_error(posterior.mean, expected["mean"]) < 1e-5
    assert relative_error(posterior.log_variance, expected["log_variance"]) < 1e-5
    assert relative_error(vae.decode(latents()), expected["decoded"]) < 1e-5


@pytest.mark.torch
@pytest.mark.parametrize(
    ("changes", "prefix"),
    [
        pytest.param({}, "", id="released"),
        pytest.param({"ch_mult": [1, 2], "attn_layers": [1], "kernel_size": 3}, "first_stage_model.", id="attention"),
        pytest.param({"down_layers": [0, 1], "num_res_blocks": 2}, "", id="quarter"),
    ],
)
def test_encoding_and_decoding_equal_torch(tmp_path, changes, prefix):
    torch = pytest.importorskip("torch")
    from tests.encoders import torch_sound

    settings = {**SETTINGS, **changes}
    tensors = {name: torch.from_numpy(values) for name, values in random_tensors(settings, CHANNELS).items()}
    released_layout(tmp_path, tensors, settings, prefix=prefix)
    vae = sound_vae(str(tmp_path), make_mesh(devices=jax.devices()[:1]) if prefix else None, "float32")
    model = torch_sound.TorchVae(tensors, settings)
    scaling = 2.5 if prefix else 1.0
    assert (vae.factor, vae.channels, vae.config.scaling) == (2 ** len(settings["down_layers"]), CHANNELS, scaling)

    random = np.random.default_rng(1)
    mel = random.uniform(-11, 1, (2, 12, 80)).astype(np.float32)
    latents = random.standard_normal((2, 5, CHANNELS)).astype(np.float32)

    def theirs(x):
        return torch.from_numpy(x).double().transpose(1, 2)

    mean, log_variance = (x.transpose(1, 2).numpy() for x in model.encode(theirs(mel) / LOG10))
    decoded = model.decode(theirs(latents) / scaling).transpose(1, 2).numpy() * LOG10
    got = vae.encode(mel)
    errors = [relative_error(got.mean, mean), relative_error(got.log_variance, log_variance)]
    errors.append(relative_error(vae.decode(latents), decoded))
    print("relative errors of mean, log variance, decoded:", *(f"{error:.1e}" for error in errors))
    assert max(errors) < 1e-5
    with pytest.raises(ValueError, match=f"a multiple of the {vae.factor} frames .* have 13; fill them up"):
        vae.encode(mel[:, :1].repeat(13, axis=1))


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return sound_vae(small_folder(tmp_path_factory.mktemp("vae") / "small", around={"scale_factor": 0.5}))


def test_samples_have_the_mean_and_deviation_of_their_distribution(vae):
    posterior = Posterior(*(np.full((1, 4000, 4), value, np.float32) for value in (2.0, np.log(0.25))))
    drawn = np.asarray(vae.sample(posterior, jax.random.key(0)))
    assert abs(drawn.mean() - 1) < 0.02  # 0.5 times the mean
    assert abs(drawn.std() - 0.25) < 0.01


def test_bfloat16_is_close_to_float32(tmp_path, vae):
    half = sound_vae(small_folder(tmp_path / "vae", around={"scale_factor": 0.5}), dtype="bfloat16")
    mel = np.random.default_rng(0).uniform(-11, 1, (1, 8, 80)).astype(np.float32)
    assert 1e-5 < relative_error(half.encode(mel).mean, np.asarray(vae.encode(mel).mean)) < 5e-2
    assert half.fingerprint != vae.fingerprint


def test_the_base_of_logarithms_is_that_of_the_configuration(tmp_path, vae):
    natural = sound_vae(small_folder(tmp_path / "vae", around={"log_base": "e", "scale_factor": 0.5}))
    mel = np.random.default_rng(0).uniform(-11, 1, (1, 6, 80)).astype(np.float32)
    np.testing.assert_allclose(vae.encode(mel * np.float32(LOG10)).mean, natural.encode(mel).mean, rtol=1e-3, atol=1e-4)
    latents = np.ones((1, 6, 4), np.float32)
    np.testing.assert_allclose(vae.decode(latents), LOG10 * natural.decode(latents), rtol=1e-5)
    assert natural.fingerprint != vae.fingerprint
    with pytest.raises(ValueError, match="log_base must be 10 or e, but is 2"):
        sound_vae(small_folder(tmp_path / "other", around={"log_base": 2}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ch": "absent"}, "config.json has wrong values: ddconfig.ch: field required"),
        ({"double_z": False}, "has double_z=False, but only True is supported"),
        ({"tanh_out": True}, "has tanh_out=True"),
        ({"use_vq": True}, "not supported: use_vq"),
        ({"out_ch": 64}, "in_channels=80 and out_ch=64 must be 80"),
        ({"kernel_size": 4}, "kernel_size=4 must be odd"),
        ({"ch": 48}, "must be a multiple of 32"),
        ({"down_layers": [0]}, r"down_layers=\[0\] must be less than"),
        ({"num_res_blocks": 2}, "does not match .*/config.json: .*missing decoder.up.0.block.2"),
        ({"kernel_size": 5}, r"the shape \(3, .*requires \(5, "),
        ({"z_channels": 8}, "but the configuration requires"),
        ({"around": {"embed_dim": 8}}, "but the configuration requires"),
        ({"without": ["quant_conv.bias"]}, "missing quant_conv.bias, unknown none"),
        ({"around": {"scale_by_std": True}}, "add the line 'scale_factor: <number>' at the beginning of config.json"),
        (
            {"around": {"scale_factor": -1}},
            "scale_factor must be a positive number from .* but is -1; change it in .*config",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        sound_vae(small_folder(tmp_path / "vae", **changes))


def test_missing_files_and_too_many_are_named(tmp_path):
    folder = small_folder(tmp_path / "vae")
    (folder / "other.yaml").write_text("model: {params: {ddconfig: {ch: 1}}}")
    with pytest.raises(ValueError, match=r"holds config.json, other.yaml; keep one|other.yaml, config.json; keep one"):
        sound_vae(folder)
    (folder / "other.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"other.yaml must be a YAML file, but is not valid"):
        sound_vae(folder)
    (folder / "other.yaml").unlink()
    save_file(load_file(folder / "vae.safetensors"), folder / "vae2.safetensors")
    with pytest.raises(ValueError, match=r"holds vae.safetensors, vae2.safetensors; keep one"):
        sound_vae(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match=r"must hold one checkpoint of a sound autoencoder .* none; copy it there"):
        sound_vae(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"with the setting ddconfig, but holds none; copy it there"):
        sound_vae(folder)
    with pytest.raises(ValueError, match="there is no folder"):
        sound_vae(tmp_path / "nowhere")


def test_spectrograms_and_latents_that_do_not_fit_are_refused(tmp_path, vae):
    with pytest.raises(ValueError, match="must have 80 bins, but have 100"):
        vae.encode(np.zeros((1, 4, 100), np.float32))
    with pytest.raises(ValueError, match="4 channels, as this autoencoder does, but have 20"):
        vae.decode(np.zeros((1, 4, 20), np.float32))
