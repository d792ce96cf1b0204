"""What pyproject.toml asks for is what the package imports."""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scenedetect-headless": "scenedetect",
    "vtk": "vtkmodules",
}
"""The module of a distribution, where it is not named after it."""
USED_BY_OTHERS = {"gcsfs", "importlib_resources"}
"""Modules that another library imports without asking for them: gcsfs for URLs, importlib_resources for the code of any
builder of tensorflow-datasets that lies in a package."""
OTHERS_TOOLS = {"libtpu", "pillow_heif", "tokamax"}
"""Modules that are used where someone has installed them, and nowhere asked for."""
PLATFORMS_AND_TOOLS = {"tpu", "cuda", "cuda13", "convert", "docs", "dev"}
"""Extras that bring another build of jax, or what only tests and tools of the repository import."""


def module_of(requirement):
    name = re.split(r"[<>=!\[; ]", requirement)[0].lower()
    return MODULES.get(name, name.replace("-", "_"))


def imported(folder):
    """The top-level modules that the files of a folder import from other distributions."""
    found = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").split(".")[0])
    return found - set(sys.stdlib_module_names) - {"lumina_jax", ""}


def lower(modules):
    return {module.lower() for module in modules}


def asked_for():
    extras = PROJECT["optional-dependencies"]
    features = [line for name, lines in extras.items() if name not in PLATFORMS_AND_TOOLS for line in lines]
    return {module_of(line).lower() for line in [*PROJECT["dependencies"], *features]}


def test_nothing_is_asked_for_that_the_package_does_not_import():
    assert asked_for() - lower(imported(ROOT / "lumina_jax")) - USED_BY_OTHERS == set()


def test_nothing_is_imported_that_is_not_asked_for():
    assert lower(imported(ROOT / "lumina_jax")) - asked_for() - OTHERS_TOOLS == set()


def test_an_import_inside_a_function_counts(tmp_path):
    (tmp_path / "late.py").write_text("def f():\n    import json, einops.layers\n    from orbax.checkpoint import x\n")
    assert imported(tmp_path) == {"einops", "orbax"}
