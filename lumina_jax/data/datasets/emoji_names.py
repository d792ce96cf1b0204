"""What an emoji is called, by its code points, and which pictures are held out by that.

In: the unpacked npm package emojibase-data. Out: one name for each emoji, whatever a style calls its icon, further
captions, and the part of the data that a picture belongs to. All depends on names and code points alone, so that
adding a style, or drawing another size, moves no picture to another part.
"""

import json
import random
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lumina_jax.data.emoji_source import first_names, held_out_pairs
from lumina_jax.data.held_out import digest_of_name

UNKNOWN_SHARE = 0.06
"""Share of the families that are unknown, of those which may be; that is about one name in twenty."""
ALWAYS_KNOWN = 40
"""The first names of the embedded emoji, which are always trained on."""
TAGS, TAG_CAPTIONS = 3, 4
"""Keywords of a caption, and captions of keywords for each emoji."""
LANGUAGE = "en"
VARIATION, JOINER = "fe0f", "200d"
SKIN_TONES = frozenset({"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"})
SEXES_AND_DIRECTIONS = frozenset({"2640", "2642", "27a1"})
PERSONS = {"1f468": "1f9d1", "1f469": "1f9d1", "1f466": "1f9d2", "1f467": "1f9d2"}
"""Man and woman, boy and girl, as a person and a child of no sex."""
KEYCAP = "20e3"
"""A part of other emoji that has no meaning alone."""
GROUPS = {
    "1f46a": "1f9d1-1f9d1-1f9d2",
    "1f46b": "1f9d1-1f91d-1f9d1",
    "1f46c": "1f9d1-1f91d-1f9d1",
    "1f46d": "1f9d1-1f91d-1f9d1",
    "1f48f": "1f9d1-2764-1f48b-1f9d1",
    "1f491": "1f9d1-2764-1f9d1",
}
"""Families and couples that have code points of their own, as those persons one by one."""
SAME_FLAGS = {
    "CP": "FR", "MF": "FR", "EA": "ES", "UM": "US", "DG": "IO", "HM": "AU", "SJ": "NO", "BV": "NO", "MC": "ID",
    "TD": "RO",
}  # fmt: skip
"""Regions whose flags look like those of others."""


class Emoji(NamedTuple):
    """The name of an emoji."""

    name: str
    base: str
    """The code points of the same emoji in no skin tone."""


def read_names(emojibase: Path) -> dict[str, Emoji]:
    """The emoji of Emojibase by their code points, as `normalized` writes them."""
    return {
        normalized(entry["hexcode"]): Emoji(plain(entry["label"]), normalized(base["hexcode"]))
        for base, entry in _entries(emojibase, LANGUAGE)
    }


def read_captions(emojibase: Path) -> dict[str, dict[str, list[str]]]:
    """Captions by kind and by the name of the emoji: "tags", which are keywords, and names in other languages.

    Keywords are a few of those that Emojibase gives an emoji, in an order that is random but fixed.
    """
    english = [(base, entry, plain(entry["label"])) for base, entry in _entries(emojibase, LANGUAGE)]
    names = {entry["hexcode"]: name for _, entry, name in english}
    kinds = {"tags": {name: _tag_captions(name, base["tags"]) for base, _, name in english if base.get("tags")}}
    for folder in sorted(emojibase.glob("*/data.json")):
        language = folder.parent.name
        if language == LANGUAGE:
            continue
        kinds[language] = {
            names[entry["hexcode"]]: [entry["label"]]
            for _, entry in _entries(emojibase, language)
            if entry["hexcode"] in names and entry.get("label")
        }
    return kinds


def normalized(code_points: str) -> str:
    """Code points in lower case, without the selector of a variant, which some sets leave out."""
    return "-".join(code for code in code_points.lower().split("-") if code != VARIATION)


def plain(label: str) -> str:
    """A label as the captions have it: "flag: Côte d'Ivoire" becomes "flag cote divoire"."""
    for sign, word in (("&", " and "), ("*", "asterisk"), ("#", "pound"), ("’", ""), ("'", ""), (".", "")):
        label = label.replace(sign, word)
    ascii_only = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
    return " ".join(re.findall(r"[a-z0-9]+", ascii_only.lower()))


def has_skin_tone(code_points: str) -> bool:
    """Whether the emoji is one of the variants in different skin tones, or a tone itself."""
    return not SKIN_TONES.isdisjoint(code_points.split("-"))


def is_private(code_points: str) -> bool:
    """Whether any code point means something in one set alone, such as the logo of a company."""
    codes = [int(code, 16) for code in code_points.split("-")]
    return any(0xE000 <= code <= 0xF8FF or code >= 0xF0000 for code in codes)


def family(code_points: str) -> str:
    """What emoji have in common that differ in skin tone, in the sex of a person, or in the direction of walking, and
    flags that look alike."""
    codes = [PERSONS.get(code, code) for code in code_points.split("-")]
    common = "-".join(code for code in codes if code not in {JOINER, *SKIN_TONES, *SEXES_AND_DIRECTIONS})
    return _LIKE_OTHERS.get(common, common)


class Split:
    """The part of the data that a picture belongs to: train, held_out or unknown.

    held_out are the pairs of name and style that `EmojiSource` holds out; their names are seen in other styles. unknown
    are whole families of names in all styles, by a hash of their code points; none has a name that is held out in
    one style only, or is one of the first `ALWAYS_KNOWN` names.

    Args:
      names: all emoji by code points.
    """

    def __init__(self, names: Mapping[str, Emoji]) -> None:
        self._names, self._pairs = names, held_out_pairs()
        known = {pair.rsplit(", ", 1)[0] for pair in self._pairs} | set(first_names()[:ALWAYS_KNOWN])
        self._known = {family(code_points) for code_points, emoji in names.items() if emoji.name in known}

    def __call__(self, emoji: Emoji, style: str) -> str:
        base = self._names.get(emoji.base, emoji)
        if f"{base.name}, {style}" in self._pairs:
            return "held_out"
        shared = family(emoji.base)
        is_chosen = digest_of_name(f"unknown {shared}") < UNKNOWN_SHARE * 2.0**64
        return "unknown" if is_chosen and shared not in self._known else "train"


def _flag(region: str) -> str:
    """The code points of a flag by two letters."""
    return "-".join(f"{0x1F1E6 + ord(letter) - ord('A'):x}" for letter in region)


_LIKE_OTHERS = GROUPS | {_flag(region): _flag(other) for region, other in SAME_FLAGS.items()}


def _entries(emojibase: Path, language: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every emoji of a language, after that which it is a variant of, or itself."""
    for base in json.loads((emojibase / language / "data.json").read_text()):
        for entry in [base, *base.get("skins", [])]:
            yield base, entry


def _tag_captions(name: str, tags: list[str]) -> list[str]:
    """Different captions, each of some keywords."""
    draws = random.Random(f"tags of {name}")
    captions = (", ".join(draws.sample(tags, min(TAGS, len(tags)))) for _ in range(TAG_CAPTIONS))
    return list(dict.fromkeys(captions))
