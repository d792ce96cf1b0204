"""Inception-v3 as the Frechet inception distance uses it, for features of pictures.

In: pictures [b 299 299 3] with values 0..255. Out: the 2048 features [b 2048] after the last average pooling. Szegedy
et al., arXiv 1512.00567, in the variant of Heusel et al., arXiv 1706.08500: averages do not count padding, and the
pooling of the last block takes the maximum. The weights are those that pytorch-fid and torch-fidelity read,
pt_inception-2015-12-05-6726825d.pth, which the user supplies.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lumina_jax.encoders.normed_convolution import NormedConvolution, normed_convolution
from lumina_jax.models.layers import ParameterKeys
from lumina_jax.weights.files import Renamed, TensorFiles
from lumina_jax.weights.modules import load_module
from lumina_jax.weights.pickles import PickledTensors
from lumina_jax.weights.rules import Rule

SIDE, WIDTH = 299, 2048
CLASSES = 1008
"""Classes of the published network; torchvision's, whose features differ, has 1000."""
UNUSED = ("fc.", "AuxLogits.")
Pooling = Literal["average", "maximum", "halving maximum"]


class Unit(NamedTuple):
    """A convolution of a branch: its published name, channels, and height and width of the kernel."""

    name: str
    channels: int
    size: tuple[int, int] = (1, 1)
    halves: bool = False
    """Whether it has a stride of 2 and no padding."""


Branch = tuple[Unit | tuple[Unit, Unit], ...]
"""Convolutions one after another; two in a pair read the same input, and their outputs are concatenated."""


class Mixed(NamedTuple):
    """A block: branches that read the same input, the last of them a pooling, whose outputs are concatenated."""

    name: str
    branches: tuple[Branch, ...]
    pooling: Pooling
    pooled: Unit | None
    """The convolution after the pooling."""


def _block_a(name: str, pooled: int) -> Mixed:
    fives = (Unit("branch5x5_1", 48), Unit("branch5x5_2", 64, (5, 5)))
    threes = (
        Unit("branch3x3dbl_1", 64),
        Unit("branch3x3dbl_2", 96, (3, 3)),
        Unit("branch3x3dbl_3", 96, (3, 3)),
    )
    return Mixed(name, ((Unit("branch1x1", 64),), fives, threes), "average", Unit("branch_pool", pooled))


def _block_c(name: str, inner: int) -> Mixed:
    row, column = (1, 7), (7, 1)
    single = (Unit("branch7x7_1", inner), Unit("branch7x7_2", inner, row), Unit("branch7x7_3", 192, column))
    double = (
        Unit("branch7x7dbl_1", inner),
        Unit("branch7x7dbl_2", inner, column),
        Unit("branch7x7dbl_3", inner, row),
        Unit("branch7x7dbl_4", inner, column),
        Unit("branch7x7dbl_5", 192, row),
    )
    return Mixed(name, ((Unit("branch1x1", 192),), single, double), "average", Unit("branch_pool", 192))


def _block_e(name: str, pooling: Pooling) -> Mixed:
    def pair(start: str) -> tuple[Unit, Unit]:
        return Unit(f"{start}a", 384, (1, 3)), Unit(f"{start}b", 384, (3, 1))

    single = (Unit("branch3x3_1", 384), pair("branch3x3_2"))
    double = (Unit("branch3x3dbl_1", 448), Unit("branch3x3dbl_2", 384, (3, 3)), pair("branch3x3dbl_3"))
    return Mixed(name, ((Unit("branch1x1", 320),), single, double), pooling, Unit("branch_pool", 192))


STEM = (
    Unit("Conv2d_1a_3x3", 32, (3, 3), halves=True),
    Unit("Conv2d_2a_3x3", 32, (3, 3)),
    Unit("Conv2d_2b_3x3", 64, (3, 3)),
    Unit("Conv2d_3b_1x1", 80),
    Unit("Conv2d_4a_3x3", 192, (3, 3)),
)
UNPADDED = ("Conv2d_2a_3x3", "Conv2d_4a_3x3")
POOLED_AFTER = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")
"""Convolutions of the stem without padding, and those that a maximum over 3 x 3 with a stride of 2 follows."""
BLOCKS = (
    _block_a("Mixed_5b", 32),
    _block_a("Mixed_5c", 64),
    _block_a("Mixed_5d", 64),
    Mixed(
        "Mixed_6a",
        (
            (Unit("branch3x3", 384, (3, 3), halves=True),),
            (
                Unit("branch3x3dbl_1", 64),
                Unit("branch3x3dbl_2", 96, (3, 3)),
                Unit("branch3x3dbl_3", 96, (3, 3), halves=True),
            ),
        ),
        "halving maximum",
        None,
    ),
    _block_c("Mixed_6b", 128),
    _block_c("Mixed_6c", 160),
    _block_c("Mixed_6d", 160),
    _block_c("Mixed_6e", 192),
    Mixed(
        "Mixed_7a",
        (
            (Unit("branch3x3_1", 192), Unit("branch3x3_2", 320, (3, 3), halves=True)),
            (
                Unit("branch7x7x3_1", 192),
                Unit("branch7x7x3_2", 192, (1, 7)),
                Unit("branch7x7x3_3", 192, (7, 1)),
                Unit("branch7x7x3_4", 192, (3, 3), halves=True),
            ),
        ),
        "halving maximum",
        None,
    ),
    _block_e("Mixed_7b", "average"),
    _block_e("Mixed_7c", "maximum"),
)


class MixedBlock(nnx.Module):
    """A block of the table above."""

    def __init__(self, rngs: nnx.Rngs, inputs: int, block: Mixed):
        self.block, width = block, 0
        for branch in block.branches:
            channels = inputs
            for step in branch:
                units = (step,) if isinstance(step, Unit) else step
                for unit in units:
                    setattr(self, unit.name, _convolution(rngs, channels, unit))
                channels = sum(unit.channels for unit in units)
            width += channels
        if block.pooled is not None:
            setattr(self, block.pooled.name, _convolution(rngs, inputs, block.pooled))
        self.width = width + (inputs if block.pooled is None else block.pooled.channels)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b v u o"]:
        outputs = []
        for branch in self.block.branches:
            y = x
            for step in branch:
                units = (step,) if isinstance(step, Unit) else step
                y = jnp.concatenate([getattr(self, unit.name)(y) for unit in units], axis=-1)
            outputs.append(y)
        y = _pooled(x, self.block.pooling)
        outputs.append(y if self.block.pooled is None else getattr(self, self.block.pooled.name)(y))
        return jnp.concatenate(outputs, axis=-1)


class Inception(nnx.Module):
    """The network without its classifier."""

    def __init__(self, rngs: nnx.Rngs):
        channels = 3
        for unit in STEM:
            setattr(self, unit.name, _convolution(rngs, channels, unit))
            channels = unit.channels
        for block in BLOCKS:
            mixed = MixedBlock(rngs, channels, block)
            setattr(self, block.name, mixed)
            channels = mixed.width

    def __call__(self, pictures: Float[Array, "b 299 299 3"]) -> Float[Array, "b 2048"]:
        with jax.default_matmul_precision("highest"):
            x = (pictures - 128) / 128
            for unit in STEM:
                x = getattr(self, unit.name)(x)
                if unit.name in POOLED_AFTER:
                    x = _pooled(x, "halving maximum")
            for block in BLOCKS:
                x = getattr(self, block.name)(x)
            return x.mean(axis=(1, 2))


def load_inception(file: Path) -> Inception:
    """Read the weights in a .pth or .safetensors file.

    Raises:
      ValueError: it is missing or damaged, or holds another network, such as torchvision's Inception-v3.
    """
    stored = TensorFiles(file) if file.suffix == ".safetensors" else PickledTensors(file)
    if "fc.weight" in stored and stored.shape("fc.weight")[0] != CLASSES:
        raise ValueError(
            f"{file} must hold the Inception-v3 of {CLASSES} classes that the Frechet inception distance uses, but has "
            f"{stored.shape('fc.weight')[0]} classes, as torchvision's; download pt_inception-2015-12-05-6726825d.pth"
        )

    def rename(name: str) -> str | None:
        return None if name.startswith(UNUSED) or name.endswith(".num_batches_tracked") else name

    try:
        return load_module(lambda: Inception(ParameterKeys(0)), Renamed(stored, rename), [*_rules()], layers=1)
    except ValueError as error:
        raise ValueError(f"{file} does not hold Inception-v3: {error}") from error


def _rules() -> Iterator[Rule]:
    names = [unit.name for unit in STEM]
    for block in BLOCKS:
        steps = [step for branch in block.branches for step in branch]
        units = [unit for step in steps for unit in ((step,) if isinstance(step, Unit) else step)]
        names += [f"{block.name}.{unit.name}" for unit in (*units, *filter(None, [block.pooled]))]
    for name in names:
        yield from normed_convolution(f"{name}.conv", f"{name}.bn", name)


def _convolution(rngs: nnx.Rngs, inputs: int, unit: Unit) -> NormedConvolution:
    is_padded = not unit.halves and unit.name not in UNPADDED
    stride, padding = 2 if unit.halves else 1, "SAME" if is_padded else "VALID"
    return NormedConvolution(rngs, inputs, unit.channels, unit.size, stride=stride, padding=padding)


def _pooled(x: Float[Array, "b h w c"], pooling: Pooling) -> Float[Array, "b v u c"]:
    """Pool 3 x 3 pixels; an average counts only those within the picture."""
    if pooling == "halving maximum":
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding="VALID")
    if pooling == "maximum":
        return nnx.max_pool(x, (3, 3), strides=(1, 1), padding="SAME")
    return nnx.avg_pool(x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=False)
