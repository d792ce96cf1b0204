"""What README and docs tell a reader to type can be typed: programs, flags, targets, extras and files are there."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import tyro

from lumina_jax import __main__ as module
from lumina_jax.commands import sample
from lumina_jax.config import SampleConfig
from lumina_jax.config_files import config_file
from lumina_jax.flags import parse_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTS = ("&&", ";", "do", "nohup", "exec")
"""Words after which a command begins."""
ENDS = (">", "&&", "&", "|")
"""Words after which it is over, as it is after a word that ends in a semicolon."""
GROUPS = (["bench"], ["data"], ["scaling"])
"""Commands that have commands."""
PLACEHOLDERS = {"$name": "emoji", "LAYOUT": "jax"}
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
                ends = [at for at, word in enumerate(rest) if word in ENDS or word.endswith(";")]
                yield [word.removesuffix(";") for word in rest[: min(ends, default=len(rest)) + 1] if word not in ENDS]


def inline(page):
    """Commands between backticks in the tables of a page; `lumina train` or `lumina bench train` names a command."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
    found = [code for line in lines for code in re.findall(r"`([^`]+)`", line)]
    return [code for code in found if len(code.split()) > 2 + (code.split()[1:2] in GROUPS)]


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


class ParsedError(BaseException):
    """The words of a command were understood; nothing of it was done."""


@pytest.fixture
def parse(monkeypatch):
    """A function that reads the words after `lumina` as its command does, settings included, and stops there."""

    def stopped(original):
        def read(*arguments, **options):
            parsed = original(*arguments, **options)
            if not options.get("return_unknown_args"):  # those are settings, which are read next
                raise ParsedError
            return parsed

        return read

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("LUMINA_ALLOCATOR", "system")  # nothing starts Python again
    monkeypatch.setattr(tyro, "cli", stopped(tyro.cli))
    monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", stopped(tyro.extras.subcommand_cli_from_dict))

    def parsed(words):
        monkeypatch.setattr("sys.argv", ["lumina", *words])
        with pytest.raises(ParsedError):
            module.main()

    return parsed


@pytest.mark.parametrize("words", [one for one in found("lumina") if one.values[0][0] not in ("train", "sample")])
def test_flags_of_other_commands_exist(words, parse):
    parse([PLACEHOLDERS.get(word, word) for word in words])


def test_a_flag_that_does_not_exist_is_found(parse, capsys):
    for words in (["demo", "runs/emoji", "--hosts", "0.0.0.0"], ["bench", "train", "emoji", "--model.layer", "2"]):
        with pytest.raises(SystemExit):
            parse(words)
        assert "nrecognized" in capsys.readouterr().err, words


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
