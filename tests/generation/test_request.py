"""What cannot be drawn is refused before anything is computed, with the rule and what helps."""

import dataclasses

import pytest

from lumina_jax.config import SampleConfig
from lumina_jax.encoders.phonemes import is_nearly_pitch, split_pitch
from lumina_jax.generation.request import check_request
from lumina_jax.generation.sheets import check_previews
from lumina_jax.modalities import Shape
from tests.training.tiny import config, label_config

TEXT, LABEL = config(), label_config()
SETTINGS, SHAPE, UNIT = SampleConfig(), Shape(16, 16), (8, 8)


def check(of=TEXT, prompts=("cat",), shape=SHAPE, settings=SETTINGS, **others):
    check_request(of, settings, prompts, [shape] * len(prompts), UNIT, **others)


def test_what_can_be_drawn_passes():
    check(prompts=["cat", "", "日本"])
    check(LABEL, ["47", ""])
    check(settings=SampleConfig(guided_channels=3), seed=2**64 - 1)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": ["half an emoji \ud83d"]}, "has no character at 14; write it in UTF-8"),
        ({"of": LABEL, "prompts": ["48"]}, "a label from 0 to 47, but got prompt='48'"),
        ({"of": LABEL, "prompts": ["-1"]}, "a label from 0 to 47"),
        ({"of": LABEL, "prompts": ["9" * 5000]}, "a label from 0 to 47"),
        ({"settings": SampleConfig(guided_channels=4)}, "guided_channels=4 must be between 1 and the 3 channels"),
        ({"shape": Shape(16, 20)}, "width must be a positive multiple of the 8 pixels"),
        ({"shape": Shape(0, 16)}, "height must be a positive multiple of the 8 pixels"),
        ({"shape": Shape(16, 16, 0)}, "at least one frame, but frames=0"),
        ({"shape": Shape(80_000, 80_000)}, "has 100000000 patches, but may have"),
        ({"modality": "smell"}, "modality='smell' must be one of those of the model: image"),
        ({"seed": -1}, "seed=-1 must be between 0 and"),
        ({"seed": 10**20}, "must be between 0 and"),
        ({"seeds": [1, 2]}, "a seed for each prompt, but there are 2 seeds and 1 prompts"),
        ({"seeds": [-1]}, r"seeds\[0\]=-1 must be between 0 and"),
        ({"seeds": [1], "seed": 2}, "one seed for all samples or a seed for each"),
        ({"of": LABEL, "prompts": ["3"], "settings": SampleConfig(negative="cat")}, "a label from 0 to 47"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_its_name(asked, reason):
    with pytest.raises(ValueError, match=reason):
        check(**asked)


def test_previews_of_a_run_are_checked_as_samples_are():
    check_previews(TEXT)
    check_previews(LABEL.replace(run={"sample_prompts": ("3",)}))
    with pytest.raises(ValueError, match="got prompt='cat'"):
        check_previews(LABEL.replace(run={"sample_prompts": ("3", "cat")}))
    with pytest.raises(ValueError, match="guided_channels=4"):
        check_previews(TEXT.replace(run={"sample_prompts": ("cat",)}, sample={"guided_channels": 4}))


SPEECH = dataclasses.replace(TEXT, text=dataclasses.replace(TEXT.text, encoder="phonemes"))


@pytest.mark.parametrize(
    "prompt",
    ["[180Hz] seven", "[180 hz] seven", "[ 180 Hz] seven", "(180 Hz) seven", "seven [180 Hz]", " [180 Hz] seven",
     "[180] seven", "[180,5 Hz] seven", "[0 Hz] seven", f"[{'9' * 400} Hz] seven", "[180 hertz] seven", "[1.8 kHz] a"],
)  # fmt: skip
def test_a_pitch_that_is_written_in_another_way_is_refused_and_not_spoken(prompt):
    with pytest.raises(ValueError, match=r"write a pitch as '\[180 Hz\] ' before the text"):
        check(SPEECH, [prompt])
    check(TEXT, [prompt])


@pytest.mark.parametrize("prompt", ["[180 Hz] seven", "[180.5 Hz]seven", "seven", "440 Hz is an A", "(a) b", "1 [sic]"])
def test_a_pitch_written_as_it_must_be_and_other_text_pass(prompt):
    check(SPEECH, [prompt])
    assert not is_nearly_pitch(prompt)
    assert split_pitch("[180 Hz] seven") == (180.0, "seven")
