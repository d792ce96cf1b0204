"""Draws on one device and on meshes of eight, and prints how far each mesh is from the one device.

Run by test_sampling_on_meshes.py in a process of its own, because the number of devices is fixed when jax starts:
python drawn_on_meshes.py [case ...]; out: a JSON object, for each case the largest difference of a value.
"""

import dataclasses
import json
import sys
import tempfile

import jax
import numpy as np
from test_pipeline import SETTINGS, Words, random_parameters
from tiny import config

from lumina_jax.generation.sheets import new_pipeline, sheet_writer
from lumina_jax.models.division import parameter_shardings
from lumina_jax.parallel.mesh import make_mesh

LATENTS = (2, 24, 32, 3)
"""More tokens than in training, and 32 that four devices divide or, with the tokens that end frames and lines, 32."""
PROMPTS = [f"{number} cats" for number in range(8)]


def model():
    """Everything that devices may share: text layers, text keys, key heads that are fewer than the heads."""
    base = config(run={"root": tempfile.mkdtemp(), "sample_prompts": ("cat", "dog", "owl")})
    network = {"heads": 8, "kv_heads": 2, "width": 48, "own_text_query": True, "text_layers": 1, "remat": "full"}
    return dataclasses.replace(base, model=dataclasses.replace(base.model, **network))


CONFIG = model()
NOISE = np.asarray(jax.random.normal(jax.random.key(5), (len(PROMPTS), *LATENTS)))


def pipeline_on(mesh):
    """The pipeline whose parameters lie on a mesh, or on one device."""
    parameters = random_parameters(CONFIG.model)
    if mesh is not None:
        parameters = jax.device_put(parameters, parameter_shardings(CONFIG.model, mesh))
    return new_pipeline(CONFIG, parameters, Words(), mesh=mesh)


def drawn(mesh, **settings):
    return pipeline_on(mesh).latents(NOISE, PROMPTS, dataclasses.replace(SETTINGS, **settings))


def inverted(mesh, **settings):
    return pipeline_on(mesh).invert(NOISE, PROMPTS, dataclasses.replace(SETTINGS, **settings))


def density(mesh, **settings):
    """Per value, as that of a sample grows with their number."""
    found = pipeline_on(mesh).log_density(NOISE, PROMPTS, dataclasses.replace(SETTINGS, **settings), seed=1)
    return np.asarray(found) / np.prod(LATENTS)


class Shown:
    """Takes a sheet in the place of a writer of metrics."""

    def image(self, step, name, pixels):
        self.pixels = pixels


def sheet(mesh):
    """Of three pictures, which eight devices do not divide; its values are as far apart as bytes."""
    shown = Shown()
    sheet_writer(CONFIG, Words(), shown, None, mesh)(1, pipeline_on(mesh).parameters)
    return shown.pixels.astype(int) // 2


CASES = {
    "fsdp over two mesh axes": (drawn, {"fsdp": 8, "split": {"fsdp": (2, 4)}}, {}),
    "data and tensor": (drawn, {"tensor": 2}, {"guidance": 1.0}),
    "fsdp and tensor, adaptive steps": (drawn, {"fsdp": 2, "tensor": 2}, {"solver": "bosh3"}),
    "fsdp and heads exchanged, corrected steps, backwards": (
        inverted, {"fsdp": 2, "sequence": 4}, {"solver": "implicit_adams"},
    ),
    "ring, stochastic": (drawn, {"fsdp": 2, "sequence": 4, "ring": 4}, {"solver": "sde_heun"}),
    "density on fsdp, sequence and tensor": (
        density, {"fsdp": 2, "sequence": 2, "tensor": 2}, {"solver": "adaptive_heun", "guidance": 1.0},
    ),
    "sheet": (sheet, {"fsdp": 8}, {}),
}  # fmt: skip
"""What is done, on which mesh, and with which settings."""


def main(names):
    found = {}
    for name in names or CASES:
        act, mesh, settings = CASES[name]
        alone, together = (np.asarray(act(place, **settings)) for place in (None, make_mesh(**mesh)))
        assert np.isfinite(alone).all() and alone.std() > 0.1
        found[name] = float(np.abs(together - alone).max())
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
