"""The shape of the project itself: floors, sizes, names, and imports that do nothing."""

import ast
import collections
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lumina_jax"
FLOORS = {
    "config": 0,
    "launch": 0,
    "chips": 0,
    "libtpu": 0,
    "documents": 0,
    "failures": 0,
    "parts": 0,
    "progress": 0,
    "prompts": 0,
    "config_files": 1,
    "run": 1,
    "seeds": 1,
    "flags": 2,
    "start": 2,
    "mel": 1,
    "tokens": 1,
    "kernels": 1,
    "flow": 1,
    "parallel": 2,
    "weights": 2,
    "models": 3,
    "encoders": 3,
    "evaluation": 4,
    "modalities": 5,
    "data": 6,
    "training": 6,
    "generation": 6,
    "interop": 6,
    "parity": 7,
    "aot": 7,
    "kernel_bench": 7,
    "scaling": 7,
    "pruning": 7,
    "throughput": 7,
    "watching": 7,
    "page_access": 7,
    "sample_requests": 7,
    "demo": 7,
    "held_out": 7,
    "sheet_prompts": 7,
    "picture_sets": 7,
    "trained": 7,
    "trainer": 7,
    "training_data": 7,
    "commands": 7,
    "__main__": 7,
    "configs": 7,
}
SIDEWAYS = {("training", "generation"), ("encoders", "models"), ("flow", "tokens"), ("config", "documents")}
"""Besides downwards and within itself, what may import what."""
PLAIN = {"tokens", "kernels", "flow"}
"""Plain arrays and arguments: no modules of parameters, mesh or configuration."""
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base", "tools_common"}
LINES_OF_A_FILE, LINES_OF_AN_ALGORITHM, LINES_OF_A_FUNCTION = 350, 800, 60
ALGORITHMS = PACKAGE / "kernels" / "flash"
"""Where a file holds one algorithm, however long it is."""


def python_files():
    folders = [PACKAGE, ROOT / "tests", ROOT / "tools", ROOT / "configs", ROOT / "benchmarks"]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    return sorted(files + list(ROOT.glob("*.py")))


def section(file):
    """The name under which FLOORS knows a file."""
    parts = file.relative_to(ROOT).parts
    if parts[0] != "lumina_jax":
        return file.stem if len(parts) == 1 else parts[0]
    return parts[1].removesuffix(".py")


def imported(file):
    """Every absolute module name that a file imports, anywhere in it; `from a.b import c` counts as a.b.c."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return names


def own_sections(file):
    """The sections of this package that a file imports from; the bare package, which names only a version, is none."""
    parts = [name.split(".") for name in imported(file)]
    return {names[1] for names in parts if names[0] == "lumina_jax" and len(names) > 1} - {"__version__"}


def violations(importer, targets):
    """The sections among `targets` that `importer` may not import."""
    return sorted(
        target
        for target in targets
        if target != importer
        and (importer, target) not in SIDEWAYS
        and not FLOORS[target] < FLOORS[importer]
        and FLOORS[importer] < 7
    )


def test_every_module_of_the_package_has_a_floor():
    sections = {section(file) for file in PACKAGE.rglob("*.py")} - {"__init__"}
    assert sections <= FLOORS.keys(), f"give {sections - FLOORS.keys()} a floor in FLOORS"


def test_imports_go_only_downwards():
    wrong = {}
    for file in python_files():
        if section(file) in FLOORS and (found := violations(section(file), own_sections(file))):
            wrong[str(file.relative_to(ROOT))] = found
    assert not wrong


def test_the_rule_of_floors_catches_what_it_should():
    assert violations("models", {"tokens", "parallel", "config", "models"}) == []
    assert violations("training", {"generation", "models"}) == []
    assert violations("models", {"training"}) == ["training"]
    assert violations("generation", {"training"}) == ["training"]
    assert violations("tokens", {"flow"}) == ["flow"]
    assert violations("data", {"interop", "parity"}) == ["interop", "parity"]


def test_imports_are_absolute():
    assert not [file for file in python_files() if any(name.startswith(".") for name in imported(file))]


def test_mathematics_knows_neither_modules_nor_meshes_nor_configuration():
    forbidden = ("flax", "optax", "orbax", "jax.sharding", "lumina_jax.config")
    files = [file for file in PACKAGE.rglob("*.py") if section(file) in PLAIN]
    assert files
    found = {str(file): name for file in files for name in imported(file) if name.startswith(forbidden)}
    assert not found


def test_no_file_is_long():
    lines = {file: len(file.read_text().splitlines()) for file in python_files()}
    most = {file: LINES_OF_AN_ALGORITHM if file.parent == ALGORITHMS else LINES_OF_A_FILE for file in lines}
    assert not {str(file.relative_to(ROOT)): count for file, count in lines.items() if count > most[file]}


def test_no_function_is_long():
    long = []
    for file in python_files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LINES_OF_A_FUNCTION:
                    long.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert not long


def test_file_names_say_what_is_inside():
    paths = [file.relative_to(ROOT) for file in python_files()]
    assert not [path for path in paths if FORBIDDEN_NAMES & {part.removesuffix(".py") for part in path.parts}]


def test_no_two_public_classes_share_a_name():
    found = collections.defaultdict(list)
    for file in PACKAGE.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(file.relative_to(PACKAGE)))
    del found["Arguments"]  # of each command
    assert not {name: files for name, files in found.items() if len(files) > 1}


def test_every_module_says_what_it_is():
    files = [file for file in python_files() if file.read_text().strip()]
    assert not [str(file.relative_to(ROOT)) for file in files if not ast.get_docstring(ast.parse(file.read_text()))]


@pytest.mark.parametrize("module", ["lumina_jax", "lumina_jax.config", "lumina_jax.launch"])
def test_imports_that_must_be_instant_load_no_jax(module):
    code = (
        f"import sys, {module}; heavy = {{'jax', 'flax', 'numpy', 'pydantic'}} & set(sys.modules); print(sorted(heavy))"
    )
    run = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
