"""Features of pictures by a network that was trained on something else, on all devices of this host.

In: pictures of any sizes. Out: features [n d] float32, which the distances of this package compare. The networks:

| name | reads | a picture is | features |
|---|---|---|---|
| efficientnet | the package of the extra `eval` | resized to 224 x 224, bicubic | 1280 |
| inception | the file of pytorch-fid | resized to 299 x 299 as by TensorFlow 1, bilinear | 2048 |
| clip | a folder of Hugging Face | resized and cropped to a square, bicubic | those shared with captions |

Whole pictures are squeezed into the square by the first two, as is usual for the Frechet inception distance.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped
from PIL import Image

from lumina_jax.encoders import efficientnet, inception
from lumina_jax.encoders.autoencoder import fingerprint_of
from lumina_jax.encoders.clip_image import load_clip_image
from lumina_jax.encoders.published import CONFIG_FILE, read_weights
from lumina_jax.parallel.mesh import make_mesh, row_spec

NetworkName = Literal["efficientnet", "inception", "clip"]
BATCH = 64
VERSION = 1
"""To be raised when the features of the same picture change."""


class FeatureNetwork(NamedTuple):
    """A loaded network."""

    name: str
    fingerprint: str
    """Changes with the weights and with how pictures are prepared."""
    prepare: Callable[[Image.Image], Shaped[np.ndarray, "side side 3"]]
    """Makes an RGB picture the input of the network, with values 0..255."""
    model: Any
    """An nnx module: pictures [b side side 3] to features [b d]."""


def feature_network(name: NetworkName = "efficientnet", weights: Path | None = None) -> FeatureNetwork:
    """Load a network by its name.

    Args:
      weights: the file or folder of its weights; None: those of the installed package, which only efficientnet has.

    Raises:
      ValueError: the name is unknown; weights are missing, damaged, or of another network.
    """
    if name not in get_args(NetworkName):
        raise ValueError(f"network={name!r} must be one of {', '.join(get_args(NetworkName))}")
    if name == "efficientnet":
        file = efficientnet.efficientnet_file() if weights is None else weights
        model: Any = efficientnet.load_efficientnet(file)
        return FeatureNetwork(name, _fingerprint(name, [file]), _squeezed, model)
    if weights is None:
        what = "the file pt_inception-2015-12-05-6726825d.pth" if name == "inception" else "the folder of a whole CLIP"
        raise ValueError(f"network {name} needs weights, which do not come with lumina_jax; give it {what}")
    if name == "inception":
        model = inception.load_inception(weights)
        return FeatureNetwork(name, _fingerprint(name, [weights]), resized_as_tensorflow, model)
    model = load_clip_image(weights)
    files = [weights / CONFIG_FILE, *read_weights(weights).files]
    return FeatureNetwork(name, _fingerprint(name, files), functools.partial(_cropped, model.config.side), model)


def features(
    network: FeatureNetwork, prepared: Iterable[Shaped[np.ndarray, "side side 3"]], *, batch: int = BATCH
) -> Float[np.ndarray, "n d"]:
    """Return the features of pictures that `network.prepare` has made its input.

    The next batch is read while the devices compute. The program has one shape, because the last batch repeats its last
    picture, and features do not depend on the rest of the batch.

    Args:
      batch: pictures computed at once, rounded up to a multiple of the devices.
    """
    if batch < 1:
        raise ValueError(f"{batch=} must be at least 1")
    devices = jax.local_devices()
    mesh, size = make_mesh(devices=devices), -(-batch // len(devices)) * len(devices)
    rows = NamedSharding(mesh, row_spec(mesh))
    model = jax.device_put(network.model, NamedSharding(mesh, PartitionSpec()))
    found: list[np.ndarray] = []
    waiting: Array | None = None
    for pictures in _batches(prepared, size):
        full = pictures if len(pictures) == size else pictures[np.minimum(np.arange(size), len(pictures) - 1)]
        running = _features(model, jax.device_put(full, rows))
        if waiting is not None:
            found.append(np.asarray(waiting))
        waiting, last = running, len(pictures)
    if waiting is None:
        raise ValueError("features need at least one picture, but there are none")
    return np.concatenate([*found, np.asarray(waiting)[:last]])


@jax.jit
def _features(model: Any, pictures: Shaped[Array, "b h w 3"]) -> Float[Array, "b d"]:
    return model(pictures.astype(jnp.float32))


def resized_as_tensorflow(picture: Image.Image) -> Float[np.ndarray, "299 299 3"]:
    """Resize as TensorFlow 1 does: bilinear without smoothing, where pixel i of the output is at i times the scale.

    The reference statistics of published Frechet inception distances are computed in this way.
    """
    values = np.asarray(picture)
    for axis in (0, 1):
        size = values.shape[axis]
        position = np.arange(inception.SIDE, dtype=np.float32) * np.float32(size / inception.SIDE)
        below = np.minimum(position.astype(np.int64), size - 1)
        share = (position - below).reshape([-1 if other == axis else 1 for other in range(3)])
        start, end = (values.take(index, axis).astype(np.float32) for index in (below, np.minimum(below + 1, size - 1)))
        values = start + (end - start) * share
    return values


def _squeezed(picture: Image.Image) -> Shaped[np.ndarray, "side side 3"]:
    return np.asarray(picture.resize((efficientnet.SIDE,) * 2, Image.Resampling.BICUBIC))


def _cropped(side: int, picture: Image.Image) -> Shaped[np.ndarray, "side side 3"]:
    """Resize the shorter side, and cut the middle, as the published image processor does."""
    width, height = (max(side, length * side // min(picture.size)) for length in picture.size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def _fingerprint(name: str, files: list[Path]) -> str:
    return fingerprint_of(f"{name} {VERSION} {Image.__version__}", files)


def _batches(prepared: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    pending: list[np.ndarray] = []
    for picture in prepared:
        pending.append(picture)
        if len(pending) == size:
            yield np.stack(pending)
            pending = []
    if pending:
        yield np.stack(pending)
