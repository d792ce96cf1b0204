"""Recipes: the configuration of a grid under different settings, each with a name.

In: a configuration, and words such as "next: --model.block next --flow.times uniform", or a YAML or JSON file of such
words. Out: the configurations by name. The flags are those of `lumina train`. Recipes do not change what the plan of a
grid decides: the size of the model, the batch, the learning rate, the length of a run and its seed.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from lumina_jax.config import Config
from lumina_jax.config.command_line import with_flags
from lumina_jax.config.section import require
from lumina_jax.documents import read_yaml
from lumina_jax.scaling.sizes import FIELDS

PLANNED = {"model": FIELDS, "data": ("batch_rows",), "run": ("root", "name", "steps", "seed")}
"""Fields that the plan of a grid decides, by section."""
PLAIN = ""
"""The flags of a recipe that is the configuration as it is."""


def parse_recipe(words: str) -> tuple[str, str]:
    """The name and the flags of "NAME: FLAGS", or of a name alone, whose recipe is the configuration as it is.

    Raises:
      ValueError: the name has other characters than letters, digits, ".", "_" and "-".
    """
    name, _, flags = words.partition(":")
    name = name.strip()
    require(
        re.fullmatch(r"[\w.-]+", name, re.ASCII) is not None and not name.startswith((".", "-")),
        f"a recipe is NAME or 'NAME: FLAGS', such as 'uniform: --flow.times uniform', whose name has letters, digits, "
        f"'.', '_' and '-', but got {words!r}",
    )
    return name, flags.strip()


def read_recipes(file: Path) -> dict[str, str]:
    """The flags of each recipe in a YAML or JSON file, {"NAME": "FLAGS"}; no flags: null or an empty text.

    Raises:
      ValueError: the file holds something else.
    """
    found: dict[str, str | None] = read_yaml(file, dict[str, str | None])
    return {parse_recipe(name)[0]: flags or PLAIN for name, flags in found.items()}


def recipe_configs(config: Config, recipes: Mapping[str, str]) -> dict[str, Config]:
    """The configuration under each recipe.

    Raises:
      ValueError: settings of a recipe cannot work together, or are those that the plan decides.
    """
    return {name: _under(config, name, shlex.split(flags)) for name, flags in recipes.items()}


def _under(config: Config, name: str, flags: Sequence[str]) -> Config:
    require(
        not any(word in ("-h", "--help") for word in flags),
        f"the recipe {name!r} must have flags of `lumina train` only, but has --help",
    )
    try:
        found = with_flags(config, flags, f"The recipe {name}.", f"recipe {name}:")
    except ValueError as error:
        raise ValueError(f"the recipe {name!r} cannot work: {error}") from None
    changed = [
        f"{section}.{field}"
        for section, fields in PLANNED.items()
        for field in fields
        if getattr(getattr(found, section), field) != getattr(getattr(config, section), field)
    ]
    require(
        not changed,
        f"a recipe must leave to the plan what the plan decides, but {name!r} sets {', '.join(changed)}; change the "
        "configuration, --sizes, --budgets or --seeds",
    )
    return found
