"""Rebuilds the embedded emoji of `lumina_jax/data/emoji`: vector graphics from npm to emoji_<style>_<size>.npz.

    pip install 'lumina_jax[icons]'
    python tools/build_emoji.py --out emoji32

In: the npm packages of the styles, fetched with `npm pack`, or already in the folder given by --packages.
Out: X uint8 [pictures, size, size, 3] on white, and names. Pictures for training at other sizes, with a name for all
styles and further captions: `lumina data prepare emoji --size 64`.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from lumina_jax.data.datasets.emoji import STYLES
from lumina_jax.data.datasets.icons import drawn, read_icons
from lumina_jax.data.datasets.packages import NpmPackage, fetch_npm, unpacked_npm
from lumina_jax.data.emoji_source import EMBEDDED_SIZE
from lumina_jax.data.emoji_source import STYLES as EMBEDDED_STYLES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=EMBEDDED_SIZE, help="pixels of a side")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--packages", type=Path, help="folder with the .tgz of both packages; default: npm pack")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for style in EMBEDDED_STYLES:
        path = arguments.out / f"emoji_{style}_{arguments.size}.npz"
        with tempfile.TemporaryDirectory() as folder:
            count = write(path, unpacked(STYLES[style].package, arguments.packages, Path(folder)), arguments.size)
        print(f"{path}: {count} pictures")


def unpacked(package: NpmPackage, archives: Path | None, folder: Path) -> Path:
    """The package, unpacked in `folder`, from its archive or from npm."""
    if archives is None:
        return fetch_npm(package, folder)
    archive = archives / f"{package.name.removeprefix('@').replace('/', '-')}-{package.version}.tgz"
    if not archive.is_file():
        raise SystemExit(f"there is no {archive}; fetch it with: npm pack {package.name}@{package.version}")
    return unpacked_npm(archive, folder)


def write(path: Path, package: Path, size: int) -> int:
    """Draws every visible icon; the file appears only when it is complete. Returns their number."""
    names, pictures = zip(*((name.replace("-", " "), drawn(svg, size)) for name, svg in read_icons(package)))
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, X=np.stack(pictures), names=np.array(names))
    partial.replace(path)
    return len(names)


if __name__ == "__main__":
    main()
