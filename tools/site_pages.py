"""The pages of the documentation site that are made of something else, for MkDocs, which calls the functions here.

* index.md, contributing.md and changelog.md are README.md, CONTRIBUTING.md and CHANGELOG.md;
* reference/commands.md is what every command prints for --help;
* reference/python.md and reference/settings.md list the docstrings of what users of the library see.

Links to files of the repository that are no pages become plain text.
"""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import lumina_jax
import lumina_jax.config as settings
from lumina_jax.__main__ import COMMANDS
from lumina_jax.commands import bench, scaling

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files at the top of the repository, and the pages that they are."""
EXAMPLES = {"train": ["emoji"], "aot": ["emoji"], "bench train": ["emoji"], "bench sample": ["emoji"]}
"""What stands before --help of a command whose flags depend on the configuration."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made of something else."""
    made = {page: (ROOT / file).read_text() for file, page in PAGES.items()}
    made["reference/commands.md"] = commands_page()
    made["reference/python.md"] = python_page()
    made["reference/settings.md"] = settings_page()
    for page, content in made.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """The page with its links as those of a site."""
    sources = {made: file for file, made in PAGES.items()}
    name = page.file.src_uri
    origin = ROOT / sources[name] if name in sources else ROOT / "docs" / name

    def one(match: re.Match[str]) -> str:
        mark, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        file = Path(os.path.normpath(origin.parent / target)).relative_to(ROOT).as_posix()
        linked = PAGES.get(file, file.removeprefix("docs/"))
        if files.get_file_from_path(linked) is not None:
            up = "../" * name.count("/")
            return f"{mark}[{text}]({up}{linked}{anchor})"
        if not (ROOT / file).exists():
            raise ValueError(f"{name} links to {target}, which does not exist")
        return text

    return LINK.sub(one, markdown)


def commands_page() -> str:
    """What each command prints for --help."""
    names = [name for name in COMMANDS if name not in ("bench", "scaling")]
    names += [f"bench {name}" for name in bench.COMMANDS] + [f"scaling {name}" for name in scaling.COMMANDS]
    parts = ["# Commands\n", "What each command of `lumina` prints for `--help`.\n"]
    environment = {**os.environ, "COLUMNS": "110", "JAX_PLATFORMS": "cpu", "NO_COLOR": "1"}
    started = {
        name: subprocess.Popen(
            [sys.executable, "-m", "lumina_jax", *name.split(), *EXAMPLES.get(name, []), "--help"],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
        )
        for name in names
    }  # fmt: skip
    for name, process in started.items():
        text, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"lumina {name} --help failed")
        parts.append(f"## lumina {name}\n\n```text\n{text.strip()}\n```\n")
    return "\n".join(parts)


def python_page() -> str:
    """The docstrings of the names of the package."""
    modules = {name: module for module, names in lumina_jax._MODULES.items() for name in names}
    shown = [name for name in lumina_jax.__all__ if not name.endswith("Config") and name != "Config"]
    return "# The library\n\n" + "\n".join(f"::: {modules[name]}.{name}\n" for name in shown)


def settings_page() -> str:
    """The docstrings of all sections of a configuration."""
    classes = [value for name, value in vars(settings).items() if name.endswith("Config") and isinstance(value, type)]
    sections: dict[Any, str] = {field.type: field.name for field in dataclasses.fields(settings.Config)}
    classes.sort(key=lambda one: [*sections, one].index(one))
    parts = ["# Settings\n", "`--run.steps 100` sets the field `steps` of the section `run`, a `RunConfig`.\n"]
    for one in classes:
        name = sections.get(one)
        heading = f"{name}: {one.__name__}" if name else one.__name__
        parts.append(f"::: {one.__module__}.{one.__qualname__}\n    options:\n      heading: '{heading}'\n")
    return "\n".join(parts)
