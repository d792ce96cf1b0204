"""The wheel, installed where the repository is not: every command works from any folder.

Installing the packages that lumina_jax needs would take minutes, so the environment sees those of this interpreter.
"""

import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from lumina_jax.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
TINY = (
    *("--model.layers", "1", "--model.width", "32", "--data.emoji-names", "4", "--data.batch-rows", "4"),
    *("--run.steps", "4", "--run.log-every", "2", "--run.sample-every", "4", "--optimizer.warmup-steps", "1"),
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Calls the installed program `lumina` in a folder that holds nothing but what it has written there."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--quiet", "--wheel-dir", folder / "dist", ROOT], check=True)
    venv.create(folder / "venv", symlinks=True)
    [packages] = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    python, [wheel] = folder / "venv/bin/python", (folder / "dist").glob("*.whl")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--quiet", wheel], check=True)
    (folder / "work").mkdir()
    unset = {"PYTHONPATH", "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "LUMINA_ALLOCATOR"}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {"JAX_PLATFORMS": "cpu"}

    def call(*words, program="lumina"):
        return subprocess.run(
            [folder / "venv/bin" / program, *words], cwd=folder / "work", env=environment, capture_output=True,
            text=True, timeout=600, check=False,
        )  # fmt: skip

    call.folder = folder / "work"
    return call


@pytest.fixture(scope="module")
def run(program):
    """The folder of a run that was trained by name."""
    done = program("train", "emoji", *TINY)
    assert done.returncode == 0, done.stderr
    assert "step 4 of 4 in runs/emoji" in done.stdout
    return program.folder / "runs" / "emoji"


def test_the_package_is_that_of_the_wheel(program):
    done = program("-c", "import lumina_jax; print(lumina_jax.__file__)", program="python")
    assert Path(done.stdout.strip()).is_relative_to(program.folder.parent / "venv")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_as_it_is_called(program, command):
    words = [*{"data": ["packing"], "bench": ["kernels"], "scaling": ["plan"]}.get(command, []), "--help"]
    done = program(command, *words)
    assert done.returncode == 0, done.stderr
    assert f"usage: lumina {command}" in done.stdout


def test_the_model_in_the_package_draws_right_away(program):
    done = program("sample", "emoji", "red heart, noto style", "--steps", "1")
    assert done.returncode == 0, done.stderr
    assert (program.folder / "samples" / "emoji" / "seed-0" / "sheet.png").is_file()


def test_configurations_are_listed_and_those_of_paths_are_found(program, run):
    done = program("train", "emojis")
    assert done.returncode == 1
    assert "no configuration 'emojis'" in done.stderr
    assert "emoji, emoji_64, emoji_scaling, emoji_video, " in done.stderr
    done = program("train", "runs/emoji/config.json")
    assert done.returncode == 0, done.stderr
    assert "is complete" in done.stdout


def test_a_run_is_drawn_evaluated_and_converted(program, run):
    done = program("sample", "runs/emoji", "red heart, noto style", "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert len(list((run / "samples" / "4" / "seed-0").glob("*.png"))) == 2
    done = program("evaluate", "runs/emoji", "--limit", "2")
    assert done.returncode == 0, done.stderr
    assert "nearest to their own" in done.stdout
    done = program("convert", "runs/emoji", "theirs", "--from", "jax", "--to", "lumina")
    assert done.returncode == 0, done.stderr
    done = program("convert", "theirs", "ours", "--from", "lumina", "--to", "jax")
    assert done.returncode == 0, done.stderr
    done = program("sample", "ours", "red heart, noto style", "--steps", "2", "--config", "runs/emoji/config.json")
    assert done.returncode == 0, done.stderr


def test_data_and_recorded_cases_are_read(program, run):
    done = program("data", "packing", "emoji", "--samples", "40")
    assert done.returncode == 0, done.stderr
    assert "of which 0.00% hold no sample" in done.stdout
    done = program("parity", ROOT / "tests" / "golden" / "crops.json")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [("aot", "emoji", "--topology", "v5e:2x2"), ("bench", "kernels")])
def test_what_needs_the_compiler_of_tpus_runs_or_says_how_it_is_installed(program, words):
    done = program(*words)
    assert done.returncode == 0 or "pip install --no-deps --target" in done.stderr


def test_python_opens_the_run(program, run):
    script = "import lumina_jax as lumina; print(lumina.open_run('runs/emoji').config.run.name)"
    assert program("-c", script, program="python").stdout.strip() == "emoji"


def test_the_installed_program_starts_itself_again_with_settings_that_keep_memory(program):
    code = "import os\n\ndef get_config():\n    raise ValueError(f'arenas: {os.environ.get(\"MALLOC_ARENA_MAX\")}')\n"
    (program.folder / "mine.py").write_text(code)
    assert "arenas: 1" in program("train", "mine.py").stderr
