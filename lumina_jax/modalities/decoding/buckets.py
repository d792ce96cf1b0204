"""Cropping pictures to sizes that all hold about the same number of patches.

In: PIL pictures of any size. Out: PIL pictures of one of the sizes (width, height), which are multiples of a unit.
The unit is the pixels of one patch: 16 for a latent eight times smaller cut into patches of 2, the patch itself for
models of pixels. Behaviour and the order of random draws (size, left, upper) are those of the released code, so a
`random.Random(seed)` gives the same crop.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

Size = tuple[int, int]


class CropStep(NamedTuple):
    """One resizing of a picture to (width, height)."""

    size: Size
    filter: Image.Resampling


def crop_sizes(patches: int, unit: int, *, max_ratio: float = 4.0) -> list[Size]:
    """All (width, height) in pixels along the staircase under columns x rows = `patches`, from wide to tall.

    >>> crop_sizes(4, 16)
    [(64, 16), (48, 16), (32, 16), (32, 32), (16, 32), (16, 48), (16, 64)]
    """
    if patches < 1 or unit < 1 or max_ratio < 1:
        raise ValueError(f"{patches=}, {unit=} and {max_ratio=} must each be at least 1")
    sizes = []
    columns, rows = patches, 1
    while columns:
        if max(columns, rows) / min(columns, rows) <= max_ratio:
            sizes.append((columns * unit, rows * unit))
        if columns * (rows + 1) > patches:
            columns -= 1
        else:
            rows += 1
    return sizes


def choose_size(size: Size, sizes: Sequence[Size], draws: random.Random, *, top_k: int) -> Size:
    """One of the `top_k` sizes that lose least of a picture's area; of equals, the larger tuple comes first."""

    def kept_share(target: Size) -> float:
        scales = target[0] / size[0], target[1] / size[1]
        return min(scales) / max(scales)

    return draws.choice(sorted(sizes, key=lambda target: (kept_share(target), target), reverse=True)[:top_k])


def covering_steps(size: Size, target: Size) -> list[CropStep]:
    """How a picture is made just large enough to cover `target`: halvings while twice too large, then bicubic."""
    steps = []
    width, height = size
    while width >= 2 * target[0] and height >= 2 * target[1]:
        width, height = width // 2, height // 2
        steps.append(CropStep((width, height), Image.Resampling.BOX))
    scale = max(target[0] / width, target[1] / height)
    return [*steps, CropStep((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)]


def random_box(size: Size, target: Size, draws: random.Random) -> tuple[int, int, int, int]:
    """Left, upper, right and lower edge of a crop of `target` pixels anywhere inside `size`."""
    left = draws.randint(0, size[0] - target[0])
    upper = draws.randint(0, size[1] - target[1])
    return left, upper, left + target[0], upper + target[1]


def bucket_crop(image: Image.Image, sizes: Sequence[Size], draws: random.Random, *, top_k: int = 4) -> Image.Image:
    """The picture, resized to cover a well-fitting size of `sizes` and cropped to it at a random position."""
    target = choose_size(image.size, sizes, draws, top_k=top_k)
    image = _resize(image, covering_steps(image.size, target))
    return image.crop(random_box(image.size, target, draws))


def best_crop(image: Image.Image, sizes: Sequence[Size]) -> Image.Image:
    """The middle of the picture, in the size of `sizes` that keeps most of it: `bucket_crop` without its draws."""
    target = choose_size(image.size, sizes, random.Random(0), top_k=1)
    return _middle(_resize(image, covering_steps(image.size, target)), target)


def center_square(image: Image.Image, side: int) -> Image.Image:
    """The middle of the picture, `side` x `side` pixels, after its shorter side was resized to `side`."""
    return _middle(_resize(image, covering_steps(image.size, (side, side))), (side, side))


def center_crop(
    image: Image.Image, target: Size, resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """The middle of the picture in the size `target`, after it was resized to cover it; the same if it has that size.

    Args:
      resampling: the filter of the last step; others halve.
    """
    if image.size == target:
        return image
    steps = covering_steps(image.size, target)
    return _middle(_resize(image, [*steps[:-1], steps[-1]._replace(filter=resampling)]), target)


def _middle(image: Image.Image, target: Size) -> Image.Image:
    left, upper = (image.width - target[0]) // 2, (image.height - target[1]) // 2
    return image.crop((left, upper, left + target[0], upper + target[1]))


def _resize(image: Image.Image, steps: Sequence[CropStep]) -> Image.Image:
    for step in steps:
        image = image.resize(step.size, step.filter)
    return image
