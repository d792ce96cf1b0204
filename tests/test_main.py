"""python -m lumina_jax finds every command."""

import importlib
from pathlib import Path

import pytest

from lumina_jax import __main__ as module

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", module.COMMANDS)
def test_every_command_is_called_with_the_words_that_follow_it(monkeypatch, name):
    command, called = importlib.import_module(f"lumina_jax.commands.{name.replace('-', '_')}"), []
    monkeypatch.setattr(command, "main", lambda words: called.append(words) or 3)
    monkeypatch.setattr("sys.argv", ["lumina", name, "one", "--two"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert (called, stopped.value.code) == ([["one", "--two"]], 3)


def test_every_command_of_the_package_is_listed():
    files = [*(ROOT / "lumina_jax" / "commands").glob("[!_]*")]
    assert sorted(file.stem.replace("_", "-") for file in files) == sorted(module.COMMANDS)


def test_an_unknown_command_is_named_and_all_commands_are_listed(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lumina_jax", "trian"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "'trian' is no command" in said
    assert all(command in said for command in module.COMMANDS)
