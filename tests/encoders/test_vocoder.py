"""BigVGAN: against torch in the released layouts, its filters by scipy and by their frequencies, what it refuses."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import nnx
from safetensors.numpy import load_file, save_file

from lumina_jax.encoders.vocoder import Generator, VocoderConfig, downsample, low_pass, upsample, vocoder, vocoder_rules
from lumina_jax.weights.modules import named_parameters
from lumina_jax.weights.rules import to_theirs
from tests.encoders.sound_layout import VOCODER, random_vocoder, spectrograms

GOLDEN = Path(__file__).parents[1] / "golden/sounds/vae_and_vocoder.safetensors"
SETTINGS = {"resblock": "1", "num_mels": 80, "upsample_initial_channel": 16, "upsample_rates": [8, 8, 4]}
SETTINGS |= {"upsample_kernel_sizes": [16, 16, 8], "resblock_kernel_sizes": [3, 7]}
SETTINGS |= {"resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]], "activation": "snakebeta", "snake_logscale": True}
SETTINGS |= {"sampling_rate": 16000, "n_fft": 1024, "hop_size": 256, "win_size": 1024, "fmin": 0, "fmax": 8000}
TINY = VocoderConfig(
    bins=80,
    rate=16000,
    width=4,
    steps=((16, 16), (16, 16)),
    blocks=((3, (1,)),),
    pairs=False,
    has_beta=False,
    in_logs=False,
    last_bias=True,
    tanh=True,
    log_unit=1.0,
)
OF_TINY = {"resblock": "2", "upsample_initial_channel": 4, "upsample_rates": [16, 16], "activation": "snake"}
OF_TINY |= {"upsample_kernel_sizes": [16, 16], "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]]}
OF_TINY |= {"snake_logscale": False}


def tiny_folder(folder, *, tensors=None, file="config.json", **changes):
    """A vocoder of random numbers without weight norm, its configuration and some tensors changed."""
    folder.mkdir()
    settings = {name: v for name, v in {**SETTINGS, **OF_TINY, **changes}.items() if v != "absent"}
    (folder / file).write_text(json.dumps(settings))  # JSON is YAML
    state = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Generator(nnx.Rngs(0), TINY))))
    random = np.random.default_rng(0)
    ours = {name: 0.4 * random.standard_normal(p.shape, np.float32) for name, p in named_parameters(state).items()}
    theirs = {**to_theirs(ours, vocoder_rules(TINY), layers=1), **(tensors or {})}
    save_file({name: value for name, value in theirs.items() if value is not None}, folder / "g.safetensors")
    return folder


def test_samples_equal_what_is_recorded_of_torch(tmp_path):
    (tmp_path / "args.yml").write_text(yaml.safe_dump(VOCODER))
    save_file(random_vocoder(VOCODER), tmp_path / "g.safetensors")
    expected = load_file(GOLDEN)["samples"]
    assert 0.05 < np.std(expected) < 0.8
    assert np.abs(vocoder(tmp_path)(spectrograms()[0], 16000) - expected).max() < 1e-5


@pytest.mark.torch
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="snakebeta"),
        pytest.param({"activation": "snake"}, id="snake"),
        pytest.param({"activation": "snake", "snake_logscale": False}, id="snake-linear"),
        pytest.param({"snake_logscale": False, "resblock": "2"}, id="amp2"),
        pytest.param({"use_bias_at_final": False, "use_tanh_at_final": False}, id="nvidia-v2"),
    ],
)
def test_samples_equal_torch(tmp_path, changes):
    torch = pytest.importorskip("torch")
    from tests.encoders import torch_sound

    settings = {**SETTINGS, **changes}
    torch.manual_seed(0)
    model = torch_sound.TorchVocoder(settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight_g"):
                parameter *= 0.5 + torch.rand_like(parameter)
            elif ".act." in name:
                parameter.copy_(torch.randn_like(parameter) * 0.5 + (not settings["snake_logscale"]))
                parameter.copy_(parameter if settings["snake_logscale"] else parameter.abs() + 0.2)
        model.conv_post.weight_g *= 0.5
    decimal = "use_tanh_at_final" not in changes
    stored = dict(model.state_dict())
    taps = torch_sound.kaiser_sinc().float()[None, None]
    for name in [name for name in stored if name.endswith(".act.alpha")]:
        start = name.removesuffix("act.alpha")
        stored |= {f"{start}upsample.filter": taps, f"{start}downsample.lowpass.filter": taps}
    torch.save({"generator": stored, "steps": 9}, tmp_path / ("best_netG.pt" if decimal else "bigvgan_generator.pt"))
    torch.save({"mpd": {}}, tmp_path / "best_netD.pt")
    text = yaml.safe_dump(settings) if decimal else json.dumps(settings)
    (tmp_path / ("args.yml" if decimal else "config.json")).write_text(text)

    mel = np.random.default_rng(1).uniform(-11, 1, (5, 80)).astype(np.float32)
    with torch.no_grad():
        unit = math.log(10) if decimal else 1.0
        expected = model.double()(torch.from_numpy(mel.T[None] / unit).double())[0].numpy()
    got = vocoder(str(tmp_path))(mel, 16000)
    assert got.shape == (256 * 5,)
    assert 0.05 < np.abs(expected).max() <= 1
    assert np.mean(np.abs(expected) > 0.99) < 0.5
    error = np.abs(got - expected).max() / np.abs(expected).max()
    print(f"relative error of samples: {error:.1e}, of deviation {expected.std():.2f}")
    assert error < 1e-5


def test_the_filter_is_that_of_scipy():
    signal = pytest.importorskip("scipy.signal")
    beta = signal.kaiser_beta(signal.kaiser_atten(6, 1.2))
    np.testing.assert_allclose(low_pass(), signal.firwin(12, 0.5, window=("kaiser", beta)), atol=1e-7)


def test_twice_the_samples_and_half_of_them_keep_low_frequencies():
    """A slow wave, sampled twice as often, is the wave at the times between; and halved it is what it was."""
    times = np.arange(64)
    phases = 2 * np.pi * 0.03 * times
    even, odd = upsample(jnp.asarray(np.cos(phases), jnp.float32)[None, :, None])
    inner = slice(8, -8)
    shift = 2 * np.pi * 0.03 / 4  # samples stand a quarter before and after the old ones
    np.testing.assert_allclose(even[0, inner, 0], np.cos(phases - shift)[inner], atol=0.01)
    np.testing.assert_allclose(odd[0, inner, 0], np.cos(phases + shift)[inner], atol=0.01)
    np.testing.assert_allclose(downsample(even, odd)[0, inner, 0], np.cos(phases)[inner], atol=0.02)


def test_constants_pass_the_filters_and_the_highest_frequency_does_not():
    ones = jnp.ones((1, 20, 3))
    even, odd = upsample(ones)
    np.testing.assert_allclose(downsample(even, odd), ones, atol=1e-2)
    np.testing.assert_allclose(downsample(ones, ones), ones, atol=1e-6)  # to the very ends
    assert np.abs(downsample(ones, -ones)[:, 6:-6]).max() < 1e-2


def test_a_frame_becomes_256_samples_between_minus_one_and_one(tmp_path):
    voice = vocoder(tiny_folder(tmp_path / "v", sampling_rate="absent"))
    samples = voice(np.zeros((3, 80), np.float32), 22050)  # a configuration without a rate fits any
    assert samples.shape == (768,)
    assert samples.dtype == np.float32
    assert np.abs(samples).max() <= 1


@pytest.mark.parametrize(
    ("file", "base", "unit"), [("args.yml", None, 10), ("args.yml", "e", 1), ("config.json", 10, 10)]
)
def test_the_base_of_logarithms_is_that_of_the_layout_or_the_configuration(tmp_path, file, base, unit):
    mel = np.random.default_rng(0).uniform(-3, 1, (2, 80)).astype(np.float32)
    plain = vocoder(tiny_folder(tmp_path / "plain"))
    other = vocoder(tiny_folder(tmp_path / "other", file=file, log_base="absent" if base is None else base))
    scale = np.float32(math.log(10) if unit == 10 else 1)
    np.testing.assert_allclose(other(mel * scale, 16000), plain(mel, 16000), atol=1e-3)
    assert np.std(plain(mel, 16000)) > 0.05


def test_other_rates_and_bins_are_refused(tmp_path):
    voice = vocoder(tiny_folder(tmp_path / "v"))
    with pytest.raises(ValueError, match="must be 16000 Hz, as this vocoder needs, but is 22050 Hz; use"):
        voice(np.zeros((3, 80), np.float32), 22050)
    with pytest.raises(ValueError, match="must have 80 bins, as this vocoder needs, but have 100; compute"):
        voice(np.zeros((3, 100), np.float32), 16000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"upsample_initial_channel": "absent"},
            "config.json has wrong values: upsample_initial_channel: field required",
        ),
        ({"num_mels": 100}, "num_mels=100 must be 80"),
        ({"hop_size": 512}, "hop_size=512 must be 256"),
        ({"upsample_rates": [16, 8]}, r"upsample_rates=\[16, 8\] must have the product 256"),
        ({"n_fft": 2048, "fmax": 11025}, "n_fft=2048 must be 1024; fmax=11025 must be 8000; use another"),
        ({"sampling_rate": 24000, "fmax": None}, "fmax=None must be 8000"),
        ({"activation": "relu"}, "activation='relu' must be snake or snakebeta"),
        ({"upsample_kernel_sizes": [17, 16]}, "must exceed its rate by an even number"),
        ({"upsample_kernel_sizes": [16]}, "as many upsample_kernel_sizes as upsample_rates"),
        ({"resblock_kernel_sizes": [4]}, "resblock_kernel_sizes must be odd"),
        ({"activation": "snakebeta"}, "does not match .*/config.json: .*missing activation_post.act.beta"),
        ({"resblock": "1"}, "missing resblocks.0.activations.1"),
        ({"upsample_initial_channel": 8}, "the configuration requires"),
        ({"tensors": {"conv_pre.bias": None}}, "missing conv_pre.bias, unknown none"),
        ({"tensors": {"extra": np.ones(3)}}, "missing none, unknown extra"),
        ({"tensors": {"conv_post.weight_v": np.ones((1, 1, 7))}}, "conv_post.weight"),
        ({"tensors": {"conv_pre.bias": np.full(4, np.nan)}}, "not finite"),
        (
            {"tensors": {"activation_post.upsample.filter": np.ones((1, 1, 12))}},
            "must be the low-pass filter of BigVGAN",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        vocoder(tiny_folder(tmp_path / "v", **changes))


def test_weight_norm_by_either_name_multiplies_directions_by_lengths(tmp_path):
    mel = np.random.default_rng(0).uniform(-1, 1, (2, 80)).astype(np.float32)
    folder = tiny_folder(tmp_path / "v")
    expected = vocoder(folder)(mel, 16000)
    plain = load_file(folder / "g.safetensors")
    for length, direction in (("weight_g", "weight_v"), *[[f"parametrizations.weight.original{i}" for i in (0, 1)]]):
        tensors = dict(plain)
        for name in [name for name in plain if name.endswith(".weight")]:
            start, kernel = name.removesuffix("weight"), tensors.pop(name)
            size = np.sqrt((kernel**2).sum(axis=(1, 2), keepdims=True))
            tensors |= {f"{start}{length}": size, f"{start}{direction}": kernel * 3}
        save_file(tensors, folder / "g.safetensors")
        np.testing.assert_allclose(vocoder(folder)(mel, 16000), expected, atol=2e-5)
        save_file({**tensors, f"conv_pre.{length}": np.ones(1, np.float32)}, folder / "g.safetensors")
        with pytest.raises(ValueError, match=r"one magnitude for each row of conv_pre.weight, but has shape \(1,\)"):
            vocoder(folder)
        del tensors[f"conv_pre.{direction}"]
        save_file(tensors, folder / "g.safetensors")
        with pytest.raises(ValueError, match=f"missing conv_pre.{direction}"):
            vocoder(folder)


def test_missing_files_are_named(tmp_path):
    folder = tiny_folder(tmp_path / "v")
    (folder / "g.safetensors").unlink()
    with pytest.raises(ValueError, match=r"must hold one checkpoint of a vocoder .* none; copy it there"):
        vocoder(folder)
    (folder / "best_netG.pt").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"best_netG.pt is not a PyTorch file"):
        vocoder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"with the setting upsample_rates, but holds none; copy it there"):
        vocoder(folder)
