"""sample.py as a user calls it: what it refuses and when, what it leaves on disk, and its exit status."""

import json
import shutil
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image

import lumina_jax.trained
from lumina_jax.commands import sample, train
from lumina_jax.config import SampleConfig
from lumina_jax.generation import pipeline as pipeline_module
from lumina_jax.modalities.files.png import read_png_metadata
from lumina_jax.models.precision import parameter_types
from lumina_jax.sample_requests.preparation import prepared
from lumina_jax.trained import open_run, save
from tests.training.tiny import label_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    settings = label_config(tmp_path_factory.mktemp("runs"), run={"steps": 1, "checkpoint_every": 1})
    assert train.run(settings)
    return Path(settings.run.root) / "tiny"


@pytest.fixture
def draw(trained, monkeypatch, capsys):
    """Calls sample.py; gives its status and what it printed."""
    monkeypatch.setenv("LUMINA_ALLOCATOR", "system")

    def call(*words, run=trained):
        try:
            status = sample.main([*map(str, [run, *words])])
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        return status, said.out + said.err

    return call


def pixels(file):
    with Image.open(file) as image:
        return np.asarray(image)


def test_seeds_of_64_bits_draw_different_pictures_side_by_side(draw, trained):
    seeds = [0, 2**40]
    for seed in seeds:
        assert draw("3", "--seed", seed)[0] == 0
    files = [trained / "samples" / "1" / f"seed-{seed}" / "000-3.png" for seed in seeds]
    assert len({pixels(file).tobytes() for file in files}) == len(seeds)
    assert [read_png_metadata(file)["seed"] for file in files] == seeds


def test_other_settings_of_one_seed_leave_what_is_there_and_the_type_of_the_weights_is_said(draw, tmp_path):
    few, half = ["--guidance", 2, "--steps", 1], ["--size", 16, "--weights", "bfloat16"]
    for flags, weights in ((few, "float32"), (half, "bfloat16"), (few, "float32")):
        status, said = draw("3", "--out", tmp_path, *flags)
        assert status == 0
        assert f"drawing 1 captions at step 1 on 1 cpu, weights {weights}" in said
    drawn = sorted(tmp_path.glob("000-3*.png"))
    made = [read_png_metadata(file) for file in drawn]
    assert sorted((about["guidance"], about["steps"], about["height"], about["weights"]) for about in made) == [
        (2.0, 1, 32, "float32"),
        (4.0, 2, 16, "bfloat16"),
    ]


@pytest.mark.slow
def test_each_picture_of_a_set_has_the_settings_to_draw_it_again_alone(draw, tmp_path):
    """Also where a source is edited, which stays where its mask is black."""
    random = np.random.default_rng(0)
    source, mask = random.integers(0, 256, (32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
    mask[:, :16] = 255
    for name, array in (("source", source), ("mask", mask)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    edit = ["--source", tmp_path / "source.png", "--mask", tmp_path / "mask.png", "--strength", 0.9]
    status, said = draw("3", "4", "--seeds", "3,8", *edit, "--out", tmp_path / "set")
    assert status == 0, said
    about = read_png_metadata(tmp_path / "set" / "001-4.png")
    assert (about["seeds"], about["batch"], about["strength"]) == ([8], 2, 0.9)
    assert about["source"].endswith("source.png")
    one, other = pixels(tmp_path / "set" / "000-3.png"), pixels(tmp_path / "set" / "001-4.png")
    np.testing.assert_array_equal(one[:, 16:], source[:, 16:])
    assert (one[:, :16] != source[:, :16]).any()
    assert (one != other).any()
    assert draw("4", "--seeds", 8, "--batch", about["batch"], *edit, "--out", tmp_path / "one")[0] == 0
    np.testing.assert_array_equal(pixels(tmp_path / "one" / "000-4.png"), other)


@pytest.mark.slow
def test_regions_of_boxes_and_files_are_written_into_the_picture_with_all_that_draws_it_again(
    draw, tmp_path, monkeypatch
):
    latents, found = pipeline_module.Pipeline.latents, []

    def noted(*arguments, composed, **options):
        found.append(composed)
        return latents(*arguments, composed=composed, **options)

    monkeypatch.setattr(pipeline_module.Pipeline, "latents", noted)
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 20:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    regions = ["0,0,9,32: 4", f"{tmp_path / 'mask.png'}: 5"]
    flags = ["--region", regions[0], "--region", regions[1], "--region-blend", 2, "--also", "0.5: 6"]
    status, said = draw("3", *flags, "--out", tmp_path / "parts")
    assert status == 0, said
    file = tmp_path / "parts" / "000-3.png"
    about = read_png_metadata(file)
    assert (about["region"], about["region_blend"], about["also"]) == (regions, 2, ["0.5: 6"])
    again = [word for region in about["region"] for word in ("--region", region)]
    again += ["--region-blend", about["region_blend"], "--also", *about["also"], "--seed", about["seed"]]
    assert draw(about["prompt"], *again, "--out", tmp_path / "again")[0] == 0
    np.testing.assert_array_equal(pixels(tmp_path / "again" / "000-3.png"), pixels(file))
    assert found[0].captions == found[1].captions == (None, "6", "4", "5")
    np.testing.assert_array_equal(found[0].shares, found[1].shares)
    np.testing.assert_array_equal(found[0].shares[:, 5, 12], np.float32([2 / 3, 1 / 3, 0, 0]))
    np.testing.assert_array_equal(found[0].shares[3, 5, 18:22], [0, 0.25, 0.75, 1])


@pytest.mark.parametrize(
    ("scenes", "reason"),
    [
        (["4 @ 1", "5"], "--scenes must be captions with seconds behind an @"),
        (["4 @ 1", "5 @ x"], "but one is '5 @ x'"),
        (["4 @ 0.01"], "of a frame or more"),
        (["4 @ inf"], "of a frame or more"),
        (["4 @ 1", "--video-frames", 8], "--scenes say how long a clip is; leave --video-frames out"),
        (["4 @ 1", "5 @ 0.5", "--scene-blend", 5], "scene_blend=5 must be from 0 to the 4 frames"),
        (["cat @ 1"], "label from 0 to 47, but got prompt='cat'"),
    ],
)
def test_scenes_that_cannot_be_drawn_are_refused(draw, scenes, reason):
    status, said = draw("--scenes", *scenes)
    assert status == 1
    assert reason in said
    assert "bug in lumina_jax" not in said


@pytest.mark.parametrize(("given", "written"), [(None, 3), (3, 3), (0, 0), (4, 4)])
def test_the_frames_in_which_scenes_blend_are_drawn_and_written_as_a_number(trained, given, written):
    """By default three quarters of the 4 frames of the shortest scene."""
    scenes = {"scenes": ("4 @ 1", "5 @ 0.5"), "scene_blend": given}
    asked = prepared(sample.Arguments(run=trained, sample=SampleConfig(), **scenes), print)
    assert asked.parts["scene_blend"] == asked.settings(open_run(trained))["scene_blend"] == written


@pytest.mark.slow
def test_scenes_and_styles_are_written_into_the_picture(draw, tmp_path):
    flags = ["--scenes", "4 @ 0.5", "5 @ 0.25", "--scene-blend", 2, "--window-frames", 4, "--seeds", "3,4"]
    status, said = draw(*flags, "--size", 16, "--out", tmp_path / "scenes")
    assert status == 0, said
    about = read_png_metadata(tmp_path / "scenes" / "001-4.png")
    assert (about["scenes"], about["scene_blend"], about["window_frames"]) == (["4 @ 0.5", "5 @ 0.25"], 2, 4)
    assert about["seeds"] == [4]
    assert pixels(tmp_path / "scenes" / "001-4.png").shape == (16, 6 * 16 + 5 * 2, 3), "frames side by side"
    status, said = draw("3", "--out", tmp_path / "one", "--solver", "euler")
    assert status == 0, said
    picture = tmp_path / "one" / "000-3.png"
    for of in ("0", str(picture)):
        status, said = draw("3", "4", "--style-of", of, "--style-strength", 0.7, "--out", tmp_path / of[-1])
        assert status == 0, said
        about = read_png_metadata(tmp_path / of[-1] / "001-4.png")
        assert (about["style_of"], about["style_strength"]) == (of, 0.7)
    status, said = draw("4", "--source", picture, "--invert", "3", "--out", tmp_path / "inverted")
    assert status == 0, said
    assert read_png_metadata(tmp_path / "inverted" / "000-4.png")["invert"] == "3"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--seeds", "1", "--seed", 2], "--seed is for all prompts, and --seeds has one for each"),
        (["--seeds", "1,2"], "a seed for each prompt, but there are 2 seeds and 1 prompts"),
        (["--seeds", "1,x"], "--seeds must be numbers with commas between them, such as 3,8, but is '1,x'"),
        (["--strength", 0.5], "--strength is for a source, but there is none"),
        (["--source", "missing.png", "--strength", 0.5], "missing.png: there is no file"),
        (["--outpaint", "3"], "--outpaint is for a source, but there is none"),
        (["--source", "x.png", "--outpaint", "3"], "--outpaint must be the left and top pixel of the source"),
        (["--region", "cat"], '--region must name a caption after a colon, as in --region "0,0,16,32: a cat"'),
        (["--region", "0,0,16: 4"], "--region must begin with the left, top, right and bottom pixel of a box"),
        (["--region", "0,0,33,32: 4"], "0 <= left < right <= 32 and 0 <= top < bottom <= 32"),
        (["--region", "0,0,16,32: "], "regions[0] has an empty caption"),
        (["--region", "0,0,16,32: cat"], "label from 0 to 47, but got prompt='cat'"),
        (["--region", "missing.png: 4"], "missing.png: there is no file"),
        (["--region", "0,0,16,32: 4", "--region", "0,0,32,32: 5"], "nothing of regions[0] is left"),
        (["--region", "0,0,16,32: 4", "--region-blend", 99], "blend=99 must be a number of pixels from 0 to 32"),
        (["--region-blend", 2], "--region-blend 2 is for the edges of regions"),
        (["--also", "4"], '--also must name a caption after a colon, as in --also "0.5: a sunset"'),
        (["--also", "x: 4"], "--also must begin with a weight"),
        (["--also", "nan: 4"], "a weight must be above 0 and at most 1000, but also[0] has nan"),
        (["--invert", "4"], "--invert is for a source, but there is none"),
        (["--normalize-source"], "--normalize-source is for a source, but there is none"),
        (["--resamplings", 2], "sample.resamplings=2 fits what is drawn to what is kept of a source"),
        (["--resamplings", 2, "--solver", "dopri5"], "which sample.solver='dopri5' cannot"),
        (["--style-of", 1], "the style is that of sample 1, but samples have the indices 0 to 0"),
        (["--style-of", "missing.png"], "missing.png: there is no file"),
        (["--style-of", 0, "--style-strength", 2], "the strength of a style must be between 0 and 1, but is 2.0"),
        (["--style-caption", "4"], "--style-caption and --style-strength are for a style"),
        (["--scenes", "4 @ 1"], "--scenes are the captions of clips; leave out other captions"),
        (["--scene-blend", 1], "--scene-blend 1 is for the seams of scenes"),
        (["--scene-blend", 0], "--scene-blend 0 is for the seams of scenes"),
        (["--loop"], "sample.loop=True joins the ends of clips, but what is drawn has one frame"),
        (["--loop", "--window-frames", 4], "sample.loop=True turns whole clips, but sample.window_frames=4"),
        (["--negative", "cat"], "label from 0 to 47, but got prompt='cat'"),
        (["--seed", -1], "seed=-1 must be between 0 and 2**64 - 1"),
        (["--seed", 10**20], "must be between 0 and 2**64 - 1"),
        (["--size", 0], "--size 0 must be at least 1"),
        (["--height", 0], "--height 0 must be at least 1"),
        (["--size", 12], "must be a positive multiple of the 8 pixels"),
        (["--size", 10**9], "patches, but may have"),
        (["--frame-rate", "1e-9"], "frame_rate=1e-09 must be between"),
        (["--frame-rate", "nan"], "frame_rate=nan must be between"),
        (["--frame-rate", "inf"], "frame_rate=inf must be between"),
        (["--seconds", "inf"], "seconds=inf must be positive"),
        (["--guidance", "nan"], "sample.guidance=nan must be a finite number"),
        (["--guidance", "-inf"], "sample.guidance=-inf must be a finite number"),
        (["--time-shift", "inf"], "sample.time_shift=inf must be a finite number"),
        (["--guided-channels", 4], "guided_channels=4 must be between 1 and the 3 channels"),
        (["--steps", 10**9], "sample.steps=1000000000 must be between 1 and 10000"),
        (["99"], "label from 0 to 47, but got prompt='99'"),
        (["--step", 7], "step 7 must be one of the checkpoints"),
        (["--modality", "sound"], "must be one of those of the model"),
        (["--out", "gs://bucket/x"], "is a URL"),
        (["--batch", 0], "--batch 0 must be at least 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(draw, flags, reason, monkeypatch):
    monkeypatch.setattr(lumina_jax.trained, "new_pipeline", lambda *_: pytest.fail("weights were read first"))
    status, said = draw("3", *flags)
    assert status == 1
    assert reason in said
    assert "Traceback" not in said
    assert "bug in lumina_jax" not in said


def test_weights_that_do_not_fit_into_a_device_are_refused_before_they_are_read(draw, trained, monkeypatch):
    count = sum(leaf.size for leaf in jax.tree.leaves(open_run(trained).parameters))
    monkeypatch.setattr(lumina_jax.trained, "new_pipeline", lambda *_: pytest.fail("weights were read first"))
    monkeypatch.setattr(lumina_jax.trained, "device_memory", lambda: 4 * count - 1)
    status, said = draw("3")
    assert status == 1
    assert "weights must fit into the memory of a device" in said
    assert "hold them in bfloat16, int8 or nf4: sample.weights" in said
    monkeypatch.undo()


def test_a_mesh_of_more_devices_than_there_are_is_refused(draw):
    status, said = draw("3", "--mesh.fsdp", 4)
    assert status == 1
    assert "needs at least 4 devices, but this run has 1; add --mesh.fsdp 1" in said


def test_weights_are_cast_while_they_are_read_and_such_a_model_is_not_saved(trained, tmp_path):
    whole, half = open_run(trained), open_run(trained, weights="bfloat16")
    types = parameter_types(whole.config.model, "bfloat16")
    chex.assert_trees_all_equal(
        half.parameters, jax.tree.map(lambda x, dtype: x.astype(dtype), whole.parameters, types)
    )
    kernels = half.parameters["blocks"]["mlp"]["up"]["kernel"], half.parameters["time_embedding"]["inner"]["kernel"]
    assert [str(kernel.dtype) for kernel in kernels] == ["bfloat16", "float32"]
    with pytest.raises(ValueError, match=r"those of this pipeline are bfloat16; open it with weights='float32'"):
        save(half, tmp_path / "mine")


def test_a_folder_that_cannot_be_written_is_refused_before_weights_are_read(draw, tmp_path, monkeypatch):
    monkeypatch.setattr(lumina_jax.trained, "open_run", lambda *_, **__: pytest.fail("weights were read first"))
    (tmp_path / "file").write_text("")
    status, said = draw("3", "--out", tmp_path / "file" / "x")
    assert status == 1
    assert "cannot be written to" in said


def test_a_sample_that_is_not_finite_is_named_the_others_are_saved_and_the_status_is_1(draw, tmp_path, monkeypatch):
    rows = pipeline_module._finite_rows
    monkeypatch.setattr(pipeline_module, "_finite_rows", lambda values: rows(values) & (np.arange(len(values)) != 1))
    status, said = draw("3", "4", "5", "--out", tmp_path)
    assert status == 1
    assert "no sample of '4': its values are not finite" in said
    assert "2 pictures and" in said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["000-3.png", "002-5.png", "sheet.png"]


def test_ctrl_c_leaves_what_was_drawn_and_its_sheet(draw, tmp_path, monkeypatch):
    decoded = pipeline_module.Pipeline.decoded
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return decoded(*arguments)

    monkeypatch.setattr(pipeline_module.Pipeline, "decoded", interrupted)
    status, said = draw("3", "4", "--batch", 1, "--out", tmp_path)
    assert status == 130
    assert "1 of 2 are drawn" in said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["000-3.png", "sheet.png"]


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("model", "norm_eps", 1e-2), ("model", "rope_theta", 100.0), ("model", "time_scale", 2.0),
        ("flow", "prediction", "noise"), ("flow", "path", "gvp"), ("data", "image_size", 64), ("text", "max_tokens", 8),
    ],
)  # fmt: skip
def test_an_edited_configuration_is_refused_by_the_name_of_what_changed(draw, trained, tmp_path, section, name, value):
    shutil.copytree(trained, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    settings = json.loads(file.read_text())
    fields = settings["data"]["media"] if section == "data" else settings[section]
    before, fields[name] = fields[name], value
    file.write_text(json.dumps(settings))
    status, said = draw("3", run=tmp_path / "run")
    assert status == 1
    assert f"since step 1 {section}.{name} was {before!r} and is {value!r}; restore these settings in {file}" in said


def test_how_a_model_is_computed_and_where_files_lie_may_be_edited(draw, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    settings = json.loads(file.read_text())
    settings["model"]["attention"], settings["sample"]["steps"] = "reference", 1
    settings["data"]["source"]["path"] = "/moved"
    file.write_text(json.dumps(settings))
    assert draw("3", run=tmp_path / "run")[0] == 0


def test_a_damaged_configuration_is_named_with_its_key(draw, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    for change, reason in (({"model": {"layers": "two"}}, "model.layers"), ({"run": 3}, "run"), ([], "config.json")):
        settings = json.loads((trained / "config.json").read_text())
        file.write_text(json.dumps({**settings, **change} if change else change))
        status, said = draw("3", run=tmp_path / "run")
        assert status == 1
        assert str(file) in said
        assert reason in said
        assert "bug in lumina_jax" not in said
