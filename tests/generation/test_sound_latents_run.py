"""Text to sound on the latents of an autoencoder: the released sizes, and a small run from training to a wav."""

from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
import yaml
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from lumina_jax.config import (
    EmojiConfig,
    FolderConfig,
    ModalityConfig,
    OtherAutoencoder,
    Part,
    PictureConfig,
    SoundConfig,
)
from lumina_jax.config_files import load_config
from lumina_jax.data.batches import Stream, row_tokens
from lumina_jax.data.example import BadSample
from lumina_jax.data.file_sources import FolderSource
from lumina_jax.data.latents import LatentSource, encode, encode_sources
from lumina_jax.data.sources import open_source
from lumina_jax.encoders.sound_vae import sound_vae
from lumina_jax.encoders.vocoder import vocoder
from lumina_jax.mel import log_mel
from lumina_jax.modalities import Shape, load_autoencoders, modalities_of_sources, modality_of, sound_latents
from lumina_jax.modalities.decoding.media import LatentDistribution
from lumina_jax.modalities.sound_latents import SoundLatents
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.training.jsonl import read_metrics
from tests.data.numbered import Lookup
from tests.encoders.sound_layout import CHANNELS, random_tensors, random_vocoder
from tests.encoders.sound_layout import VAE as SOME_VAE
from tests.encoders.sound_layout import VOCODER as SOME_VOCODER

ROOT = Path(__file__).parents[2]
RATE = 16_000
VAE = {**SOME_VAE, "ch_mult": [1, 1], "attn_layers": []}
VOCODER = {**SOME_VOCODER, "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An autoencoder, a vocoder, and sounds of 0.3, 0.3, 0.5 and 9 s and a silent one."""
    root = tmp_path_factory.mktemp("sounds")
    (root / "maa2").mkdir()
    config = {"params": {"scale_factor": 0.5, "embed_dim": CHANNELS, "ddconfig": VAE}}
    (root / "maa2" / "vae.yaml").write_text(yaml.safe_dump(config))
    save_file(random_tensors(VAE, CHANNELS), root / "maa2" / "vae.safetensors")
    (root / "voice").mkdir()
    (root / "voice" / "args.yml").write_text(yaml.safe_dump(VOCODER))
    save_file(random_vocoder(VOCODER), root / "voice" / "g.safetensors")
    noise = 0.1 * np.random.default_rng(0).standard_normal(9 * RATE).astype(np.float32)
    lengths = {"a": 0.3, "b": 0.3, "c": 0.5, "long": 9.0}
    lines = []
    for name, seconds in lengths.items():
        soundfile.write(root / f"{name}.wav", noise[: round(seconds * RATE)], RATE)
        lines.append(f'{{"audio": "{name}.wav", "caption": "{name}"}}')
    soundfile.write(root / "silent.wav", 0 * noise[: RATE // 2], RATE)
    lines.append('{"audio": "silent.wav", "caption": "nothing"}')
    (root / "captions.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """A batch of the autoencoder is filled up, here to two or three sounds."""
    monkeypatch.setattr(sound_latents, "BATCH_FRAMES", 96)


def tiny(folder):
    """configs/t2music.py with small networks."""
    config = load_config(ROOT / "configs" / "t2music.py").replace(
        model={
            "layers": 1, "heads": 2, "width": 16, "channels": CHANNELS, "text_width": 24, "mlp_multiple_of": 8,
            "compute_dtype": "float32", "remat": "none",
        },
        text={"encoder": str(ROOT / "tests" / "golden" / "t5_tiny"), "max_tokens": 9, "cache": str(folder / "text")},
        vae={"path": str(folder / "maa2"), "vocoder": str(folder / "voice"), "cache": str(folder / "latents")},
        data={"path": str(folder), "media": "sounds", "seconds": 0.6, "batch_rows": 2, "workers": 0, "prefetch": 2},
        optimizer={"warmup_steps": 1},
        sample={"steps": 2},
        run={"root": str(folder), "steps": 2, "log_every": 1, "checkpoint_every": 2},
    )  # fmt: skip
    return config


@pytest.mark.parametrize(("name", "text"), [("t2audio", 1024), ("t2music", 1024)])
def test_the_configurations_have_the_released_network(name, text):
    """Counted by hand from the authors' layer list: with 16 layers of 768 and a feed-forward of 2048."""
    config = load_config(ROOT / "configs" / f"{name}.py")
    state = nnx.to_pure_dict(abstract_model(config.model)[1])
    block = 4 * 768**2 + 2 * 1024 * 768 + 32 + 3 * 768 * 2048 + 2 * 768 + 1024 + 6 * 768 * (768 + 1)
    ends = 768 * 21 + 768 * 257 + 768 * 769 + 2 * text + 768 * (text + 1) + 2 * 768 * 769 + 20 * 769
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 16 * block + ends
    assert (config.data.media.sample_rate, config.text.max_tokens, config.text.see_padding) == (16_000, 77, True)
    sounds = SoundLatents(index=0, config=config.model.modalities[0], data=config.data, vae=config.vae, factor=2)
    assert row_tokens(config.data, config.model, [sounds]) == 312  # the released length of ten seconds


def test_sounds_are_encoded_once_with_silence_up_to_whole_lengths(folder, tmp_path):
    sounds = modality_of(tiny(folder))
    vae, source = sound_vae(folder / "maa2"), FolderSource(folder)
    encoded = encode(source, sounds.encoding(vae), tmp_path)
    assert [type(encoded[index].media if index < 3 else encoded[index]) for index in range(5)] == [
        *[LatentDistribution] * 3, BadSample, BadSample
    ]  # fmt: skip
    assert "9.00 s is longer than data.seconds=0.6" in encoded[3].reason
    assert "silent" in encoded[4].reason
    assert encoded[2].media.mean.shape == (1, 1, 16, CHANNELS)  # 31.25 frames are 32, and 2 of them a value

    samples, _ = soundfile.read(folder / "a.wav", dtype="float32")
    posterior = vae.encode(log_mel(np.pad(samples, (0, 32 * 256 - len(samples))), RATE)[None])
    np.testing.assert_allclose(encoded[0].media.mean[0, 0], 0.5 * posterior.mean[0], atol=1e-5)
    deviation = 0.5 * np.exp(np.asarray(posterior.log_variance[0]) / 2)
    np.testing.assert_allclose(encoded[0].media.deviation[0, 0], deviation, rtol=1e-4)

    def refuse(*_):
        raise AssertionError("encoded again")

    vae.encode = refuse
    again = encode(source, sounds.encoding(vae), tmp_path)
    np.testing.assert_array_equal(again[2].media.mean, encoded[2].media.mean)


def test_latents_of_sounds_fill_rows(folder, tmp_path):
    config = tiny(folder)
    sounds = modality_of(config)
    encoded = encode(FolderSource(folder), sounds.encoding(sounds.load_autoencoder(None)), tmp_path)
    with Stream(encoded, config.data, config.model, seed=0, modalities=[sounds], features=Lookup()) as stream:
        batch = next(stream)
    assert batch.tokens.patches.shape == (2, 24, CHANNELS)  # 0.6 s are 37.5 frames, filled up to 48
    assert ((batch.tokens.segment_ids > 0).sum(axis=1) == 16).all()


@pytest.mark.slow  # the mixture of latents trains and draws, too
def test_a_run_on_latents_of_sounds_trains_and_draws_wavs(folder, capsys):
    from lumina_jax.commands import sample, train

    config = tiny(folder)
    assert modality_of(config).patch_extent == (1, 2)
    assert modality_of(config).trained_shape == Shape(1, 48)
    train.run(config)
    run = folder / "t2music"
    arguments = sample.Arguments(run=run, prompts=("a", "c"), seconds=0.4, sample=config.sample)
    sample.draw_samples(arguments)
    assert "2 sounds and" in capsys.readouterr().out
    first, rate = soundfile.read(run / "samples" / "2" / "seed-0" / "000-a.wav")
    assert (len(first), rate) == (26 * 256, RATE)  # of the 25 frames that 0.4 s touch, the next pair
    assert np.std(first) > 1e-3


def test_the_vocoder_of_a_configuration_makes_its_sounds(folder):
    config = tiny(folder)
    mel = np.random.default_rng(0).uniform(-11, 1, (4, 80)).astype(np.float32)
    assert config.vae.vocoder == str(folder / "voice")
    drawn = modality_of(config).files(8.0).voice(mel, RATE)
    np.testing.assert_array_equal(drawn, vocoder(folder / "voice")(mel, RATE))
    other = config.replace(vae={"vocoder": ""})
    assert modality_of(other).files(8.0).voice(mel, RATE).shape == (1024,)
    with pytest.raises(ValueError, match="missing everything; download it first"):
        modality_of(config.replace(vae={"vocoder": "nobody/nothing"})).files(8.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"channels": 20}}, "model.channels=20 must be the 4 channels of the latents"),
        ({"vae": {"path": str(ROOT / "tests/golden/vae_tiny")}}, "of a sound autoencoder .* with the setting ddconfig"),
    ],
)
def test_an_autoencoder_that_does_not_fit_sounds_is_refused(folder, change, message):
    with pytest.raises(ValueError, match=message):
        modality_of(tiny(folder).replace(**change))


# a mixture


def mixed(folder, steps):
    """Pictures and sounds in one model, each in the latents of an autoencoder of its modality."""
    parts = (
        Part(source=EmojiConfig(emoji_names=2), media=PictureConfig(image_size=16)),
        Part(source=FolderConfig(path=str(folder)), media=SoundConfig(seconds=0.6, sample_rate=RATE), modality="sound"),
    )
    sound = OtherAutoencoder(modality="sound", path=str(folder / "maa2"), vocoder=str(folder / "voice"))
    return tiny(folder).replace(
        model={
            "modality": "image", "patch_size": 2, "channels": 4,
            "others": (ModalityConfig(name="sound", patch_size=1, channels=CHANNELS),),
        },
        vae={"path": str(ROOT / "tests/golden/vae_tiny"), "vocoder": "", "others": (sound,)},
        data={"mixture": parts, "row_tokens": 48, "samples_per_row": 4},
        run={"name": f"mixed-{steps}", "steps": steps},
    )  # fmt: skip


@pytest.mark.slow
def test_a_mixture_of_pictures_and_sounds_in_latents_trains_resumes_and_draws_both(folder, capsys):
    from lumina_jax.commands import sample, train

    train.run(mixed(folder, 4))
    said = capsys.readouterr().out
    assert "encoding pictures and sounds" in said
    begun = mixed(folder, 4).replace(run={"name": "resumed", "steps": 2})
    train.run(begun)
    train.run(begun.replace(run={"steps": 4}))
    whole, resumed = (read_metrics(folder / name) for name in ("mixed-4", "resumed"))
    assert [line["loss"] for line in whole] == [line["loss"] for line in resumed]
    assert all(np.isfinite(line[f"loss/{name}"]) for line in whole for name in ("image", "sound"))

    run = folder / "resumed"
    sample.draw_samples(sample.Arguments(run=run, prompts=("red heart",), sample=begun.sample))
    sample.draw_samples(
        sample.Arguments(run=run, prompts=("rain",), seconds=0.4, modality="sound", sample=begun.sample)
    )
    drawn = run / "samples" / "4" / "seed-0"
    with Image.open(drawn / "000-red-heart.png") as picture:
        assert picture.size == (16, 16)
        assert np.asarray(picture).std() > 1
    samples, rate = soundfile.read(drawn / "000-rain.wav")
    assert (len(samples), rate) == (26 * 256, RATE)
    assert np.std(samples) > 1e-3


def test_only_parts_whose_modality_has_an_autoencoder_become_latents(folder, tmp_path):
    config = mixed(folder, 1)
    source, modalities = open_source(config.data, config.model), modalities_of_sources(config)
    autoencoders = {"sound": sound_vae(folder / "maa2")}
    encoded = encode_sources(source, modalities, autoencoders, tmp_path)
    assert [type(part) for part in encoded.parts] == [type(source.parts[0]), LatentSource]
    assert encoded.contents == source.contents
    assert load_autoencoders(config).keys() == {"image", "sound"}
