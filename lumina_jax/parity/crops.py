"""Comparison of crops with the released code: lists of sizes, the steps of a crop, and its pixels.

In: crops.json (sizes and traces) and, in the same folder, crops.safetensors (sampled pixels); either path may be given.
Out: a `Comparison` for each list, random crop and centre crop. Integers and pixels must be equal. The pictures are
synthetic, as described in the JSON.
"""

import functools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from safetensors import SafetensorError, safe_open

from lumina_jax.modalities.decoding.buckets import (
    Size,
    center_square,
    choose_size,
    covering_steps,
    crop_sizes,
    random_box,
)
from lumina_jax.parity.golden import Comparison, Pair, attempt, compare

PICTURE_KEY = re.compile(r"out/(var_\d+_k\d+|cca_\d+)")


def is_crops(path: str | Path) -> bool:
    """Whether a file is one of these two, judged by its content."""
    path = Path(path)
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            return False
        return isinstance(content, dict) and "crop_size_list" in content
    try:
        with safe_open(str(path), "np") as file:
            keys = list(file.keys())
    except (OSError, SafetensorError):
        return False
    return bool(keys) and all(PICTURE_KEY.fullmatch(key) for key in keys)


def run(path: str | Path) -> Iterator[Comparison]:
    """Compare every case of the two files.

    Raises:
      ValueError: the JSON file is missing or does not have this form.
    """
    path = Path(path)
    recorded = _recorded(path.with_suffix(".json"))
    pictures = _pictures(path.with_suffix(".safetensors"))
    unit = _number(r"//\s*(\d+)\)\s*\*\*\s*2", recorded.get("desc", ""), default=16)
    lists = {int(size): crop_sizes((int(size) // unit) ** 2, unit) for size in recorded["crop_size_list"]}
    for image_size, expected in recorded["crop_size_list"].items():
        pair: Pair = (f"sizes of {image_size}", lists[int(image_size)], expected, 0.0, 0.0)
        yield compare(f"sizes {image_size}", [pair])
    for crop in recorded.get("var_crops", []):
        case = f"crop {crop['i']} of top {crop['top_k']}"
        yield attempt(case, functools.partial(_random_case, case, crop, lists, recorded, pictures))
    for key in sorted(key for key in pictures if key.startswith("out/cca_")):
        index = int(key.rpartition("_")[2])
        yield attempt(f"centre {index}", functools.partial(_center_case, index, recorded, pictures[key]))


def _random_case(
    case: str,
    crop: dict[str, Any],
    lists: dict[int, list[Size]],
    recorded: dict[str, Any],
    pictures: dict[str, np.ndarray],
) -> Comparison:
    key = f"out/var_{crop['i']}_k{crop['top_k']}"
    comparison = compare(case, _random_pairs(crop, lists, recorded, pictures.get(key)))
    return comparison if key in pictures else comparison._replace(note=f"{comparison.note} no pixels recorded".strip())


def _random_pairs(
    crop: dict[str, Any], lists: dict[int, list[Size]], recorded: dict[str, Any], expected: np.ndarray | None
) -> Iterator[Pair]:
    image = Image.fromarray(_synthetic(crop))
    draws = random.Random(crop["seed"])
    target = choose_size(image.size, _size_list(crop, lists), draws, top_k=crop["top_k"])
    steps = covering_steps(image.size, target)
    box = random_box(steps[-1].size, target, draws)
    yield "size", target, crop["out_size"], 0.0, 0.0
    ours = [*((*step.size, int(step.filter)) for step in steps), box]
    theirs = [(*args[0], int(args[1])) if name == "resize" else tuple(args[0]) for name, *args in crop["trace"]]
    yield "steps", _flat(ours), _flat(theirs), 0.0, 0.0
    if expected is not None:
        for step in steps:
            image = image.resize(step.size, step.filter)
        stride = _number(r"\[::(\d+)", recorded.get("smooth_desc", ""), default=8)
        yield "pixels", np.asarray(image.crop(box))[::stride, ::stride], expected, 0.0, 0.0


def _center_case(index: int, recorded: dict[str, Any], expected: np.ndarray) -> Comparison:
    described = recorded.get("center_crop_arr", "")
    side = _number(r"center_crop_arr\(\w+,\s*(\d+)\)", described, default=128)
    stride = _number(r"\[::(\d+)", described, default=4)
    width, height = next(crop["size"] for crop in recorded["var_crops"] if crop["i"] == index)
    y, x = np.indices((height, width))
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8)
    ours = np.asarray(center_square(Image.fromarray(pixels), side))[::stride, ::stride]
    return compare(f"centre {index}", [("pixels", ours, expected, 0.0, 0.0)])


def _synthetic(crop: dict[str, Any]) -> UInt8[np.ndarray, "h w 3"]:
    width, height = crop["size"]
    y, x = np.indices((height, width))
    if crop["smooth"]:
        ramp = x * 255 // width
        channels = [ramp, y * 255 // height, ramp + 60]
    else:
        channels = [x * crop["ax"] + y * crop["ay"] + c * 40 + x * y // 7 for c in range(3)]
    return (np.stack(channels, axis=-1) % 256).astype(np.uint8)


def _size_list(crop: dict[str, Any], lists: dict[int, list[Size]]) -> list[Size]:
    """Return the list that the crop was chosen from: the named one, or the one with the nearest image size."""
    side = crop.get("image_size", (crop["out_size"][0] * crop["out_size"][1]) ** 0.5)
    return lists[min(lists, key=lambda image_size: abs(image_size - side))]


def _recorded(path: Path) -> dict[str, Any]:
    try:
        recorded = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); crops need the .json next to the .safetensors") from error
    if "crop_size_list" not in recorded:
        raise ValueError(f"{path} has no 'crop_size_list'; it is not a recording of crops")
    return recorded


def _pictures(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    with safe_open(str(path), "np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _number(pattern: str, text: str, *, default: int) -> int:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else default


def _flat(rows: list[tuple[int, ...]]) -> list[int]:
    return [number for row in rows for number in row]
