"""Checkpoints made of the golden files, as their authors publish them, and the command that converts them."""

import json
from pathlib import Path

from safetensors.numpy import load_file, save_file

from lumina_jax.commands.convert import Arguments, convert
from lumina_jax.parity.golden import Golden

GOLDEN = Path(__file__).parents[1] / "golden"
LUMINA = [
    *("lumina_t2i", "lumina_t2i_noqk", "lumina_t2i_train", "flagdit_imagenet", "nextdit", "nextdit_imagenet"),
    "audio_flagdit",
]
WEIGHTS = {
    "lumina": "consolidated.00-of-01.safetensors",
    "diffusers": "transformer/diffusion_pytorch_model.safetensors",
    "jax": "model.safetensors",
}


def checkpoint(folder, name, tensors=None, layout="lumina"):
    """The folder of a golden's model in its own layout, with other tensors where they are given."""
    golden = Golden(GOLDEN / f"{name}.safetensors")
    file = folder / WEIGHTS[layout]
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(golden.parameters if tensors is None else tensors, file)
    (file.parent / "config.json").write_text(json.dumps(golden.config))
    return folder


def run(source, destination, source_layout, layout, **options):
    """What `lumina convert` does once its words are read; returns the destination."""
    convert(Arguments(source, destination, source_layout=source_layout, layout=layout, **options))
    return destination


def tensors_of(folder, layout):
    return load_file(folder / WEIGHTS[layout])
