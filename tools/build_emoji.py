"""Rebuilds the embedded emoji at any resolution: vector graphics from npm to emoji_<style>_<size>.npz.

    pip install resvg-py
    python tools/build_emoji.py --size 64 --out emoji64            # then: data.path=emoji64, data.image_size=64

In: the npm packages of `STYLES`, fetched with `npm pack`, or already in the folder given by --packages.
Out: X uint8 [pictures, size, size, 3] on white, and names. Each picture is drawn at twice the size and averaged.
"""

import argparse
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STYLES = {"fluent": "@iconify-json/fluent-emoji-flat@1.2.6", "noto": "@iconify-json/noto@1.2.9"}
OVERSAMPLING = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="pixels of a side")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--packages", type=Path, help="folder with the .tgz of both packages; default: npm pack")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.packages or Path(temporary)
        if arguments.packages is None:
            subprocess.run(["npm", "pack", *STYLES.values()], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for style, package in STYLES.items():
            path = arguments.out / f"emoji_{style}_{arguments.size}.npz"
            count = write(path, read_icons(tarball(folder, package)), arguments.size)
            print(f"{path}: {count} pictures")


def tarball(folder: Path, package: str) -> Path:
    """The file that `npm pack` makes of a package."""
    name, version = package.removeprefix("@").rsplit("@", 1)
    path = folder / f"{name.replace('/', '-')}-{version}.tgz"
    if not path.is_file():
        raise SystemExit(f"there is no {path}; fetch it with: npm pack {package}")
    return path


def read_icons(path: Path) -> dict[str, Any]:
    """The icon set in a package: {"icons": {name: {"body": svg, ...}}, "width", "height"}."""
    with tarfile.open(path) as archive:
        member = archive.extractfile("package/icons.json")
        if member is None:
            raise SystemExit(f"{path} holds no package/icons.json")
        return json.load(member)


def write(path: Path, icon_set: dict[str, Any], size: int) -> int:
    """Draws every visible icon; the file appears only when it is complete. Returns their number."""
    names, pictures = zip(*((name, drawn(svg, size)) for name, svg in drawings(icon_set)))
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, X=np.stack(pictures), names=np.array(names))
    partial.replace(path)
    return len(names)


def drawings(icon_set: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and SVG of each icon that is not hidden."""
    for key, icon in icon_set["icons"].items():
        if icon.get("hidden"):
            continue
        left, top = icon.get("left", 0), icon.get("top", 0)
        width = icon.get("width", icon_set.get("width", 16))
        height = icon.get("height", icon_set.get("height", 16))
        namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        box = f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}"'
        yield key.replace("-", " "), f"<svg {namespaces} {box}>{icon['body']}</svg>"


def drawn(svg: str, size: int) -> np.ndarray:
    """Pixels uint8 [size size 3]."""
    import resvg_py

    large = size * OVERSAMPLING
    encoded = resvg_py.svg_to_bytes(svg_string=svg, width=large, height=large, background="white")
    picture = Image.open(io.BytesIO(bytes(encoded))).convert("RGB")
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))


if __name__ == "__main__":
    main()
