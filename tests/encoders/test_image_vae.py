"""The image autoencoder against diffusers: a golden of its answers, and fresh random ones where torch is installed."""

import importlib.util
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lumina_jax.encoders import vae_layers
from lumina_jax.encoders.autoencoder import Posterior
from lumina_jax.encoders.image_vae import blend_tiles, load_image_vae
from lumina_jax.encoders.vae_files import FILES
from lumina_jax.parallel.mesh import make_mesh

GOLDEN = Path(__file__).parent.parent / "golden" / "vae_tiny"
MAKER = Path(__file__).parent.parent.parent / "tools" / "make_vae_golden.py"
CONFIG, WEIGHTS = FILES
TILE = 16
FIRST_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
OF_SD = {"scaling_factor": 0.18215, "block_out_channels": [8, 16, 16, 32], "layers_per_block": 2}
OF_SD |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}


@pytest.fixture(scope="module")
def expected():
    return load_file(GOLDEN / "expected.safetensors")


@pytest.fixture(scope="module")
def vae():
    return load_image_vae(GOLDEN, tile=TILE)


def relative_error(got, expected):
    assert got.shape == expected.shape
    return np.abs(np.asarray(got, np.float64) - expected).max() / np.abs(expected).max()


def changed_copy(folder, **settings):
    """The golden autoencoder with settings changed, or dropped where they are "absent"."""
    shutil.copytree(GOLDEN, folder)
    config = {**json.loads((folder / CONFIG).read_text()), **settings}
    (folder / CONFIG).write_text(json.dumps({name: v for name, v in config.items() if v != "absent"}))
    return folder


def test_encoding_and_decoding_equal_diffusers(expected):
    vae = load_image_vae(GOLDEN, tile=None, mesh=make_mesh(devices=jax.devices()[:1]))
    posterior = vae.encode(expected["pixels"])
    assert relative_error(posterior.mean, expected["mean"]) < 1e-5
    assert relative_error(posterior.log_variance, expected["log_variance"]) < 1e-5
    assert relative_error(vae.decode(expected["latents"]), expected["decoded"]) < 1e-5
    assert (vae.factor, vae.channels, vae.config.scaling) == (4, 4, 0.13025)


def test_tiles_are_cut_and_blended_as_diffusers_does(vae, expected):
    assert relative_error(vae.decode(expected["tiled_latents"]), expected["tiled"]) < 1e-5
    assert relative_error(vae.encode(expected["tiled"][:, :8]).mean, expected["tiled_mean"]) < 1e-5


def test_bfloat16_is_close_to_float32(expected):
    vae = load_image_vae(GOLDEN, dtype="bfloat16", tile=None)
    posterior = vae.encode(expected["pixels"])
    assert posterior.mean.dtype == posterior.log_variance.dtype == jnp.float32
    for got, true in zip(
        (*posterior, vae.decode(expected["latents"])),
        (expected["mean"], expected["log_variance"], expected["decoded"]),
    ):
        assert 1e-4 < relative_error(got, true) < 3e-2


def test_blending_hides_where_tiles_meet():
    """Tiles of a smooth picture, each off by a constant of its own as networks are that see only a part of it."""
    y, x = np.mgrid[0:84, 0:72].astype(np.float32) / 80
    smooth = np.sin(2 * x + y)[None, :, :, None]
    off = np.random.default_rng(0).uniform(-0.02, 0.02, (4, 4)).astype(np.float32)
    tiles = [
        [smooth[:, top : top + 32, left : left + 32] + off[top // 24, left // 24] for left in range(0, 72, 24)]
        for top in range(0, 84, 24)
    ]
    together = blend_tiles([[tile.copy() for tile in row] for row in tiles], 32)
    assert together.shape == smooth.shape
    assert np.abs(together - smooth).max() <= 0.02 + 1e-6
    error = together - smooth
    largest_step = max(np.abs(np.diff(error, axis=axis)).max() for axis in (1, 2))
    assert largest_step <= 0.04 / 8 + 1e-6  # the difference of two tiles, spread over the 8 pixels they share


def test_samples_have_the_mean_and_deviation_of_their_distribution(vae):
    posterior = posterior_of(mean=2.0, log_variance=np.log(0.25), count=4000)
    drawn = np.asarray(vae.sample(posterior, jax.random.key(0))) / 0.13025
    assert abs(drawn.mean() - 2) < 0.03
    assert abs(drawn.std() - 0.5) < 0.02


def posterior_of(mean, log_variance, count):
    return Posterior(*(np.full((1, 1, count, 4), value, np.float32) for value in (mean, log_variance)))


def test_attention_in_parts_equals_attention_at_once(expected, monkeypatch):
    monkeypatch.setattr(vae_layers, "QUERY_BLOCK", 4)
    vae = load_image_vae(GOLDEN, tile=None)
    assert relative_error(vae.decode(expected["latents"]), expected["decoded"]) < 1e-5


def test_first_names_of_the_attention_half_precision_and_a_pipeline_folder_are_read(tmp_path, expected):
    folder = changed_copy(tmp_path / "pipeline" / "vae", shift_factor="absent", use_quant_conv="absent")
    tensors = load_file(folder / WEIGHTS)
    for name in list(tensors):
        tensors[name] = tensors[name].astype(np.float16)
        for now, first in FIRST_NAMES.items():
            if f"attentions.0.{now}." in name:
                tensors[name.replace(now, first)] = tensors.pop(name)
    save_file(tensors, folder / WEIGHTS)
    vae = load_image_vae(tmp_path / "pipeline", tile=None)
    assert 1e-5 < relative_error(vae.decode(expected["latents"]), expected["decoded"]) < 2e-3


def test_shift_and_scaling_are_those_of_the_configuration(tmp_path, vae, expected):
    folder = changed_copy(tmp_path / "vae", shift_factor=0.5, scaling_factor=2.0)
    other = load_image_vae(folder, tile=None)
    np.testing.assert_allclose(other.scaled(np.array([[1.0, 0.5]])), [[1.0, 0.0]])
    latents = (expected["latents"] / 0.13025 - 0.5) * 2.0
    assert relative_error(other.decode(latents), expected["decoded"]) < 1e-5
    assert other.fingerprint != vae.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
        ({"_class_name": "AsymmetricAutoencoderKL"}, "_class_name='AsymmetricAutoencoderKL'"),
        ({"in_channels": 4}, "in_channels=4"),
        ({"latents_mean": [0.0]}, "latents_mean="),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "down_block_types="),
        ({"up_block_types": "absent"}, "each of the 3 blocks must be 'UpDecoderBlock2D'"),
        ({"norm_num_groups": 3}, "norm_num_groups=3 must divide"),
        ({"use_spatial_norm": True}, "not supported: use_spatial_norm"),
        ({"layers_per_block": 2}, "missing decoder.up_blocks.0.resnets.2"),
        ({"mid_block_add_attention": False}, "unknown decoder.mid_block.attentions.0"),
        ({"latent_channels": 8}, r"gives decoder.first.kernel the shape \(3, 3, 4, 16\)"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_image_vae(changed_copy(tmp_path / "vae", **change))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"scaling_factor": 0}, "scaling_factor: input should be greater"),
        ({"scaling_factor": 0.0}, "scaling_factor"),
        ({"scaling_factor": -0.13}, "scaling_factor"),
        ({"scaling_factor": float("nan")}, "scaling_factor"),
        ({"scaling_factor": float("inf")}, "scaling_factor"),
        ({"scaling_factor": 1e-45}, "scaling_factor"),
        ({"scaling_factor": "0.13"}, "scaling_factor: input should be a valid number, but got '0.13'"),
        ({"scaling_factor": None}, "scaling_factor"),
        ({"scaling_factor": [0.13]}, "scaling_factor"),
        ({"shift_factor": float("nan")}, "shift_factor"),
        ({"shift_factor": float("-inf")}, "shift_factor"),
        ({"shift_factor": "0"}, "shift_factor"),
        ({"block_out_channels": "abc"}, "block_out_channels: input should be a valid array"),
        ({"block_out_channels": 8}, "block_out_channels"),
        ({"block_out_channels": []}, "block_out_channels: list should have at least 1"),
        ({"block_out_channels": [8, 8.0, 16]}, "block_out_channels.1: input should be a valid integer, but got 8.0"),
        ({"block_out_channels": [8, 0, 16]}, "block_out_channels.1: input should be greater than or equal to 1"),
        ({"block_out_channels": [8, -8, 16]}, "block_out_channels.1"),
        ({"block_out_channels": [8, 10**12, 16]}, "block_out_channels.1: input should be less than"),
        ({"block_out_channels": {"a": 1}}, "block_out_channels"),
        ({"layers_per_block": 2.0}, "layers_per_block: input should be a valid integer, but got 2.0"),
        ({"layers_per_block": "1"}, "layers_per_block"),
        ({"layers_per_block": 10**9}, "layers_per_block"),
        ({"layers_per_block": True}, "layers_per_block"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"norm_num_groups": 0}, "norm_num_groups"),
        ({"use_quant_conv": "yes"}, "use_quant_conv"),
        ({"use_quant_conv": 1}, "use_quant_conv"),
        ({"down_block_types": 3}, "down_block_types"),
        ({"up_block_types": [["UpDecoderBlock2D"]]}, "up_block_types.0"),
    ],
)
def test_values_of_another_type_or_out_of_range_are_named_with_file_and_key(tmp_path, change, key):
    folder = tmp_path / "vae"
    with pytest.raises(ValueError, match=rf"{folder / 'config.json'} has wrong values: {key}"):
        load_image_vae(changed_copy(folder, **change))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"a"', "[" * 5000, "\ud83d"])
def test_a_file_that_is_no_object_is_named(tmp_path, text):
    folder = changed_copy(tmp_path / "vae")
    (folder / "config.json").write_text(text, errors="surrogatepass")
    with pytest.raises(ValueError, match=rf"{folder / 'config.json'}"):
        load_image_vae(folder)


def test_the_only_variant_and_files_of_pytorch_are_read_and_an_index_names_no_other_folder(tmp_path, vae):
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    folder = changed_copy(tmp_path / "vae")
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    (folder / "expected.safetensors").unlink(missing_ok=True)
    save_file(
        {name: tensor.astype(np.float16) for name, tensor in tensors.items()},
        folder / "diffusion_pytorch_model.fp16.safetensors",
    )
    expected = vae.encode(pixels).mean
    assert 0 < relative_error(load_image_vae(folder).encode(pixels).mean, expected) < 1e-2
    (folder / "diffusion_pytorch_model.fp16.safetensors").unlink()
    index = folder / f"{WEIGHTS}.index.json"
    save_file(tensors, folder / "part-1.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "part-1.safetensors")}))
    np.testing.assert_array_equal(load_image_vae(folder).encode(pixels).mean, expected)
    for outside in ("../vae/part-1.safetensors", str(folder / "part-1.safetensors")):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, outside)}))
        with pytest.raises(ValueError, match="may only list files in the same folder"):
            load_image_vae(folder)


def test_missing_files_are_named_with_the_command_that_downloads_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"hf download nobody/nothing --include config.json --include .*safetensors"):
        load_image_vae("nobody/nothing")
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        load_image_vae(tmp_path / "nowhere")
    folder = changed_copy(tmp_path / "vae")
    (folder / WEIGHTS).write_bytes((GOLDEN / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        load_image_vae(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=rf"must have {WEIGHTS} or .*, but its only weights are: expected.safetensors"):
        load_image_vae(folder)


def test_sizes_that_do_not_fit_are_refused(vae):
    with pytest.raises(ValueError, match="multiples of 4, the pixels"):
        vae.encode(np.zeros((1, 12, 10, 3), np.float32))
    with pytest.raises(ValueError, match="tile=24 must be a multiple of 16"):
        load_image_vae(GOLDEN, tile=24)


@pytest.mark.torch
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(OF_SD, id="sd-1.5"),
        pytest.param({**OF_SD, "scaling_factor": 0.13025, "layers_per_block": 1, "norm_num_groups": 8}, id="sdxl"),
        pytest.param(
            {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1159, "latent_channels": 16},
            id="no-quant-conv",
        ),
        pytest.param({"mid_block_add_attention": False}, id="no-attention"),
    ],
)
@pytest.mark.parametrize("size", [(3, 5), (8, 4)])
def test_fresh_random_autoencoders_equal_diffusers(tmp_path, settings, size):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    spec = importlib.util.spec_from_file_location("make_vae_golden", MAKER)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    model = maker.random_vae(5, **settings)
    model.save_pretrained(tmp_path)
    vae, model = load_image_vae(tmp_path, tile=None), model.double()
    random = np.random.default_rng(0)
    pixels = random.uniform(-1, 1, (2, size[0] * vae.factor, size[1] * vae.factor, 3)).astype(np.float32)
    latents = random.standard_normal((2, *size, vae.channels)).astype(np.float32)

    def theirs(x):
        return torch.from_numpy(x).double().permute(0, 3, 1, 2)

    def ours(x):
        return x.permute(0, 2, 3, 1).numpy()

    with torch.no_grad():
        posterior = model.encode(theirs(pixels)).latent_dist
        shift, scaling = settings.get("shift_factor", 0.0), model.config["scaling_factor"]
        decoded = ours(model.decode(theirs(latents) / scaling + shift).sample)
    mean, log_variance = vae.encode(pixels)
    assert relative_error(mean, ours(posterior.mean)) < 1e-5
    assert relative_error(log_variance, ours(posterior.logvar)) < 1e-5
    assert relative_error(vae.decode(latents), decoded) < 1e-5
