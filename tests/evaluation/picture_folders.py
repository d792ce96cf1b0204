"""A tiny network of features, and folders of pictures for it."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from lumina_jax.evaluation.features import FeatureNetwork

SIDE, WIDTH = 8, 5


class TinyNetwork(nnx.Module):
    """A convolution, and the mean over pixels of its positive part."""

    def __init__(self):
        self.kernel = nnx.Param(jax.random.normal(jax.random.key(0), (3, 3, 3, WIDTH)))

    def __call__(self, pictures):
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(pictures / 255, self.kernel[...], (1, 1), "SAME", dimension_numbers=layout)
        return jax.nn.relu(x).mean(axis=(1, 2))


def tiny_network(fingerprint="tiny"):
    def prepare(picture):
        return np.asarray(picture.resize((SIDE, SIDE)))

    return FeatureNetwork("tiny", fingerprint, prepare, TinyNetwork())


def expected_features(network, files):
    """Of each file alone."""
    pictures = [network.prepare(Image.open(file).convert("RGB")) for file in files]
    return np.concatenate([network.model(jnp.asarray(picture[None], jnp.float32)) for picture in pictures])


def save_pictures(folder, count, *, seed=0, side=12, level=128):
    """Files p00.png, ... of smooth random colours."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(seed)
    for index in range(count):
        coarse = np.clip(level + draws.normal(size=(3, 3, 3)) * 60, 0, 255).astype(np.uint8)
        Image.fromarray(coarse).resize((side + index % 3, side)).save(folder / f"p{index:02}.png")
    return folder
