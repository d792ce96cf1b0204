"""evaluate --likelihood walks pictures back in batches, and says how far it is."""

import contextlib
import statistics
from pathlib import Path

import numpy as np
import pytest

from lumina_jax.commands import evaluate
from lumina_jax.config import Config, ModelConfig
from lumina_jax.tokens import pixels_to_unit

CONFIG = Config(model=ModelConfig(layers=1, heads=1, width=8))


class Pipeline:
    """A density that is the mean of a picture, and walks that end half a byte away."""

    def __init__(self, batch, least_batch):
        self.batches, self.batch, self.least_batch = [], batch, least_batch

    def log_density(self, values, prompts, settings, *, seed, modality):
        """The density of a row that fills up a batch is another one, because its signs are."""
        self.batches.append(list(prompts))
        return values.mean(axis=(1, 2, 3, 4)) + 100 * (np.arange(len(values)) >= self.batch)

    def invert(self, values, prompts, settings, *, modality):
        return values

    def latents(self, noise, prompts, settings, *, modality):
        return noise + 0.5 / 127.5


def said(capsys, monkeypatch, batch, devices=1):
    shown = []

    @contextlib.contextmanager
    def counted(description, total):
        shown.append(total)
        yield shown.append

    monkeypatch.setattr(evaluate, "counted", counted)
    pictures = np.random.default_rng(0).integers(0, 256, (5, 1, 4, 4, 3), np.uint8)
    pipeline = Pipeline(batch, devices)
    arguments = evaluate.Arguments(Path("run"), batch=batch)
    numbers = evaluate.likelihood(pipeline, CONFIG, pictures, list("abcde"), arguments)
    out = capsys.readouterr().out
    assert f"{numbers['bits']:.3f} bits a value, from {numbers['least']:.3f} to {numbers['greatest']:.3f}" in out
    values = pixels_to_unit(pictures + np.random.default_rng(arguments.seed).uniform(-0.5, 0.5, pictures.shape))
    bits = [np.log2(127.5) - one.mean() / one.size / np.log(2) for one in values]
    assert numbers["bits"] == pytest.approx(np.mean(bits))
    assert numbers["standard_error"] == pytest.approx(statistics.stdev(bits) / 5**0.5)
    return out, pipeline.batches, shown


@pytest.mark.parametrize(
    ("batch", "devices", "batches", "shown"),
    [
        (2, 1, [["a", "b"], ["c", "d"], ["e", "e"]], [5, 2, 4, 5]),
        (8, 1, [["a", "b", "c", "d", "e"]], [5, 5]),
        (2, 4, [["a", "b", "b", "b"], ["c", "d", "d", "d"], ["e", "e", "e", "e"]], [5, 2, 4, 5]),
    ],
)
def test_batches_have_one_shape_and_progress_counts_pictures(capsys, monkeypatch, batch, devices, batches, shown):
    found = said(capsys, monkeypatch, batch, devices)
    assert found[1:] == (batches, shown)
    assert found[0] == said(capsys, monkeypatch, 5)[0]
    assert "5 pictures have" in found[0]
    assert "differ by 0.50 of 255" in found[0]
