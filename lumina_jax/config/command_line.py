"""Command-line flags for every setting: `--section.name value`, as `--optimizer.learning-rate 1e-4`.

In: a configuration, and the words of the command line. Out: the configuration with the flags on top.

The settings of a source and of media have flags like those beside them: `--data.path`, not `--data.source.path`. The
flags `--data.source` and `--data.media` choose the kind, and with it which of those flags there are.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
from collections.abc import Sequence
from typing import Any, Literal, cast

from lumina_jax.config import Config
from lumina_jax.config.choice import Choice
from lumina_jax.config.data import CHOICES, Origin, choice_named, kept, misplaced

DATA_FLAG = re.compile(
    r"--data\.(?:mixture\.(?P<part>\d+)\.)?(?:no[-_])?(?P<name>[\w-]+)(?:=(?P<value>.*))?", re.DOTALL
)


def with_flags(default: Config, words: Sequence[str], description: str, program: str) -> Config:
    """The configuration with the flags on top; --help and bad flags exit.

    Raises:
      ValueError: the settings cannot work together, or a flag is of a kind of source or media that is not chosen.
    """
    import tyro

    data = _with_kinds(default.data, words, None)
    parts = tuple(_with_kinds(part, words, str(index)) for index, part in enumerate(default.data.mixture))
    default = _unchecked(default, data=_unchecked(data, mixture=parts))
    registry = tyro.constructors.ConstructorRegistry()
    registry.struct_rule(_flat)
    about: dict[str, Any] = {"description": description, "prog": program}
    return tyro.cli(Config, default=default, args=list(words), registry=registry, **about)


def _with_kinds(origin: Any, words: Sequence[str], part: str | None) -> Any:
    """A section of data with the kinds that its flags choose; other values are read later.

    Args:
      part: index in the mixture; None: the section itself.

    Raises:
      ValueError: a flag belongs to a kind that is not chosen, or to the section itself although it is a mixture.
    """
    given = {
        match["name"].replace("-", "_"): following if match["value"] is None else match["value"]
        for word, following in zip(words, [*words[1:], ""])
        if (match := DATA_FLAG.fullmatch(word)) and match["part"] == part
    }
    of_parts = {"source", "media", "modality", *(name for base in CHOICES.values() for name in base.every_setting())}
    if part is None and origin.mixture and (unused := sorted(of_parts & given.keys())):
        raise ValueError(
            f"data.{unused[0]} says nothing beside data.mixture, each part of which has settings of that kind; use "
            f"--data.mixture.0.{unused[0].replace('_', '-')} and so on"
        )
    chosen = {name: choice_named(name, given.get(name, getattr(origin, name).kind)) for name in CHOICES}
    known = {setting for kind in chosen.values() for setting in kind.setting_names()}
    known |= {field.name for field in dataclasses.fields(origin)}
    for name in sorted((given.keys() & of_parts) - known):
        section = "data" if part is None else f"data.mixture.{part}"
        raise ValueError(misplaced(name, {choice: kind.kind for choice, kind in chosen.items()}, section))
    groups = {name: _of_kind(getattr(origin, name), kind) for name, kind in chosen.items()}
    return _unchecked(origin, **groups)


def _of_kind(before: Choice, kind: type[Choice]) -> Choice:
    """Settings of another kind, which keep what both have; flags may still have to complete them."""
    if type(before) is kind:
        return before
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    return _unchecked(object.__new__(kind), **(defaults | kept(before, kind)))


def _unchecked(section: Any, **changed: Any) -> Any:
    """A copy with settings changed, whose rules wait until it has all flags."""
    copy = object.__new__(type(section))
    vars(copy).update(vars(section) | changed)
    return copy


def _flat(info: Any) -> Any:
    """tyro's view of a section of data: the settings of its source and media beside the others."""
    from tyro.constructors import StructConstructorSpec, StructFieldSpec

    if not (isinstance(info.type, type) and issubclass(info.type, Origin)):
        return None
    section: Any = info.type
    fields: list[Any] = []
    for field in dataclasses.fields(section):
        value: Any = getattr(info.default, field.name, field.default)
        if field.name not in CHOICES:
            fields.append(_spec(section, field, value))
            continue
        kinds = CHOICES[field.name].kinds
        said = " ".join(f"{name}: {_docstrings(kind)['kind']}" for name, kind in kinds.items())
        fields.append(StructFieldSpec(field.name, cast(Any, Literal[tuple(kinds)]), value.kind, said))
        inner = [one for one in dataclasses.fields(value) if one.name != "kind"]
        fields += [_spec(type(value), one, getattr(value, one.name)) for one in inner]
    constructor = functools.partial(_nested, section)
    constructor.__doc__ = section.__doc__
    return StructConstructorSpec(constructor, tuple(fields))


def _spec(section: Any, field: Any, value: Any) -> Any:
    """tyro's view of a field, which the text under it explains."""
    from tyro.constructors import StructFieldSpec

    return StructFieldSpec(field.name, field.type, value, _docstrings(section)[field.name])


def _nested(section: type[Origin], **flat: Any) -> Origin:
    """The section of settings that stand side by side."""
    groups: dict[str, Any] = {}
    for name in CHOICES:
        kind = choice_named(name, flat.pop(name))
        groups[name] = kind(**{setting: flat.pop(setting) for setting in kind.setting_names()})
    return section(**groups, **flat)


@functools.cache
def _docstrings(section: Any) -> dict[str, str]:
    """The text under each field of a dataclass, those of the classes that it extends included."""
    found: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        definition: Any = ast.parse(textwrap.dedent(inspect.getsource(cast(Any, cls)))).body[0]
        for field, following in itertools.pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(following, ast.Expr):
                found[ast.unparse(field.target)] = " ".join(ast.literal_eval(following.value).split())
    return found
