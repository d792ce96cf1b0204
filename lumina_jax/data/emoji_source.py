"""The embedded pictures: emoji of two styles, each captioned "<name>, <style> style".

In: the arrays beside this file, or a folder of larger ones made by `tools/build_emoji.py`. Out: records, by index.
"""

import hashlib
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from lumina_jax.data.example import Record, described

STYLES = ("fluent", "noto")
EMBEDDED = Path(__file__).parent / "emoji"
EMBEDDED_SIZE = 32
HELD_OUT_EVERY = 4
"""One picture of every fourth name, so one in eight, is held out."""

Pixels = UInt8[np.ndarray, "h w 3"]


class EmojiSource:
    """The first `names` emoji that both styles draw, as (name, style) pairs.

    Split "held_out" has one pair in eight; the same name in the other style is in "train". "all" has both. Which pairs
    are held out does not depend on `names`. The label of a pair is the index of its name.

    Raises:
      ValueError: an unknown split, more names than there are, no pair in the split, or no arrays in `folder`.
    """

    def __init__(
        self,
        names: int,
        split: Literal["train", "held_out", "all"] | str,
        image_size: int = EMBEDDED_SIZE,
        *,
        folder: str | Path = EMBEDDED,
    ) -> None:
        if split not in ("train", "held_out", "all"):
            raise ValueError(f"data.split={split!r} of the emoji must be 'train', 'held_out' or 'all'")
        self._repr = f"EmojiSource({names}, {split!r}, {image_size}, folder={str(folder)!r})"
        pictures = {style: _load(Path(folder), style, image_size) for style in STYLES}
        ordered = _ordered_names(pictures)
        if names > len(ordered):
            raise ValueError(f"data.emoji_names={names}, but both styles share only {len(ordered)} names")
        self._records = [
            Record(f"{name}, {style}", pictures[style][name], f"{name}, {style} style", index)
            for index, name in enumerate(ordered[:names])
            for style in STYLES
            if split == "all" or _is_held_out(index, style) == (split == "held_out")
        ]
        if not self._records:
            raise ValueError(f"no pair is in split={split!r} of {names} names; raise data.emoji_names to 4 or more")

        self.contents = described(len(self._records), repr([record.name for record in self._records]))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]

    def __repr__(self) -> str:
        return self._repr


def held_out_pairs() -> frozenset[str]:
    """The names of the records that are held out, of all names that both embedded styles have: "red heart, noto"."""
    ordered = _ordered_names({style: _load(EMBEDDED, style, EMBEDDED_SIZE) for style in STYLES})
    return frozenset(
        f"{name}, {style}" for index, name in enumerate(ordered) for style in STYLES if _is_held_out(index, style)
    )


def first_names() -> list[str]:
    """The names that come first, from the most distinct pictures to the less distinct."""
    return (EMBEDDED / "names.txt").read_text().splitlines()


def _is_held_out(index: int, style: str) -> bool:
    group, within = divmod(index, HELD_OUT_EVERY)
    return within == HELD_OUT_EVERY - 1 and style == STYLES[group % len(STYLES)]


def _ordered_names(pictures: dict[str, dict[str, Pixels]]) -> list[str]:
    """The names of names.txt, then the other names that both styles have, in an order that is random but fixed."""
    shared = set.intersection(*(set(named) for named in pictures.values()))
    chosen = [name for name in first_names() if name in shared]
    others = {name for name in shared if "skin tone" not in name}.difference(chosen)
    return chosen + sorted(others, key=lambda name: hashlib.sha256(name.encode()).digest())


def _load(folder: Path, style: str, image_size: int) -> dict[str, Pixels]:
    found = {file.name: file for file in sorted(folder.glob(f"emoji_{style}_*.npz"))}
    name = f"emoji_{style}_{image_size}.npz" if len(found) != 1 else next(iter(found))
    if name not in found:
        raise ValueError(
            f"data.path={str(folder)!r} has no {name}; make it with "
            f"`python tools/build_emoji.py --size {image_size} --out {folder}`"
        )
    try:
        with np.load(found[name]) as arrays:
            names, pictures = arrays["names"].tolist(), arrays["X"]
        if pictures.dtype != np.uint8 or pictures.shape[0::3] != (len(names), 3):
            raise ValueError(f"{len(names)} names, but pictures {pictures.dtype} of {pictures.shape}")
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{found[name]} is not what tools/build_emoji.py makes ({error}); make it again") from error
    return dict(zip(names, pictures))
