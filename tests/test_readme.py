"""What README and docs tell a reader to type can be typed: programs, flags, targets, extras and files are there."""

import ast
import json
import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

import lumina_jax as lumina
from lumina_jax.__main__ import COMMANDS
from lumina_jax.commands import sample
from lumina_jax.config import SampleConfig
from lumina_jax.config_files import config_file
from lumina_jax.flags import parse_config
from tools.run_notebook import executed

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTS = ("&&", ";", "do", "nohup", "exec")
"""Words after which a command begins."""
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def commands(page, *program):
    """The words after a program, for each line of code on a page that starts it."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    code = [*inline(page), *(line for line in text.splitlines() if line.startswith("    "))]
    code += [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    for line in code:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # an apostrophe: no code
            continue
        for index in range(len(words)):
            is_start = index == 0 or words[index - 1] in STARTS or words[index - 1].endswith(";")
            if is_start and words[index : index + len(program)] == list(program):
                rest = words[index + len(program) :]
                ends = [rest.index(end) for end in (">", ";", "&&", "&", "|") if end in rest]
                yield rest[: min(ends, default=len(rest))]


def inline(page):
    """Commands between backticks in the tables of a page; `lumina train` alone names a command."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
    found = [code for line in lines for code in re.findall(r"`([^`]+)`", line)]
    return [code for code in found if len(code.split()) > 2]


def found(*program):
    return [
        pytest.param(words, id=f"{page.name} {' '.join(words)}"[:100])
        for page in PAGES
        for words in commands(page, *program)
    ]


@pytest.mark.parametrize("words", found("lumina", "train") + found("python", "-m", "lumina_jax", "train"))
def test_training_commands_have_settings_that_work(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    config, *flags = words
    if config == "CONFIG":
        config = "emoji"
    parse_config([config, *("0" if flag == "$index" else flag for flag in flags)], "")


@pytest.mark.parametrize("words", found("lumina", "sample"))
def test_sampling_commands_have_flags_that_exist(words):
    default = sample.Arguments(run=Path("."), sample=SampleConfig())
    parsed = tyro.cli(sample.Arguments, default=default, args=words)
    assert parsed.prompts or parsed.prompts_file or parsed.scenes


@pytest.mark.parametrize("words", found("lumina"))
def test_commands_of_the_package_exist(words):
    assert words[0] in COMMANDS


@pytest.mark.parametrize("words", found("lumina", "aot") + found("lumina", "data", "packing"))
def test_configurations_of_other_commands_exist(words):
    assert words[0] == "CONFIG" or config_file(words[0]).is_file()


def test_commands_are_named_in_one_way_on_every_page_and_in_every_message():
    files = [*PAGES, *(ROOT / "lumina_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]
    other = re.compile(r"python (?:train|sample)\.py|`(?:train|sample)\.py`|-m lumina_jax (?!COMMAND|train)")
    assert not {str(file): found for file in files if (found := other.findall(file.read_text()))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_scripts_and_extras_exist(page):
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {words[0] for words in commands(page, "make")} <= targets
    scripts = re.findall(r"python ((?:tools|benchmarks|configs)/\w+\.py)", page.read_text())
    assert all((ROOT / script).is_file() for script in scripts)
    for extras in re.findall(r"(?:lumina_jax|\.)\[([a-z0-9,]+)\]'", page.read_text()):
        assert set(extras.split(",")) <= EXTRAS.keys()


def test_extras_that_messages_name_exist():
    text = "".join(file.read_text() for file in [*ROOT.glob("*.py"), *(ROOT / "lumina_jax").rglob("*.py")])
    named = set(re.findall(r"lumina_jax\[([a-z0-9]+)\]", text))
    assert {"media", "sound", "views"} <= named <= EXTRAS.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_tpu_compiler_is_installed_beside_jax_by_no_extra_but_that_for_tpus():
    """There every program on CPU would look for TPUs, and print errors."""
    assert [name for name, needs in EXTRAS.items() if any("[tpu]" in need or "libtpu" in need for need in needs)] == [
        "tpu"
    ]


def test_readme_activates_the_environment_once_and_needs_its_path_nowhere():
    text = (ROOT / "README.md").read_text()
    assert "source .venv/bin/activate" in text
    assert ".venv/bin/python" not in text


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run runs/emoji, whose model has learned nothing."""
    made = tmp_path_factory.mktemp("readme")
    config = lumina.load_config("emoji").replace(
        model={"layers": 1, "heads": 2, "width": 16}, sample={"steps": 2, "solver": "euler"}
    )
    lumina.save(lumina.Trainer(config).pipeline, made / "runs" / "emoji")
    return made


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
