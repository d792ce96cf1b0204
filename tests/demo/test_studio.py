"""What the page of `lumina demo` does, without a browser."""

import dataclasses
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumina_jax.commands import sample
from lumina_jax.config import SampleConfig
from lumina_jax.demo.field_values import whole_or_none
from lumina_jax.demo.form import sized
from lumina_jax.demo.history import MOST_BROWSERS, MOST_PICTURES, History
from lumina_jax.demo.more_settings import GROUPS, LABELS
from lumina_jax.demo.picture_settings import PictureSettings, restored, settings_of
from lumina_jax.demo.queue import MOST_WAITING
from lumina_jax.demo.runs import shown_runs
from lumina_jax.demo.shown import drawn_html, state_html
from lumina_jax.demo.uploads import settings_in, sources_of, uploaded
from lumina_jax.modalities.files.png import read_png_metadata
from tests.demo.conftest import drawn, last_view, new_form


def pixels(file):
    with Image.open(file) as picture:
        return np.asarray(picture)


def test_the_page_draws_what_lumina_sample_draws(studio, run_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LUMINA_ALLOCATOR", "system")
    view = drawn(studio, "same", new_form(seed="11"))
    assert "done" in view.state
    [file] = view.files
    assert file.parent == run_folder / "samples" / "2" / "demo"
    assert sample.main([str(run_folder), "3", "--seed", "11", "--out", str(tmp_path)]) == 0
    np.testing.assert_array_equal(pixels(file), pixels(tmp_path / "000-3.png"))
    assert read_png_metadata(file) == read_png_metadata(tmp_path / "000-3.png")


def test_a_drawing_is_seen_on_its_way_and_stops_when_it_is_cancelled(studio):
    drawn(studio, "warm", new_form(steps=5000, seed="1"))
    studio.submit("slow", "browser", [new_form(steps=5000)])
    with pytest.raises(ValueError, match="this page is drawing already"):
        studio.submit("slow", "browser", [new_form()])
    [drawing] = studio._queue.of_page("slow")
    shares, previews = [], []
    while len(previews) < 3 and not drawing.is_over:
        shares.append(studio._queue.progress(drawing)[0])
        if (preview := studio._queue.preview(drawing)) is not None:
            previews.append(preview)
        time.sleep(0.02)
    studio.cancel("slow")
    began = time.monotonic()
    view = last_view(studio, "slow")
    assert "cancelled" in view.state
    assert not view.files
    assert time.monotonic() - began < 20
    assert studio._queue._follower.seen().calls < 4000, "the network was called no more"
    assert shares == sorted(shares)
    assert shares[-1] > 0
    assert previews[0].shape == (32, 32, 3)
    assert (previews[0] != previews[-1]).any()


def test_what_waits_is_told_its_place_and_can_be_cancelled(studio):
    studio.submit("first", "browser", [new_form(steps=5000)])
    studio.submit("second", "browser", [new_form()])
    studio.submit("third", "browser", [new_form()])
    [third] = studio._queue.of_page("third")
    assert studio._queue.ahead(third) == 2
    studio.cancel("second")
    assert studio._queue.ahead(third) == 1
    studio.cancel("first")
    assert "done" in last_view(studio, "third").state
    assert "cancelled" in last_view(studio, "second").state


def test_ten_users_at_once_all_get_their_own_picture(studio):
    found = {}

    def user(index):
        found[index] = drawn(studio, f"user{index}", new_form(prompt=f"{index}", seed=f"{index}"))

    threads = [threading.Thread(target=user, args=(index,)) for index in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    prompts = {index: read_png_metadata(view.files[0])["prompt"] for index, view in found.items()}
    assert prompts == {index: f"{index}" for index in range(10)}


def test_new_prompts_seeds_steps_of_training_and_strengths_compile_nothing(studio, run_folder, caplog):
    from tests.compiled import compiled

    source = run_folder / "samples" / "source.png"
    Image.new("RGB", (32, 32), "red").save(source)
    drawn(studio, "one")
    drawn(studio, "one", new_form(), source=source, strength=0.5)
    with compiled(caplog) as names:
        drawn(studio, "one", new_form(prompt="7", seed="8", step=1, guidance=2.5))
        drawn(studio, "one", new_form(prompt="8"), source=source, strength=0.8)
    assert "draw" not in names


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": 33}, "height and width|multiple of the 8 pixels"),
        ({"width": 8e9}, "patches, but may have"),
        (
            {"width": 32 * 24},
            "at most 16 times as much as a sample of training, of 32 x 32, but 768 x 32 are",
        ),
        ({"seed": "-1"}, "the seed must be a whole number"),
        ({"seed": "9" * 25}, "seed"),
        ({"steps": None}, "steps must be a number, but is empty"),
        ({"steps": 0}, "sample.steps"),
        ({"guidance": float("nan")}, "guidance must be a number"),
        ({"solver": "ddpm"}, "sample.solver='ddpm'"),
        ({"solver": "../x"}, "solver"),
        ({"also": "a sunset"}, "--also must name a caption after a colon"),
        ({"also": "-1: 5"}, "a weight must be above 0"),
        ({"settings": {"time_shift": None}}, "time shift must be a number, but is empty"),
        ({"settings": {"window_frames": 2.5}}, "window frames must be a whole number"),
        ({"settings": {"rope_factor": "wide"}}, "rope factor must be a number or empty, but is 'wide'"),
        ({"settings": {"last_step": "x"}}, "last step='x' must be one of"),
        ({"settings": {"loop": "yes"}}, "loop='yes' must be of the type bool"),
        ({"settings": {"loop": True}}, "what is drawn has one frame"),
        ({"settings": {"negative_scale": 2}}, "the scale of sample.negative, but that is empty"),
        ({"run": "../../etc"}, "choose one of the runs pictures, clips"),
        ({"modality": "speech"}, "choose one of the modalities"),
        ({"adapters": {"/etc": 1.0}}, "choose adapters among"),
        ({"prompt": "cat"}, "label from 0 to 47"),
        ({"prompt": "1" * 20_000}, "shorten it"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_one_reason(studio, changes, reason):
    with pytest.raises(ValueError, match=reason):
        drawn(studio, "refused", new_form(**changes))


def test_what_goes_wrong_while_it_is_drawn_is_said_and_the_next_one_has_its_turn(studio):
    view = drawn(studio, "wrong", new_form(step=77))
    assert 'role="alert"' in view.state
    assert "77" in view.state
    assert "done" in drawn(studio, "wrong").state


def test_settings_of_a_picture_come_back_and_what_is_missing_is_said(studio):
    view = drawn(studio, "back", new_form(seed=f"{2**63}", guidance=2.5, width=24, step=1))
    assert "done" in view.state, view.state
    settings = settings_in(view.files[0])
    form, missing = restored(settings, studio.runs, [], new_form(seed="1"))
    assert form == new_form(seed=f"{2**63}", guidance=2.5, width=24, step=1, modality="image")
    assert missing == []
    other = PictureSettings(run="elsewhere", step=9, adapter=["/secret/style:0.5"])
    form, missing = restored(other, studio.runs, [], new_form(modality="image"))
    assert form == new_form(modality="image")
    assert "'elsewhere'" in missing[0]
    assert "'style'" in missing[1]


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ('{"scenes": ["a @ 1", "b @ 1"], "scene_blend": 6}', "6"),
        ('{"scenes": ["a @ 1", "b @ 1"], "scene_blend": 0}', "0"),
        ('{"scenes": ["a @ 1", "b @ 1"]}', "0"),
        ("{}", ""),
    ],
)
def test_the_blend_of_scenes_comes_back_as_it_was_drawn_also_where_a_picture_does_not_say_it(about, words):
    assert settings_of(about, "a.png").scene_blend_words == words


def test_an_empty_field_leaves_the_blend_of_scenes_to_their_lengths():
    assert [whole_or_none("frames", value) for value in ("", None, " 0 ", "6")] == [None, None, 0, 6]
    with pytest.raises(ValueError, match="frames must be a whole number, but is"):
        whole_or_none("frames", "1.5")


def test_lengths_and_numbers_of_views_come_back(studio):
    form, _ = restored(settings_of('{"run": "sounds", "seconds": null}', "a"), studio.runs, [], new_form(seconds=2.0))
    assert form.seconds is None
    form, _ = restored(settings_of('{"run": "sounds", "seconds": 1.5}', "a"), studio.runs, [], new_form())
    assert form.seconds == 1.5
    grid = settings_of('{"run": "grids", "width": 64, "height": 96, "frames": 1}', "a")
    assert restored(grid, studio.runs, [], new_form())[0].frames == 6


def test_every_setting_of_sampling_has_a_field_and_comes_back(studio):
    """But the type of the weights, which is that of the run, and resamplings, which belong to edits."""
    fields = {*LABELS, "solver", "steps", "guidance", "negative"}
    assert {one.name for one in dataclasses.fields(SampleConfig)} - fields == {"weights", "resamplings"}
    given = {"negative_scale": 2.0, "time_shift": 3.0, "rope_factor": 1.5, "proportional_attention": False}
    form = new_form(negative="4", also=" 0.5: 6\n\n2: 7 ", settings={**new_form().settings, **given})
    typed = {**form.settings, "negative_scale": " 2 ", "rope_factor": "1.5", "guided_channels": ""}
    view = drawn(studio, "settings", form._replace(settings=typed))
    assert "done" in view.state, view.state
    about = read_png_metadata(view.files[0])
    assert about["also"] == ["0.5: 6", "2: 7"]
    assert {name: about[name] for name in given} == given
    again, missing = restored(settings_in(view.files[0]), studio.runs, [], new_form())
    assert again == form._replace(also="0.5: 6\n2: 7", modality="image")
    assert missing == []
    plain = drawn(studio, "settings").files[0]
    assert restored(settings_in(plain), studio.runs, [], form)[0] == new_form(modality="image")


def test_several_labels_are_drawn_by_a_solver_with_a_time_for_each_sample(studio):
    view = drawn(studio, "labels", new_form(solver="bosh3", also="0.5: 6"))
    assert "done" in view.state, view.state


def test_settings_matter_to_some_solvers_and_runs(studio):
    def shown(kind, solver):
        run = studio.run(kind)
        return {name for group in GROUPS for name in group.labels if group.matters(run, solver)}

    always = shown("pictures", "euler")
    assert {"rtol", "loop", "eta", "diffusion"}.isdisjoint(always)
    assert shown("pictures", "dopri5") - always == {"rtol", "atol"}
    assert shown("pictures", "sde_heun") - always == {"diffusion", "diffusion_norm", "last_step", "last_step_size"}
    assert shown("pictures", "ddim") - always == {"eta", "data_limit"}
    assert shown("clips", "euler") - always == {"loop", "window_frames"}


def test_settings_of_a_wrong_type_are_refused(studio):
    with pytest.raises(ValueError, match=r"a\.png: time shift='x' must be of the type float"):
        settings_of('{"time_shift": "x"}', "a.png")


def test_only_files_that_were_uploaded_are_read(studio, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"x")
    for path in (str(tmp_path / "secret.png"), f"{studio.uploads}/../../config.json", "/etc/passwd", "", None):
        with pytest.raises(ValueError, match=r"was not uploaded|choose a file"):
            uploaded(path, studio.uploads)


def test_names_and_prompts_are_text_in_the_page(studio, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    evil = '"><img src=x onerror=alert(1)><script>'
    for shown in (drawn_html([tmp_path / "a.png"], [evil]), state_html(evil)):
        assert "<script>" not in shown
        assert "<img src=x" not in shown


def test_a_history_is_that_of_one_browser_and_keeps_the_newest(tmp_path):
    history = History()
    files = [tmp_path / f"{index}.png" for index in range(MOST_PICTURES + 5)]
    for file in files:
        file.write_bytes(b"")
    history.add("one", files)
    history.add("one", [files[-3]])
    assert history.of("one")[:2] == [files[-3], files[-1]]
    assert len(history.of("one")) == MOST_PICTURES
    assert history.of("other") == []
    with pytest.raises(ValueError, match="no longer in the history"):
        history.chosen("one", -1)


def test_of_many_browsers_the_histories_that_changed_last_are_kept(tmp_path):
    history, file = History(), tmp_path / "a.png"
    file.write_bytes(b"")
    for index in range(MOST_BROWSERS):
        history.add(f"{index}", [file])
    history.add("0", [file])
    history.add("new", [file])
    assert (history.of("0"), history.of("1"), history.of("new")) == ([file], [], [file])


def test_too_many_drawings_that_wait_are_refused(studio):
    studio.submit("long", "browser", [new_form(steps=5000)])
    for index in range(MOST_WAITING):
        studio.submit(f"waits{index}", "browser", [new_form()])
    with pytest.raises(ValueError, match="drawings are waiting, which are too many; try again later"):
        studio.submit("last", "browser", [new_form(), new_form()])
    for page in ("long", *(f"waits{index}" for index in range(MOST_WAITING))):
        studio.cancel(page)
    assert "cancelled" in last_view(studio, "long").state


def test_aspects_keep_the_number_of_pixels_in_whole_patches(studio):
    assert sized(studio.runs[0], "1:1") == (32, 32)
    assert sized(studio.runs[0], "16:9") == (40, 24)
    assert sized(studio.runs[0], "9:16") == (24, 40)


def test_without_a_name_the_latest_run_is_taken_or_the_models_in_the_package(run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = shown_runs([])
    assert [(run.name, run.steps(), run.is_sound) for run in shipped] == [("emoji", [0], False), ("speech", [0], True)]
    assert sources_of(shipped[0]) == Path("samples/emoji/sources")
    (tmp_path / "runs").symlink_to(run_folder.parent)
    assert [run.folder.name for run in shown_runs([])] == ["sounds"]
    with pytest.raises(ValueError, match="is not the folder of a run"):
        shown_runs([str(tmp_path)])


@pytest.mark.parametrize(
    ("kind", "changes", "suffixes"),
    [
        ("clips", {"frames": 3, "frame_rate": 4}, {".png", ".gif", ".mp4"}),
        ("views", {"frames": 5}, {".png", ".gif", ".mp4"}),
        ("grids", {"frames": 4}, {".png", ".gif", ".mp4"}),
        pytest.param("sounds", {"prompt": "seven", "frames": None}, {".png", ".wav"}, marks=pytest.mark.slow),
    ],
)
def test_each_kind_of_run_has_its_fields_and_files(studio, kind, changes, suffixes):
    run = studio.run(kind)
    view = drawn(studio, kind, new_form(run=kind, **changes))
    assert "done" in view.state, view.state
    assert {file.suffix for file in view.files} == suffixes
    assert ("<audio" in view.picture) == (kind == "sounds")
    assert ("<video" in view.picture) == (kind != "sounds")
    fields = {
        "clips": {"width", "height", "video_frames"},
        "views": {"width", "height", "views"},
        "grids": {"views"},
        "sounds": {"seconds"},
    }
    assert run.fields == fields[kind]
