"""A source whose pictures and labels say their index, and small settings for streams of it."""

import itertools

import jax
import numpy as np

from lumina_jax.config import DataConfig, ModelConfig, PictureConfig
from lumina_jax.data.example import BadSample, Record

PATCH = 4
TEXT = ModelConfig(layers=1, heads=2, width=8, channels=3, patch_size=PATCH)
LABEL = ModelConfig(
    layers=1, heads=2, width=8, channels=3, patch_size=PATCH, conditioning="label", classes=40, nextline=False
)
PACKED = DataConfig(media=PictureConfig(crop="buckets"), batch_rows=4, row_tokens=250, samples_per_row=4, prefetch=8)


class Numbered:
    """Plain pictures, each of a gray and a label that say its index; those in `broken` are bad."""

    def __init__(self, count, size=(8, 8), broken=()):
        self.count, self.size, self.broken = count, size, broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.broken:
            return BadSample(f"sample {index}", "broken on purpose")
        pixels = np.full((self.size[1], self.size[0], 3), index, np.uint8)
        return Record(f"sample {index}", pixels, f"caption {index}", index)

    def __repr__(self):
        return f"Numbered({self.count})"


class Lookup:
    """Features that say how long their caption is."""

    max_tokens = 5

    def __getitem__(self, caption):
        return np.full((2 if caption == "" else 4, 3), len(caption), np.float32)


def take(stream, count):
    return list(itertools.islice(stream, count))


def assert_same(batches, others):
    leaves, other_leaves = jax.tree.leaves(batches), jax.tree.leaves(others)
    assert len(leaves) == len(other_leaves) > 0
    for leaf, other in zip(leaves, other_leaves):
        np.testing.assert_array_equal(leaf, other)


def labels_of(batches):
    return np.concatenate([batch.labels[batch.present > 0] for batch in batches]).tolist()


def small(**settings):
    data = DataConfig(media=PictureConfig(image_size=8), batch_rows=4, caption_dropout=0.0, prefetch=4)
    return data.replace(**settings)
