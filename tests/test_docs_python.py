"""Python on README and docs runs as it stands there, and so do the notebooks.

The blocks of a page run one after another, in a folder with trained runs. One that begins with "# needs ..." needs what
not everybody has, and one that begins with "# a sketch" is to be filled in by the reader; these are not run.
"""

import ast
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

import lumina_jax as lumina
from lumina_jax.config import ClipConfig
from tests.test_readme import PAGES, ROOT
from tools.run_notebook import executed

LEFT_OUT = ("# needs ", "# a sketch")
ELSEWHERE = ("README.md", "add-a-modality.md")
"""Pages whose blocks other tests run, here and in tests/modalities/test_add_a_modality.py."""
SHORTENED = {
    "checkpoints.md": {"/absolute/path/runs/emoji/checkpoints/1500": "{folder}/runs/emoji/checkpoints/0"},
    "image-vae.md": {"stabilityai/sdxl-vae": f"{ROOT}/tests/golden/vae_tiny"},
    "python.md": {"folder = lumina.train(": "config = small\nfolder = lumina.train("},
    "scenes.md": {"Shape(256, 256,": "Shape(32, 32,"},
}
"""What is replaced in the blocks of a page, so that they are done in seconds."""


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run runs/emoji, whose model has learned nothing."""
    made = tmp_path_factory.mktemp("readme")
    lumina.save(lumina.Trainer(small_config()).pipeline, made / "runs" / "emoji")
    return made


@pytest.fixture(scope="module")
def clips(folder):
    """The same folder with a run runs/clips, too."""
    config = small_config().replace(model={"nextframe": True})
    config = config.replace(data=config.data.replace(media=ClipConfig(frames=4, image_size=32)))
    lumina.save(lumina.Trainer(config).pipeline, folder / "runs" / "clips")
    return folder


def small_config():
    """That of emoji with a tiny model, for a run of two steps."""
    return lumina.load_config("emoji").replace(
        model={"layers": 1, "heads": 2, "width": 16},
        data={"batch_rows": 2},
        optimizer={"warmup_steps": 0},
        run={"steps": 2},
        sample={"steps": 2, "solver": "euler"},
    )


@pytest.fixture
def shown(folder, monkeypatch):
    """The pictures that code shows, which runs in a folder with a trained run."""
    pictures = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(Image.Image, "show", lambda picture: pictures.append(picture))
    return pictures


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_pages_names_what_exists(page):
    for block in python_blocks(page):
        filled = re.sub(r",\s*\.\.\.", "", block)  # what is left to the reader
        for node in ast.walk(ast.parse(filled)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("lumina_jax"):
                exec(ast.unparse(node), {})
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lumina":
                assert hasattr(lumina, node.attr)


def names_of_reader(page):
    """What the text of a page says that there is: a drift, data, and imports that are named once."""
    random = np.random.default_rng(0)
    return {
        "flow-matching.md": {"drift": lambda t, x, args: args - x, "noise": np.ones((1, 4)), "weights": 0.5},
        "image-vae.md": {"pixels": random.uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)},
        "python.md": {
            "lumina": lumina,
            "small": small_config().replace(run={"name": "small"}),
            "arrays": random.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32),
            "captions": ["red heart, noto style", "pizza, noto style"],
        },
    }.get(page.name, {})


@pytest.mark.slow  # each page compiles programs of its own
@pytest.mark.parametrize(
    "page", [page for page in PAGES if python_blocks(page) and page.name not in ELSEWHERE], ids=lambda page: page.name
)
def test_blocks_of_a_page_run_in_their_order(page, shown, folder, request):
    if page.name == "scenes.md":
        request.getfixturevalue("clips")
    names = names_of_reader(page)
    for block in python_blocks(page):
        for old, new in SHORTENED.get(page.name, {}).items():
            block = block.replace(old, new.replace("{folder}", str(folder)))
        if not block.startswith(LEFT_OUT):
            exec(block, names)
    for value in names.values():
        assert not isinstance(value, np.ndarray | jax.Array) or np.isfinite(value).all()
    if "get_config" in names:
        assert names["get_config"]().run.steps > 0


def test_what_is_replaced_in_a_block_is_there():
    text = {page.name: "".join(python_blocks(page)) for page in PAGES}
    assert all(old in text[name] for name, replaced in SHORTENED.items() for old in replaced)


def test_the_first_block_of_python_draws_from_a_run(shown):
    block, _ = python_blocks(ROOT / "README.md")
    assert len(block.splitlines()) <= 10
    names = {}
    exec(block, names)
    assert [picture.size for picture in names["pictures"]] == [(32, 32)] * 2
    assert shown == names["pictures"][:1]


def test_the_second_block_of_python_trains_and_draws(shown, folder):
    names = {}
    exec(python_blocks(ROOT / "README.md")[1], names)
    assert names["trainer"].steps == 20
    assert 0 < names["loss"] < 2
    dark, light = (np.asarray(picture).mean() for picture in names["pictures"])
    assert dark < light
    assert lumina.open_run(folder / "runs" / "squares").step == 20


@pytest.mark.slow  # the blocks of README are tried every time
@pytest.mark.parametrize(
    ("name", "shortened", "pictures"),
    [
        ("quickstart", {"range(600)": "range(6)"}, 4),
        ("flow_matching", {"2_000_000": "20_000"}, 5),
        ("own_pictures", {r"\"steps\": 1500": r"\"steps\": 60"}, 3),
        ("scaling_laws", {}, 4),
    ],
)
def test_the_notebooks_run_and_show_what_is_stored_in_them(folder, name, shortened, pictures):
    (folder / "notebooks").mkdir(exist_ok=True)
    if not (folder / "docs").exists():
        (folder / "docs").symlink_to(ROOT / "docs")
    text = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
    stored = json.loads(text)
    for long, short in shortened.items():
        assert long in text
        text = text.replace(long, short)
    made = executed(json.loads(text), folder / "notebooks")
    kinds, expected = (
        [[sorted(output.get("data", ["text"])) for output in cell.get("outputs", ())] for cell in notebook["cells"]]
        for notebook in (made, stored)
    )
    assert kinds == expected
    assert sum("image/png" in kind for cell in kinds for kind in cell) == pictures
