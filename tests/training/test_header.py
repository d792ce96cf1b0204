"""The header that a run prints before its first step."""

import jax
import pytest

from lumina_jax.config import ClipConfig, Config, DataConfig, ModelConfig, Part, SoundConfig, ViewGridConfig
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training.header import header_lines, short_number
from lumina_jax.training.loop import samples_word
from lumina_jax.training.state import parameter_count
from tests.training.tiny import config


def test_the_header_names_run_model_devices_data_and_batch_in_five_lines():
    settings = config("somewhere", optimizer={"accumulate": 2})
    lines = header_lines(settings, make_mesh(devices=jax.devices()[:1]), source=range(1234), row_tokens=21)
    assert [line.split()[0] for line in lines] == ["run", "model", "devices", "data", "batch"]
    run, model, devices, data, batch = lines
    assert "somewhere/tiny, 6 steps" in run
    assert f"{short_number(parameter_count(settings.model))} parameters" in model
    assert devices.split(maxsplit=1)[1] == "1 cpu"
    assert "1,234 samples of emoji" in data
    assert "4 rows of 21 tokens: 84 tokens a step, in 2 parts one after another" in batch


@pytest.mark.parametrize(
    ("number", "text"),
    [(950, "950"), (1_706_912, "1.71M"), (13_240_000, "13.2M"), (999_900, "1000K"), (2_610_000_000, "2.61B")],
)
def test_parameters_are_counted_in_three_digits(number, text):
    assert short_number(number) == text


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({}, "pictures"),
        ({"media": ClipConfig(frames=4)}, "clips"),
        ({"media": ViewGridConfig(frames=4, grid_columns=2)}, "grids of views"),
        ({"media": SoundConfig(seconds=1.0)}, "sounds"),
        ({"mixture": (Part(), Part()), "media": SoundConfig(seconds=1.0)}, "samples"),
    ],
)
def test_speed_is_counted_in_what_the_run_learns(data, word):
    model = ModelConfig(layers=1, heads=1, width=8, patch_size=1)
    assert samples_word(Config(model=model, data=DataConfig(**data))) == word
