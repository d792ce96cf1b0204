"""The index of a model that is stored in several files.

In: NAME.safetensors.index.json or NAME.bin.index.json, as transformers and diffusers write them. Out: the files that it
lists. An index is not trusted, so its files must be in the same folder. They may be links to another folder, as in the
cache of the Hugging Face hub.
"""

from pathlib import Path

from typing_extensions import TypedDict

from lumina_jax.documents import read_json
from lumina_jax.weights.rules import listed


class ShardIndex(TypedDict):
    weight_map: dict[str, str]


def indexed_files(index: Path) -> list[Path]:
    """Return the files that an index lists.

    Raises:
      ValueError: the file is not an index, it lists files outside of its folder, or files are missing.
    """
    names = sorted(set(read_json(index, ShardIndex)["weight_map"].values()))
    if not names:
        raise ValueError(f"{index} lists no files; copy it again")
    if outside := [name for name in names if not is_plain(name)]:
        raise ValueError(
            f"{index} may only list files in the same folder, but lists {listed(outside, most=3)}; get the checkpoint "
            "from its publisher"
        )
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise ValueError(f"{index.parent} lacks {listed(missing)}, which {index.name} lists; copy them there")
    return [index.parent / name for name in names]


def is_plain(name: str) -> bool:
    """Whether a string is a plain file name, not a path."""
    return name not in ("", ".", "..") and not any(letter in "/\\" or not letter.isprintable() for letter in name)
