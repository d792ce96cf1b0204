"""Emoji in up to five styles, each picture captioned "<name>, <style> style"; the vector graphics are from npm.

A thing has one name in all styles, that of Emojibase for its code points. Beside the samples lie captions of other
kinds (keywords, names in other languages) and the notices of all licences. `emoji_names.Split` decides what is held
out.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lumina_jax.data.datasets.emoji_names import (
    KEYCAP,
    Emoji,
    Split,
    has_skin_tone,
    is_private,
    normalized,
    plain,
    read_captions,
    read_names,
)
from lumina_jax.data.datasets.fluent_animated import NAMES
from lumina_jax.data.datasets.icons import drawn, load_resvg, read_code_points, read_icon_names, read_icons
from lumina_jax.data.datasets.packages import NpmPackage, fetch_npm
from lumina_jax.data.emoji_source import EMBEDDED, first_names
from lumina_jax.data.prepared import Card, PreparedFile, PreparedSample, captions_file
from lumina_jax.progress import counted


class Style(NamedTuple):
    """An icon set, and what its licence asks for."""

    package: NpmPackage
    title: str
    owner: str
    licence: str
    link: str
    is_share_alike: bool = False
    licence_file: str | None = None
    """The text of the licence, among the embedded emoji."""


STYLES = {
    "fluent": Style(
        NpmPackage(
            "@iconify-json/fluent-emoji-flat",
            "1.2.6",
            "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        ),
        "Fluent Emoji (flat)",
        "Microsoft Corporation",
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
        licence_file="LICENSE-fluent-emoji-MIT.txt",
    ),
    "noto": Style(
        NpmPackage(
            "@iconify-json/noto",
            "1.2.9",
            "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        ),
        "Noto Emoji",
        "Google LLC",
        "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji",
        licence_file="LICENSE-noto-emoji-Apache-2.0.txt",
    ),
    "twemoji": Style(
        NpmPackage(
            "@iconify-json/twemoji",
            "1.2.5",
            "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        ),
        "Twemoji",
        "Twitter, Inc and other contributors",
        "CC BY 4.0",
        "https://github.com/jdecked/twemoji",
    ),
    "emojione": Style(
        NpmPackage(
            "@iconify-json/emojione",
            "1.2.3",
            "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        ),
        "EmojiOne 2",
        "EmojiOne",
        "CC BY 4.0",
        "https://github.com/joypixels/emojione",
    ),
    "openmoji": Style(
        NpmPackage(
            "@iconify-json/openmoji",
            "1.2.29",
            "sha512-vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        ),
        "OpenMoji",
        "the OpenMoji project, HfG Schwäbisch Gmünd",
        "CC BY-SA 4.0",
        "https://openmoji.org",
        is_share_alike=True,
    ),
}
LICENCE_LINKS = {
    "CC BY 4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC BY-SA 4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
}
NOTICE = "NOTICE.md"
MEDIA = "pictures"
"""The kind of data.media."""
SETTINGS = {"size": 64, "styles": ("fluent", "noto", "twemoji", "emojione"), "skin_tones": False}
LEAST_SIZE, GREATEST_SIZE = 16, 256


class Artwork(NamedTuple):
    """A picture to be drawn."""

    emoji: Emoji
    style: str
    svg: str


def card(size: int, styles: Sequence[str], skin_tones: bool) -> Card:
    used = {style: STYLES[style] for style in styles}
    share_alike = [one.title for one in used.values() if one.is_share_alike]
    about = (
        f"Emoji in the styles {', '.join(used)}, each captioned with its name and style, on white. The split held_out "
        "has the pairs of name and style that the embedded emoji hold out, unknown has whole names in every style. "
    )
    if share_alike:
        about += (
            f"{', '.join(share_alike)} is under a share-alike licence: what is trained on it may have to be published "
            "under that licence, so use these data for studies, and train a model that you publish without this style."
        )
    else:
        about += f"A model that is trained on these pictures may be published with the credits in {NOTICE}."
    return Card(
        name="emoji",
        about=about,
        origin=", ".join(str(package) for package in [*(one.package for one in used.values()), NAMES]),
        licence=", ".join(f"{one.licence} ({style})" for style, one in used.items()) + ", MIT (names and keywords)",
        attribution=", ".join(f"{one.title} by {one.owner}" for one in used.values()) + ", names by Emojibase",
        settings={"pixels": size, "styles": ", ".join(used), "skin tones": "yes" if skin_tones else "no"},
    )


def samples(size: int, styles: Sequence[str], skin_tones: bool) -> Iterator[PreparedSample | PreparedFile]:
    """Every named picture of every style; the embedded names come first, then all in an order that is random but
    always the same. Then captions of other kinds, and notices.

    Raises:
      ValueError: the size cannot be drawn, a style is named twice, resvg-py is missing, or npm fails.
    """
    if not LEAST_SIZE <= size <= GREATEST_SIZE:
        raise ValueError(f"{size=} must be from {LEAST_SIZE} to {GREATEST_SIZE} pixels; resize larger pictures")
    if not styles or len(set(styles)) != len(styles):
        raise ValueError(f"styles={' '.join(styles)!r} must be one or more different ones of {', '.join(STYLES)}")
    load_resvg()  # before anything is downloaded
    with tempfile.TemporaryDirectory() as folder:
        emojibase = fetch_npm(NAMES, Path(folder))
        packages = {style: fetch_npm(STYLES[style].package, Path(folder)) for style in STYLES if style in styles}
        names = read_names(emojibase)
        artworks = in_order(
            artwork
            for style, package in packages.items()
            for artwork in read_artworks(package, style, names, skin_tones=skin_tones)
        )
        part = Split(names)
        with counted("drawing emoji", len(artworks)) as show:
            for index, (emoji, style, svg) in enumerate(artworks, start=1):
                yield PreparedSample(
                    f"{emoji.name}, {style}",
                    f"{emoji.name}, {style} style",
                    drawn(svg, size)[np.newaxis],
                    split=part(emoji, style),
                    subject=emoji.name,
                    group=style,
                )
                show(index)
        for kind, captions in read_captions(emojibase).items():
            yield captions_file(kind, captions)
        yield from notices(list(packages), (emojibase / "LICENSE").read_text())


def read_artworks(package: Path, style: str, names: dict[str, Emoji], *, skin_tones: bool) -> Iterator[Artwork]:
    """The pictures of a style. What Emojibase does not name has the name of its icon, if nothing else has that name and
    the code points mean the same in other sets."""
    icons, taken = dict(read_icons(package)), {emoji.name for emoji in names.values()}
    code_points_of = read_code_points(package) or named_code_points(package, names)
    for code_points, icon in sorted(code_points_of.items()):
        known, own = normalized(code_points), icon.replace("-", " ")
        if icon not in icons or (has_skin_tone(known) and not skin_tones):
            continue
        if known in names:
            yield Artwork(names[known], style, icons[icon])
        elif not (has_skin_tone(known) or is_private(known) or known == KEYCAP or own in taken):
            taken.add(own)
            yield Artwork(Emoji(own, known), style, icons[icon])


def named_code_points(package: Path, names: dict[str, Emoji]) -> dict[str, str]:
    """The icons of a set that tells no code points, by those of the emoji that has the icon's name."""
    icons = {plain(name): icon for name, icon in read_icon_names(package)}
    return {code_points: icons[emoji.name] for code_points, emoji in names.items() if emoji.name in icons}


def in_order(artworks: Iterator[Artwork]) -> list[Artwork]:
    """First the names of names.txt, then the others by a hash; all styles of a name together."""
    first = {name: index for index, name in enumerate(first_names())}
    styles = list(STYLES)

    def position(artwork: Artwork) -> tuple[int, bytes, int]:
        name = artwork.emoji.name
        return first.get(name, len(first)), hashlib.sha256(name.encode()).digest(), styles.index(artwork.style)

    return sorted(artworks, key=position)


def notices(styles: Sequence[str], emojibase_licence: str) -> Iterator[PreparedFile]:
    """What the licences of these styles, and that of the names, ask to be passed on."""
    lines = ["# Notices", "", "Vector graphics became pixels on white; nothing else was changed.", ""]
    for style in styles:
        one = STYLES[style]
        licence = f"[{one.licence}]({LICENCE_LINKS[one.licence]})" if one.licence in LICENCE_LINKS else one.licence
        text = f", see {one.licence_file}" if one.licence_file else ""
        lines.append(f"- {style}: {one.title} ({one.link}), (c) {one.owner}, licence {licence}{text}")
        if one.licence_file:
            yield PreparedFile(one.licence_file, (EMBEDDED / one.licence_file).read_text())
    lines.append("- names and keywords: Emojibase (https://emojibase.dev), licence MIT, see LICENSE-emojibase-MIT.txt")
    yield PreparedFile("LICENSE-emojibase-MIT.txt", emojibase_licence)
    yield PreparedFile(NOTICE, "\n".join(lines) + "\n")
