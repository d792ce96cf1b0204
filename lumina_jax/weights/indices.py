"""Which files hold the tensors of a model that is stored in several.

In: NAME.safetensors.index.json or NAME.bin.index.json, as transformers and diffusers write them. Out: the files beside
it. An index comes from strangers, so a file that it names must lie in its folder; a link there may lead elsewhere, as
in the cache of the Hugging Face hub.
"""

from pathlib import Path

from typing_extensions import TypedDict

from lumina_jax.documents import read_json
from lumina_jax.weights.rules import listed


class Index(TypedDict):
    weight_map: dict[str, str]


def indexed_files(index: Path) -> list[Path]:
    """The files that an index names, all of which are there.

    Raises:
      ValueError: it is no index, it names files outside of its folder, or some are missing.
    """
    names = sorted(set(read_json(index, Index)["weight_map"].values()))
    if not names:
        raise ValueError(f"{index} names no file; copy it again")
    if outside := [name for name in names if not is_plain(name)]:
        raise ValueError(
            f"{index} may only name files in its own folder, but names {listed(outside, most=3)}; take the checkpoint "
            "from where it was published"
        )
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise ValueError(f"{index.parent} lacks {listed(missing)}, which {index.name} names; copy them there")
    return [index.parent / name for name in names]


def is_plain(name: str) -> bool:
    """Whether a string is the name of a file and no path."""
    return name not in ("", ".", "..") and not any(letter in "/\\" or not letter.isprintable() for letter in name)
