"""The commands that the documentation shows are commands that work."""

import re
import shlex
from pathlib import Path

import pytest
import tyro

from lumina_jax.commands.convert import Arguments
from lumina_jax.config_files import load_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "configs").glob("*.py"))]
COMMAND = re.compile(r"lumina convert ([^`#,;\n]*--to \w+[^`#,;\n]*)")
COMMANDS = [(page.name, words) for page in PAGES for words in COMMAND.findall(page.read_text())]


def test_commands_are_found():
    assert {"README.md", "converting.md", "next_dit_2b.py"} <= {page for page, _ in COMMANDS}


@pytest.mark.parametrize(("page", "words"), COMMANDS)
def test_a_shown_command_is_understood_and_its_run_can_have_its_step(page, words):
    if "LAYOUT" in words:
        return
    arguments = tyro.cli(Arguments, args=shlex.split(words))
    if arguments.step is not None:
        [configured] = [load_config(ROOT / f"configs/{arguments.source.name}.py").run]
        assert f"runs/{configured.name}" == str(arguments.source)
        last = configured.steps // configured.checkpoint_every * configured.checkpoint_every
        kept = range(last, 0, -configured.checkpoint_every)[: configured.keep_checkpoints - 1]
        assert arguments.step in kept
