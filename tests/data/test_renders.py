"""The user's own 3-D files: rendered into a folder that trains, as frames or as a grid, and drawn as views again."""

import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lumina_jax.commands.data import main
from lumina_jax.config import Config, DataConfig, FolderConfig, ModelConfig, RunConfig, ViewGridConfig
from lumina_jax.data import renders
from lumina_jax.data.batches import Stream, row_tokens
from lumina_jax.data.example import BadSample, Record
from lumina_jax.data.file_sources import FolderSource
from lumina_jax.data.preparation import Preparation
from lumina_jax.encoders.image_vae import load_image_vae
from lumina_jax.generation.pipeline import Pipeline
from lumina_jax.modalities import Asked, modality_of, modality_of_source
from lumina_jax.modalities.decoding.media import Clip
from lumina_jax.run import write_config
from lumina_jax.tokens import cut_views, tile_views, unit_to_pixels
from tests.data.cached_pictures import encode_pictures, in_latents
from tests.data.numbered import Lookup
from tests.data.test_objects import CUBE, middle

VAE = Path(__file__).parents[1] / "golden" / "vae_tiny"
MODEL = ModelConfig(layers=1, heads=2, width=16, patch_size=4, channels=3)
GRID = DataConfig(
    source=FolderConfig(path="none"),
    media=ViewGridConfig(frames=12, image_size=16, grid_columns=4),
    caption_dropout=0.0,
)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A cube with colored sides, and one without materials, drawn by the command; two files cannot be."""
    models = tmp_path_factory.mktemp("rendering") / "models"
    (models / "boxes").mkdir(parents=True)
    (models / "colored_cube.obj").write_text(CUBE)
    colors = {"red": "1 0 0", "green": "0 1 0", "blue": "0 0 1", "gray": "0.5 0.5 0.5"}
    (models / "cube.mtl").write_text("".join(f"newmtl {name}\nKd {rgb}\nKa {rgb}\n" for name, rgb in colors.items()))
    (models / "boxes" / "Plain-Box.obj").write_text(CUBE.replace("mtllib cube.mtl\n", ""))
    (models / "empty.stl").write_text("solid nothing\nendsolid nothing\n")
    (models / "notes.txt").write_text("no model")
    out = models.parent / "renders"
    main(["render", str(models), str(out), "--size", "32"])
    return out


def test_own_models_become_a_folder_of_views_with_their_names_as_captions(rendered):
    source = FolderSource(rendered)
    assert [source[index].caption for index in range(len(source))] == ["Plain Box", "colored cube"]
    views = [np.asarray(Image.open(file)) for file in source[1].media.files]
    assert len(views) == 12
    assert views[0].shape == (32, 32, 3)
    front = [int(np.argmax(middle(views[index]))) for index in (0, 3, 6)]
    assert front == [0, 1, 2]  # red, and a quarter on green, then blue
    plain = [np.asarray(Image.open(file)) for file in source[0].media.files]
    assert np.ptp(middle(plain[0])) < 5  # without materials all is gray
    assert (rendered / "sheet.png").is_file()


def test_a_model_that_shows_nothing_is_named_and_the_rest_goes_on_where_it_stopped(rendered, capsys, monkeypatch):
    models = rendered.parent / "models"
    drawn = []
    monkeypatch.setattr(renders, "render_views", lambda file, **_: drawn.append(file.name) or _nothing())
    main(["render", str(models), str(rendered), "--size", "32"])
    assert drawn == ["empty.stl"]  # all others are there
    output = capsys.readouterr().out
    assert "empty.stl: there is almost nothing to see" in output
    assert "2 objects are drawn" in output
    with pytest.raises(SystemExit, match="1"):
        main(["render", str(models), str(rendered), "--size", "64"])
    assert "renders of another look" in capsys.readouterr().err


def _nothing():
    return np.full((12, 32, 32, 3), 255, np.uint8)


def test_a_model_whose_reading_fails_in_any_way_is_named_and_the_rest_is_drawn(tmp_path, monkeypatch):
    def drawn(file, **_):
        if file.name == "bad.obj":
            raise KeyError("material")
        return np.zeros((2, 8, 8, 3), np.uint8)

    monkeypatch.setattr(renders, "render_views", drawn)
    os.mkfifo(tmp_path / "pipe.stl")
    names = ["bad.obj", "good.obj", f"{'long' * 100}.obj"]
    for name in names[:2]:
        (tmp_path / name).write_text(CUBE)
    models = [renders.Model(tmp_path / name, "a cube") for name in names]
    report = renders.render_models(models, tmp_path / "out", renders.Look(2, 8, 30.0))
    assert [model.file.name for model in report.rendered.values()] == ["good.obj"]
    assert sorted(Path(file).name[:4] for file in report.bad) == ["bad.", "long"]
    assert report.bad[str(tmp_path / "bad.obj")] == "it cannot be read (KeyError: 'material')"
    monkeypatch.undo()
    with pytest.raises(ValueError, match="is a pipe, a socket or a device"):
        renders.render_views(tmp_path / "pipe.stl", views=1, size=8)


def test_a_list_of_models_gives_their_captions(tmp_path):
    lines = [{"model": "a.obj", "caption": " a chair "}, {"model": "b/c.glb", "caption": "a table"}]
    (tmp_path / "models.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = renders.find_models(tmp_path / "models.jsonl")
    assert found == [(tmp_path / "a.obj", "a chair"), (tmp_path / "b" / "c.glb", "a table")]
    (tmp_path / "models.jsonl").write_text('{"model": "a.obj", "caption": ""}')
    with pytest.raises(ValueError, match="must give 'model' and 'caption' as text"):
        renders.find_models(tmp_path / "models.jsonl")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"must name 3-D files \(.obj"):
        renders.find_models(tmp_path / "none")
    with pytest.raises(ValueError, match="there is no folder"):
        renders.find_models(tmp_path / "nowhere")


# the grid


def test_twelve_views_of_256_pixels_make_a_picture_of_1024_by_768_line_by_line():
    views = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((1, 256, 256, 3), np.uint8)
    picture = tile_views(views, 4)
    assert picture.shape == (1, 768, 1024, 3)
    assert picture[0, ::256, ::256, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    np.testing.assert_array_equal(cut_views(picture, 4), views)
    with pytest.raises(ValueError, match="a multiple of 4 views, but there are 10"):
        tile_views(views[:10], 4)
    with pytest.raises(ValueError, match="must consist of squares, but is 700 x 1024"):
        cut_views(picture[:, :700], 4)


def test_the_views_of_an_object_train_as_one_picture(rendered):
    source = FolderSource(rendered)
    with Stream(source, GRID, MODEL, seed=0, features=Lookup()) as stream:
        batch = next(stream)
    assert row_tokens(GRID, MODEL) == 12 * 17  # 12 lines of 16 patches, each with its marker
    assert batch.tokens.patches.shape == (GRID.batch_rows, 12 * 17, 48)
    prepare = Preparation(modality_of_source(GRID, MODEL), MODEL, 0)
    latents = prepare((0, source[1]))[1].latents
    assert latents.shape == (1, 48, 64, 3)
    fronts = cut_views(unit_to_pixels(latents), 4)[[0, 3, 6]]
    assert [int(np.argmax(middle(view))) for view in fronts] == [0, 1, 2]
    assert modality_of(Config(model=MODEL, data=GRID)).trained_shape == (48, 64, 1)


def test_the_views_of_an_object_are_encoded_as_one_picture(rendered, tmp_path):
    model = ModelConfig(layers=1, heads=2, width=16, patch_size=1, channels=4)
    encoded = encode_pictures(FolderSource(rendered), load_image_vae(VAE), GRID, model, tmp_path)
    assert encoded[0].media.mean.shape == (1, 12, 16, 4)
    assert row_tokens(GRID, model, [in_latents(GRID, model)]) == 12 * 17


@pytest.mark.parametrize(
    ("media", "reason"),
    [
        (np.zeros((8, 16, 16, 3), np.uint8), "needs the 12 views of an object, but it has 8"),
        (np.zeros((16, 16, 3), np.uint8), "it is no object in views"),
        (Clip(Path("it.gif")), "it is no object in views"),
    ],
)
def test_what_does_not_fill_the_grid_is_refused(media, reason):
    prepare = Preparation(modality_of_source(GRID, MODEL), MODEL, 0)
    found = prepare((0, Record("it", media, "a word", None)))[1]
    assert isinstance(found, BadSample)
    assert reason in found.reason


def test_a_grid_has_full_lines_of_squares():
    with pytest.raises(ValueError, match=r"data\.grid_columns=5 must divide the data\.frames=12 views"):
        DataConfig(media=ViewGridConfig(frames=12, grid_columns=5))
    with pytest.raises(ValueError, match=r"data\.crop is a setting of"):
        GRID.replace(crop="buckets")


def test_sampling_a_grid_asks_for_views_and_cuts_them():
    config = Config(model=MODEL, data=GRID)

    def shape(**asked):
        return modality_of(config).asked_shapes(Asked(**asked), ["a chair"], config.text)[0]

    assert shape() == shape(views=12) == (48, 64, 1)
    assert shape(views=8, size=32) == (64, 128, 1)
    with pytest.raises(ValueError, match="--views 6 must be a multiple of the 4 columns"):
        shape(views=6)
    with pytest.raises(ValueError, match="use --size for the pixels of a view"):
        shape(height=32)


def test_a_drawn_grid_is_saved_as_a_turntable(tmp_path, monkeypatch):
    from lumina_jax.commands import sample

    config = Config(model=MODEL, data=GRID, run=RunConfig(root=str(tmp_path), name="grid"))
    write_config(config)
    views = np.arange(0, 240, 20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8)

    def drawn(prompts, *_, shape, **__):
        assert shape[0] == (48, 64, 1)
        return ((index, tile_views(views, 4)) for index in range(len(prompts)))

    parameters = {"final_layer": {"linear": {"kernel": jnp.zeros((1, 1))}}}
    pipeline = object.__new__(Pipeline)
    vars(pipeline).update(encoder=None, step=7, drawn=drawn, mesh=None, parameters=parameters)
    monkeypatch.setattr("lumina_jax.trained.open_run", lambda *_, **__: pipeline)
    sample.draw_samples(sample.Arguments(run=tmp_path / "grid", prompts=("a chair",), views=12, sample=config.sample))
    [folder] = (tmp_path / "grid" / "samples" / "7").iterdir()
    with Image.open(folder / "000-a-chair.gif") as gif:
        assert (gif.n_frames, gif.size) == (12, (16, 16))
        gif.seek(5)
        assert abs(int(np.asarray(gif.convert("RGB")).mean()) - 100) < 3
    assert (folder / "sheet.png").is_file()
    assert (folder / "sheet.gif").is_file()
