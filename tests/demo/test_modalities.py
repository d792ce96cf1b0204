"""Runs of several modalities on the page of `lumina demo`, without a browser."""

import pytest

from lumina_jax.demo.picture_settings import PictureSettings, restored
from lumina_jax.demo.runs import names_of_modalities
from lumina_jax.demo.uploads import settings_in
from lumina_jax.modalities.files.png import read_png_metadata
from tests.demo.conftest import drawn, new_form
from tests.demo.saved_runs import several_config


def test_what_a_run_draws_is_in_the_order_of_the_model(studio):
    run = studio.run("several")
    assert run.modalities == ["image", "video", "speech"]
    assert [run.drawing(name).modality.plural for name in run.modalities] == ["pictures", "clips", "sounds"]
    assert run.drawing(None) is run
    assert len(studio.run("pictures").modalities) == 1


def test_a_modality_that_no_source_has_is_not_offered(tmp_path):
    config = several_config(tmp_path)
    mixture = tuple(part for part in config.data.mixture if part.modality != "video")
    assert names_of_modalities(config.replace(data={"mixture": mixture})) == ["image", "speech"]


@pytest.mark.parametrize(
    ("modality", "changes", "suffixes"),
    [
        (None, {}, {".png"}),
        ("video", {"frames": 3}, {".png", ".gif", ".mp4"}),
        ("speech", {"frames": None, "seconds": "0.2"}, {".png", ".wav"}),
    ],
)
def test_each_modality_is_drawn_and_comes_back_from_its_picture(studio, modality, changes, suffixes):
    view = drawn(studio, "several", new_form(run="several", modality=modality, **changes))
    assert "done" in view.state, view.state
    assert {file.suffix for file in view.files} == suffixes
    [file] = [file for file in view.files if file.suffix == ".png"]
    assert read_png_metadata(file)["modality"] == (modality or "image")
    form, missing = restored(settings_in(file), studio.runs, [], new_form())
    assert (form.run, form.modality, missing) == ("several", modality or "image", [])
    assert form.frames == changes.get("frames", 1) or modality == "speech"


def test_a_modality_that_a_run_does_not_draw_is_refused_or_said(studio):
    with pytest.raises(ValueError, match="choose one of the modalities image, video, speech of the run several"):
        studio.run("several", "smell")
    form, missing = restored(PictureSettings(run="several", modality="smell"), studio.runs, [], new_form())
    assert form.modality == "image"
    assert missing == ["the run draws no 'smell', only image, video, speech"]
    elsewhere = PictureSettings(run="elsewhere", modality="smell")
    now = new_form(run="several", modality="video")
    form, missing = restored(elsewhere, studio.runs, [], now)
    assert form == now
    assert missing == ["it was drawn by the run 'elsewhere', which this page does not have"]


def test_another_modality_has_its_own_sizes_and_keeps_what_was_typed(studio):
    pytest.importorskip("gradio")
    from lumina_jax.demo.fields import with_modality

    settings = {**new_form().settings, "loop": True, "time_shift": 3.0}
    now = new_form(run="several", modality="video", prompt="7", guidance=2.0, frames=3, width=64, settings=settings)
    form = with_modality(studio.run("several", "image"), now)
    assert (form.modality, form.prompt, form.guidance, form.frames, form.width) == ("image", "7", 2.0, 1, 32)
    assert (form.settings["loop"], form.settings["time_shift"]) == (False, 3.0)
