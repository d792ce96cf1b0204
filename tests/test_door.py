"""import lumina_jax as lumina: what it offers, and that importing it loads nothing."""

import ast
import importlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import lumina_jax as lumina
from tests.training.tiny import label_config

ROOT = Path(__file__).parents[1]


def test_every_name_that_is_offered_is_found_and_listed():
    assert len(lumina.__all__) <= 15
    assert set(lumina.__all__) <= set(dir(lumina))
    for name in lumina.__all__:
        assert getattr(lumina, name).__name__ == name


def test_names_are_where_type_checkers_are_told_they_are():
    tree = ast.parse((ROOT / "lumina_jax" / "__init__.py").read_text())
    told = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("lumina_jax")
        for alias in node.names
    }
    assert sorted(told) == sorted(lumina.__all__)
    for name, module in told.items():
        assert getattr(importlib.import_module(module), name) is getattr(lumina, name)


def test_a_name_that_is_not_offered_is_an_error_that_lists_those_that_are():
    with pytest.raises(AttributeError, match=r"no attribute 'Pipelin'; it offers Config, .*Pipeline"):
        lumina.Pipelin  # noqa: B018


def test_configurations_are_made_without_jax():
    code = (
        "import sys, lumina_jax as lumina\n"
        "config = lumina.load_config('emoji').replace(run={'steps': 3})\n"
        "config = lumina.Config(model=lumina.preset('5B', text_width=4096), run=lumina.RunConfig(name='mine'))\n"
        "print(sorted({'jax', 'flax', 'numpy'} & set(sys.modules)), config.model.width)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "3072"]


def test_a_run_is_trained_from_python_in_any_thread_and_continued(tmp_path, capsys):
    config = label_config(tmp_path, run={"steps": 2, "checkpoint_every": 2})
    with ThreadPoolExecutor(1) as pool:  # where Python lets nobody handle signals
        folder = pool.submit(lumina.train, config).result()
    assert folder == tmp_path / "tiny"
    assert lumina.open_run(folder).step == 2
    assert lumina.train(config) == folder
    assert "is complete: its newest checkpoint is of step 2" in capsys.readouterr().out
    assert lumina.train(config.replace(run={"steps": 3})) == folder
    assert lumina.open_run(folder).step == 3
    with pytest.raises(ValueError, match=r"a run must resume with its own seed"):
        lumina.train(config.replace(run={"seed": 1, "steps": 4}))
