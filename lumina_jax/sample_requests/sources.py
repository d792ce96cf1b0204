"""The flags of `lumina sample` that name files: what is edited, and whose style samples have.

In: arguments and the shapes of the samples. Out: options of `Pipeline.drawn`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lumina_jax.modalities import Modality, Shape
    from lumina_jax.sample_requests.arguments import Arguments


def what_is_edited(
    arguments: "Arguments", modality: "Modality", shapes: "Sequence[Shape]", say: Callable[[str], None]
) -> dict[str, Any]:
    """The source, its mask, and how it is edited, for `Pipeline.drawn`.

    Args:
      say: is told what was changed about the files.

    Raises:
      ValueError: a file cannot be read or does not fit, or a mask or a strength has no source.
    """
    from lumina_jax.generation.originals import check_resampling, originals

    if arguments.source is None:
        check_resampling(arguments.sample, None)
        if given := given_edit(arguments):
            flags = " and ".join(f"--{name}".replace("_", "-") for name in given)
            raise ValueError(f"{flags} is for a source, but there is none; name its file with --source")
        return {}
    corner = None if arguments.outpaint is None else corner_of(arguments.outpaint)
    found = [modality.read_source(arguments.source, arguments.mask, shape, corner) for shape in dict.fromkeys(shapes)]
    of_shape = dict(zip(dict.fromkeys(shapes), found))
    edited: dict[str, Any] = {
        "source": [of_shape[shape].sample for shape in shapes],
        "mask": None if found[0].mask is None else [of_shape[shape].mask for shape in shapes],
        "strength": arguments.strength,
        "invert": arguments.invert,
        "normalized": arguments.normalize_source,
    }
    check_resampling(arguments.sample, originals(modality, shapes, **edited))
    for notice in dict.fromkeys(notice for one in found for notice in one.notices):
        say(notice)
    return edited


def whose_style(
    arguments: "Arguments", modality: "Modality", shapes: "Sequence[Shape]", say: Callable[[str], None]
) -> dict[str, Any]:
    """The style of the samples, for `Pipeline.drawn`.

    Args:
      say: is told what was changed about its file.

    Raises:
      ValueError: the file cannot be read, no sample has the index, or a caption or a strength is of no style.
    """
    from lumina_jax.generation.style import StyleOf, check_reference

    if arguments.style_of is None:
        if arguments.style_caption or arguments.style_strength != 1:
            raise ValueError("--style-caption and --style-strength are for a style; name its file with --style-of")
        check_reference(None, arguments.invert, arguments.sample, shapes, modality)
        return {}
    of: Any = arguments.style_of
    if of.isdecimal() and len(of) < 10:
        of = int(of)
    else:
        found = modality.read_source(Path(of), None, shapes[0], None)
        of = found.sample
        for notice in found.notices:
            say(notice)
    style = StyleOf(of, arguments.style_caption, arguments.style_strength)
    check_reference(style, arguments.invert, arguments.sample, shapes, modality)
    return {"style": style}


def given_style(arguments: "Arguments") -> dict[str, Any]:
    """The flags of a style that are given, by their names."""
    if arguments.style_of is None:
        return {}
    return {name: getattr(arguments, name) for name in ("style_of", "style_caption", "style_strength")}


def corner_of(words: str) -> tuple[int, int]:
    """Left and top, as in "16,0".

    Raises:
      ValueError: they are no two numbers.
    """
    parts = words.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() and len(part) < 10 for part in parts):
        raise ValueError(f"--outpaint must be the left and top pixel of the source, such as 16,0, but is {words!r}")
    return int(parts[0]), int(parts[1])


def given_edit(arguments: "Arguments") -> dict[str, Any]:
    """The flags of editing that are given, by their names."""
    named = {name: getattr(arguments, name) for name in ("source", "mask", "outpaint", "strength", "invert")}
    if arguments.normalize_source:
        named["normalize_source"] = True
    return {name: given for name, given in named.items() if given is not None}
