"""Fluent emoji that move: 187 clips of 256 px with names, from npm (MIT).

Files are animated webp named by codepoints, which emojibase gives names to. Variants in other skin tones are left out.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from lumina_jax.data.datasets.packages import NpmPackage, fetch_npm
from lumina_jax.data.prepared import Card, PreparedSample
from lumina_jax.modalities.decoding.clips import all_frames
from lumina_jax.modalities.decoding.frames import evenly

CLIPS = NpmPackage(
    "@lobehub/fluent-emoji-anim-1",
    "1.0.0",
    "sha512-/4m31vAuZEQ4aUJ5pxcOU5PVkuJya55GRxUZL7+zgLlxZXpzzE8jPqpDyhZICE3n47nS/Y9M5/vLdizi8201QA==",
)
NAMES = NpmPackage(
    "emojibase-data",
    "17.0.0",
    "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)
MEDIA = "clips"
"""The kind of data.media."""
SETTINGS = {"size": 64, "frames": 24}
MOVING = 8
"""A clip has more frames than these."""


def card(size: int, frames: int) -> Card:
    return Card(
        name="fluent-animated",
        about="Animated Fluent emoji: short loops, each captioned with the name of the emoji.",
        origin=f"{CLIPS}, {NAMES}",
        licence="MIT",
        attribution="Fluent Emoji, Copyright (c) Microsoft Corporation; packed by LobeHub; names by Emojibase",
        settings={"pixels": size, "frames": frames},
    )


def samples(size: int, frames: int) -> Iterator[PreparedSample]:
    """Every named clip, `frames` evenly spaced frames of `size` pixels; in an order that is random but always the
    same, so that the first few are of all kinds."""
    with tempfile.TemporaryDirectory() as folder:
        names = _names(fetch_npm(NAMES, Path(folder)) / "en" / "data.json")
        clips = fetch_npm(CLIPS, Path(folder)) / "assets"
        for file in sorted(clips.glob("*.webp"), key=lambda file: hashlib.sha256(file.name.encode()).digest()):
            name = names.get(file.stem.replace("-fe0f", ""))
            if name is None or "skin tone" in name:
                continue
            pictures = all_frames(file)[0]
            if len(pictures) <= MOVING:
                continue
            chosen = [pictures[index] for index in evenly(len(pictures), frames)]
            small = [np.asarray(picture.resize((size, size), Image.Resampling.BOX)) for picture in chosen]
            yield PreparedSample(name, name, np.stack(small))


def _names(file: Path) -> dict[str, str]:
    """Names by codepoints, such as 1f600: "grinning face"."""
    entries = json.loads(file.read_text())
    every = [variant for entry in entries for variant in [entry, *entry.get("skins", [])]]
    return {entry["hexcode"].lower().replace("-fe0f", ""): entry["label"] for entry in every}
