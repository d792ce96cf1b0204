"""Draws on one device and on meshes of eight, and prints how far each mesh is from the one device.

Run by test_sampling_on_meshes.py in a process of its own, because the number of devices is fixed when jax starts:
python drawn_on_meshes.py MESH CASE ...; out: a JSON object with the largest difference of each case, relative to the
largest value, what is said of a batch that does not fit, and what a model draws that is opened on the mesh, a JSON
object.
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from lumina_jax.chips import CHIPS
from lumina_jax.config import Config, MeshConfig
from lumina_jax.generation.composition import Composition
from lumina_jax.generation.editing import Edit
from lumina_jax.generation.pipeline import new_pipeline
from lumina_jax.generation.sheets import sheet_writer
from lumina_jax.generation.style import Reference
from lumina_jax.kernels.flash import call
from lumina_jax.models.division import parameter_shardings
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.trained import how_it_draws, open_run, save
from tests.generation.test_pipeline import SETTINGS, Words
from tests.training.tiny import config, label_config

FOLDER = tempfile.TemporaryDirectory()
RUN = {"root": FOLDER.name, "sample_prompts": ("3", "1", "4")}
NETWORK = {"heads": 8, "kv_heads": 2, "width": 48, "remat": "full"}
TEXT = config(run=RUN)
TEXT = dataclasses.replace(TEXT, model=dataclasses.replace(TEXT.model, **NETWORK, own_text_query=True, text_layers=1))
LABEL = label_config(run=RUN)
LABEL = dataclasses.replace(LABEL, model=dataclasses.replace(LABEL.model, **NETWORK, qk_norm=False))
PRUNED = dataclasses.replace(TEXT, model=dataclasses.replace(TEXT.model, text_heads=4))
LATENTS = (8, 1, 24, 48, 3)
"""More tokens than in training: 18, or with those that end lines 21, which the devices of a row do not divide."""
PROMPTS = [str(number) for number in range(8)]


class Case(NamedTuple):
    act: Any
    mesh: dict[str, Any]
    settings: dict[str, Any]
    config: Config = TEXT


class Drawing(NamedTuple):
    """A model, the parameters of which lie on a mesh; None: on one device."""

    config: Config
    mesh: Any

    @property
    def parameters(self):
        random = np.random.default_rng(0)
        shardings = jax.devices()[0] if self.mesh is None else parameter_shardings(self.config.model, self.mesh)
        shapes = nnx.to_pure_dict(abstract_model(self.config.model)[1])
        values = jax.tree.map(lambda leaf: 0.3 * random.standard_normal(leaf.shape, np.float32), shapes)
        return jax.device_put(values, shardings)

    @property
    def encoder(self):
        return Words() if self.config.model.conditioning == "text" else None

    @property
    def pipeline(self):
        return new_pipeline(self.config, self.parameters, self.encoder, mesh=self.mesh)


def noise():
    return np.random.default_rng(1).standard_normal(LATENTS, np.float32)


def drawn(drawing, settings):
    return drawing.pipeline.latents(noise(), PROMPTS, settings)


def edited(drawing, settings):
    """Of a source of which each sample keeps another part, within a patch and across them."""
    source, kept = (
        np.random.default_rng(2).standard_normal(LATENTS, np.float32),
        np.zeros((*LATENTS[:-1], 1), np.float32),
    )
    for row in range(len(kept)):
        kept[row, :, row : row + 9, 5 * row :] = 1
    drawn = drawing.pipeline.latents(noise(), PROMPTS, settings, edit=Edit(source, kept, np.asarray(0.7, np.float32)))
    np.testing.assert_array_equal(np.asarray(drawn)[kept[..., 0] > 0], source[kept[..., 0] > 0])
    return drawn


def composed(drawing, settings):
    """Of three captions, the shares of which fall within patches and are other ones for each value."""
    shares = np.random.default_rng(2).uniform(size=(3, *LATENTS[2:4])).astype(np.float32)
    parts = Composition((None, "4", "2"), shares / shares.sum(axis=0))
    return drawing.pipeline.latents(noise(), PROMPTS, settings, composed=parts)


def styled(drawing, settings):
    """Beside another sample each, with two captions."""
    random, pipeline = np.random.default_rng(3), drawing.pipeline
    shares = random.uniform(size=(2, *LATENTS[2:4])).astype(np.float32)
    parts = Composition((None, "4"), shares / shares.sum(axis=0))
    prompt = pipeline.prompt(PROMPTS[::-1], settings, parts.captions)
    keys = jax.random.split(jax.random.key(5), len(PROMPTS))
    reference = Reference(
        random.standard_normal(LATENTS, np.float32), keys, prompt, None, np.linspace(0.3, 1, 8, dtype=np.float32)
    )
    return pipeline.latents(noise(), PROMPTS, settings, composed=parts, reference=reference)


def in_windows(drawing, settings):
    """Clips of five frames, of two scenes."""
    clips = np.random.default_rng(1).standard_normal((8, 5, 24, 16, 3), np.float32)
    shares = np.broadcast_to((np.arange(5) < 3)[:, None, None], (5, 24, 16)).astype(np.float32)
    parts = Composition(("3", "4"), np.stack([shares, 1 - shares]))
    return drawing.pipeline.latents(clips, PROMPTS, settings, composed=parts)


def inverted(drawing, settings):
    return drawing.pipeline.invert(noise(), PROMPTS, settings)


def density(drawing, settings):
    return drawing.pipeline.log_density(noise(), PROMPTS, settings, seed=1)


def refusal():
    """What is said to a batch that the devices do not divide."""
    try:
        Drawing(LABEL, make_mesh(fsdp=8)).pipeline.latents(noise()[:3], PROMPTS[:3], SETTINGS)
    except ValueError as error:
        return str(error)


class Shown:
    """Takes a sheet instead of a writer of metrics."""

    def image(self, step, name, pixels):
        self.pixels = pixels


def sheet(drawing, settings):
    """A sheet as training draws it, of three pictures, a number that eight devices do not divide."""
    shown = Shown()
    sheet_writer(drawing.config, drawing.encoder, shown, None, drawing.mesh)(1, drawing.parameters)
    return shown.pixels / 255


class Door:
    """Stands at the door of the kernels, and asks for each attention why a v6e would not take it."""

    def __init__(self):
        self.refusals, self._refusal = set(), call.refusal

    def __call__(self, *arrays, **how):
        known, call.known_chip = call.known_chip, lambda: CHIPS["v6e"]
        self.refusals.add(self._refusal(*arrays, **how))
        call.known_chip = known
        return "this is a CPU"


def opened(mesh):
    """What a saved model draws of eight prompts and of one when it is opened here, beside what one device draws of one
    prompt after another."""
    settings = label_config(FOLDER.name)
    one = Drawing(settings, None).pipeline
    pipeline = open_run(save(one, Path(FOLDER.name) / f"opened{len(mesh)}"), mesh=MeshConfig(**mesh))
    begun = [start_noise(one, index) for index in range(len(PROMPTS))]
    alone = np.concatenate(
        [one.latents(noise, PROMPTS[index : index + 1], SETTINGS) for index, noise in enumerate(begun)]
    )
    call.refusal = door = Door()
    first_device = new_pipeline(settings, one.parameters, None, mesh=make_mesh(devices=jax.devices()[:1]))
    jax.eval_shape(lambda noise: first_device.latents(noise, PROMPTS[:1], SETTINGS), begun[0])
    one_of_many, door.refusals = door.refusals, set()
    together = np.asarray(pipeline.latents(np.concatenate(begun), PROMPTS, SETTINGS))
    shown = pipeline(PROMPTS[:1], SETTINGS, seed=1), one(PROMPTS[:1], SETTINGS, seed=1)
    return {
        "said": how_it_draws(pipeline.mesh, pipeline.parameters),
        "difference": float(np.abs(together - alone).max() / np.abs(alone).max()),
        "first": int(np.abs(shown[0][0].astype(int) - shown[1][0]).max()),
        "refusals": [*door.refusals],
        "refusals of one of many": [*one_of_many],
    }


def start_noise(pipeline, seed):
    size = pipeline.modality().latent_size(pipeline.modality().trained_shape)
    return np.random.default_rng(seed).standard_normal((1, *size), np.float32)


LARGE_STEPS = {"solver": "adaptive_heun", "rtol": 0.1, "atol": 0.1}
"""Others give another result."""
CASES = {
    "fsdp, sequence and tensor, stochastic": Case(
        drawn, {"fsdp": 2, "sequence": 2, "tensor": 2}, {"solver": "euler_maruyama", "last_step": "none"}
    ),
    "sequence and tensor, adaptive steps": Case(drawn, {"sequence": 4, "tensor": 2}, LARGE_STEPS, LABEL),
    "a sheet on fsdp": Case(sheet, {"fsdp": 8}, {}, LABEL),
    "fsdp over two mesh axes, and tensor": Case(drawn, {"fsdp": 4, "tensor": 2, "split": {"fsdp": (2, 2)}}, {}),
    "fsdp, ring and heads exchanged": Case(drawn, {"fsdp": 2, "sequence": 4, "ring": 2}, {}),
    "an edit with a negative on fsdp, sequence and tensor": Case(
        edited, {"fsdp": 2, "sequence": 2, "tensor": 2}, {"negative": "5", "negative_scale": 0.5}
    ),
    "three captions with a negative on fsdp, sequence and tensor": Case(
        composed, {"fsdp": 2, "sequence": 2, "tensor": 2}, {"negative": "5", "negative_scale": 0.5}
    ),
    "three labels by stochastic steps, on data and sequence": Case(
        composed, {"sequence": 4}, {"solver": "euler_maruyama"}, LABEL
    ),
    "styles on fsdp, sequence and tensor": Case(styled, {"fsdp": 2, "sequence": 2, "tensor": 2}, {}),
    "styles of labels by stochastic steps, on a ring": Case(
        styled, {"sequence": 4, "ring": 2}, {"solver": "euler_maruyama"}, LABEL
    ),
    "merged patches on fsdp, sequence and tensor": Case(
        drawn, {"fsdp": 2, "sequence": 2, "tensor": 2}, {"merge_tokens": 2}
    ),
    "scenes in windows of merged patches, on fsdp and tensor": Case(
        in_windows, {"fsdp": 2, "tensor": 2}, {"window_frames": 2, "steps": 2, "merge_tokens": 2}
    ),
    "an edit by stochastic steps, on data and sequence": Case(edited, {"sequence": 4}, {"solver": "sde_heun"}, LABEL),
    "heads without text, ring and heads exchanged": Case(drawn, {"fsdp": 2, "sequence": 4, "ring": 2}, {}, PRUNED),
    "backwards by corrected steps, on data and sequence": Case(inverted, {"sequence": 4}, {"solver": "implicit_adams"}),
    "density by adaptive steps, on fsdp, sequence and tensor": Case(
        density, {"fsdp": 2, "sequence": 2, "tensor": 2}, LARGE_STEPS | {"guidance": 1.0}
    ),
}


def main(opened_on, *names):
    found, results = {}, {}
    for name in names:
        act, mesh, changes, of = CASES[name]
        settings = dataclasses.replace(SETTINGS, **changes)
        if (act, settings, of) not in results:
            results[act, settings, of] = np.asarray(act(Drawing(of, None), settings))
        alone = results[act, settings, of]
        assert np.isfinite(alone).all()
        assert alone.std() > 0.1
        together = np.asarray(act(Drawing(of, make_mesh(**mesh)), settings))
        found[name] = float(np.abs(together - alone).max() / np.abs(alone).max())
    print(json.dumps({"differences": found, "refusal": refusal(), "opened": opened(opened_on)}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), *sys.argv[2:])
