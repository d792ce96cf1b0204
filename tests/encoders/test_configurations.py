"""Configurations of encoders and autoencoders are not trusted: any value loads or is refused with file and key."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lumina_jax.encoders.image_vae import load_image_vae
from lumina_jax.encoders.sound_vae import sound_vae
from lumina_jax.encoders.text import text_encoder
from lumina_jax.encoders.vocoder import vocoder
from tests.encoders.sound_layout import CHANNELS, VAE, random_tensors
from tests.encoders.test_vocoder import tiny_folder

GOLDEN = Path(__file__).parent.parent / "golden"
TEXT = ("bert", "clip", "gemma", "llama", "t5")
VALUES = [
    None, True, False, 0, -1, 1, 2, 3, 2.0, 0.5, -0.0, "2", "", "gelu", [], [1], [2.0], ["a"], [[1]], {}, {"a": 1},
    2**20, 2**24, 2**31, 10**12, 10**30, 1e300, float("nan"), float("inf"), float("-inf"), "\ud83d", "a\0b",
]  # fmt: skip
SIZES_OF_TEXT = {
    "bert": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
             "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "model_type"),
    "llama": ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
              "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta", "bos_token_id", "eos_token_id"),
    "t5": ("d_model", "num_layers", "num_heads", "d_kv", "d_ff", "relative_attention_num_buckets",
           "relative_attention_max_distance", "layer_norm_epsilon", "feed_forward_proj"),
    "clip": ("hidden_size", "num_attention_heads", "hidden_act", "max_position_embeddings", "text_config"),
    "gemma": ("head_dim", "hidden_activation", "attention_bias", "bos_token_id"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind by name, what loads it, and its configuration."""
    root = tmp_path_factory.mktemp("folders")
    for kind in TEXT:
        shutil.copytree(GOLDEN / f"{kind}_tiny", root / kind)
    shutil.copytree(GOLDEN / "vae_tiny", root / "vae")
    (root / "sound").mkdir()
    (root / "sound" / "config.json").write_text(json.dumps({"embed_dim": CHANNELS, "ddconfig": VAE}))
    save_file(random_tensors(VAE, CHANNELS), root / "sound" / "vae.safetensors")
    tiny_folder(root / "vocoder")
    loaders = {"vae": load_image_vae, "sound": sound_vae, "vocoder": vocoder}
    loaders |= dict.fromkeys(TEXT, lambda folder: text_encoder(folder, 8))
    configs = {kind: json.loads((root / kind / "config.json").read_text()) for kind in loaders}
    return {kind: (root / kind, load, configs[kind]) for kind, load in loaders.items()}


@contextlib.contextmanager
def configured(folders, kind, change):
    """The folder of a kind with another configuration: `change` is a function of it, or its values that differ."""
    folder, _, config = folders[kind]
    copy = json.loads(json.dumps(config))
    (folder / "config.json").write_text(json.dumps(change(copy) if callable(change) else {**copy, **change}))
    try:
        yield folder
    finally:
        (folder / "config.json").write_text(json.dumps(config))


def loads_or_is_refused(folders, kind, change):
    """A ValueError, if there is one, names the file or the folder."""
    with configured(folders, kind, change) as folder:
        message = str(folder)
        try:
            folders[kind][1](folder)
        except ValueError as error:
            message = str(error)
    assert str(folder) in message or re.search(r"text encoder|network|configuration requires", message)


@given(st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_of_any_setting_loads_or_is_refused(folders, data):
    kind = data.draw(st.sampled_from(sorted(folders)))
    config = folders[kind][2]
    inner = config["ddconfig"] if kind == "sound" and data.draw(st.booleans()) else config
    more = {"shift_factor", "scale_factor", "log_base", "rope_theta", "rope_scaling", "text_config", "head_dim", "fmax"}
    keys = data.draw(st.lists(st.sampled_from(sorted({*inner, *more})), min_size=1, max_size=2))
    value = data.draw(st.sampled_from([*VALUES, "absent"]))

    def changed(copy_of_config):
        target = copy_of_config["ddconfig"] if inner is not config else copy_of_config
        for key in keys:
            target[key] = value
        return {key: one for key, one in copy_of_config.items() if one != "absent"}

    loads_or_is_refused(folders, kind, changed)


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in SIZES_OF_TEXT.items() for key in keys])
def test_no_value_of_a_size_gives_another_error_than_one_that_names_the_file(folders, kind, key):
    for value in VALUES if key != "text_config" else [[], {"a": 1}, "2", {"hidden_size": "2"}]:
        loads_or_is_refused(folders, kind, lambda config, value=value: {**config, key: value})


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("bert", {"num_hidden_layers": 2.0}, "num_hidden_layers: input should be a valid integer, but got 2.0"),
        ("bert", {"hidden_size": "24"}, "hidden_size: input should be a valid integer, but got '24'"),
        ("bert", {"hidden_size": 0}, "hidden_size: input should be greater than or equal to 1, but got 0"),
        ("bert", {"hidden_size": -24}, "hidden_size: input should be greater than or equal to 1, but got -24"),
        ("bert", {"num_hidden_layers": 10**9}, "num_hidden_layers: input should be less than or equal to 1024"),
        ("bert", {"num_attention_heads": 5}, "hidden_size=24 must be a multiple of num_attention_heads=5"),
        ("bert", {"layer_norm_eps": float("nan")}, "layer_norm_eps: input should be"),
        ("bert", {"layer_norm_eps": 0}, "layer_norm_eps: input should be greater than 0"),
        ("bert", {"model_type": ["bert"]}, r"model_type: input should be a valid string, but got \['bert'\]"),
        ("clip", {"model_type": "clip", "text_config": []}, "text_config: input should be an object"),
        ("llama", {"rope_parameters": "none"}, "rope_parameters: input should be"),
        (
            "llama",
            {"rope_parameters": {"rope_theta": "1e4"}},
            "rope_parameters.rope_theta: input should be a valid",
        ),
        ("llama", {"num_key_value_heads": 3}, "num_attention_heads=4 must be a multiple of num_key_value_heads=3"),
        ("llama", {"head_dim": 3}, "head width 3 must be even"),
        ("llama", {"bos_token_id": -1}, r"bos_token_id=-1 and .* must be in 0\.\."),
        ("llama", {"eos_token_id": True}, "must be one token each"),
        ("t5", {"relative_attention_num_buckets": 2}, "relative_attention_num_buckets=2 must be even and at least 4"),
        ("t5", {"relative_attention_max_distance": 1}, "relative_attention_max_distance=1 must exceed"),
        ("sound", {"embed_dim": "4"}, "embed_dim: input should be a valid integer, but got '4'"),
        ("sound", {"embed_dim": None}, "embed_dim: input should be a valid integer"),
        ("sound", {"ddconfig": []}, "ddconfig: input should be an object"),
        ("sound", {"ddconfig": {**VAE, "num_res_blocks": 1.0}}, "ddconfig.num_res_blocks: input should be a valid int"),
        ("sound", {"ddconfig": {**VAE, "ch_mult": "12"}}, "ddconfig.ch_mult: input should be a valid array"),
        ("sound", {"ddconfig": {**VAE, "ch_mult": []}}, "ddconfig.ch_mult: list should have at least 1 item"),
        ("sound", {"ddconfig": {**VAE, "ch": 2**40}}, "ddconfig.ch: input should be less than"),
        ("sound", {"ddconfig": {**VAE, "attn_layers": 1}}, "ddconfig.attn_layers: input should be a valid array"),
        ("vocoder", {"upsample_rates": 16}, "upsample_rates: input should be a valid array"),
        ("vocoder", {"upsample_rates": [16.0, 16]}, "upsample_rates.0: input should be a valid integer, but got 16.0"),
        ("vocoder", {"resblock_dilation_sizes": [1]}, "resblock_dilation_sizes.0: input should be a valid array"),
        ("vocoder", {"snake_logscale": "yes"}, "snake_logscale: input should be a valid boolean"),
        ("vocoder", {"sampling_rate": 0}, "sampling_rate: input should be greater"),
        ("vocoder", {"upsample_initial_channel": 6}, "upsample_initial_channel=6 must be a multiple of 4"),
        (
            "vocoder",
            {"resblock_dilation_sizes": [[1], [1]]},
            "as many resblock_dilation_sizes as resblock_kernel",
        ),
    ],
)
def test_a_wrong_value_in_a_configuration_is_reported_with_file_and_key(folders, kind, change, message):
    path = folders[kind][0] / "config.json"
    with configured(folders, kind, change) as folder, pytest.raises(ValueError, match=f"{path}.*{message}"):
        folders[kind][1](folder)


@pytest.mark.parametrize("scale", [0, 0.0, -1, "none", [], True, float("nan"), float("inf"), 1e-40, "nan", None])
def test_the_scale_of_a_sound_autoencoder_is_a_positive_number(folders, scale):
    rule = r"scale_factor must be a positive number from 1e-06 to .*config.json"
    with configured(folders, "sound", {"scale_factor": scale}) as folder, pytest.raises(ValueError, match=rule):
        folders["sound"][1](folder)


def test_a_scale_that_yaml_takes_for_text_is_read_as_a_number(folders):
    with configured(folders, "sound", {"scale_factor": "2e-1"}) as folder:
        assert folders["sound"][1](folder).config.scaling == 0.2
