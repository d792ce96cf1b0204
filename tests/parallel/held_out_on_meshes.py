"""Measures the held-out loss on one device and on a mesh of eight with packed rows, and prints how far they differ.

Run by test_held_out.py in a new process, because the number of devices is fixed when jax starts; out: a JSON object.
"""

import json

import jax

from lumina_jax.generation.pipeline import new_pipeline
from lumina_jax.held_out import held_out_loss
from lumina_jax.models.division import parameter_shardings
from lumina_jax.parallel.mesh import make_mesh
from tests.generation.test_pipeline import Words, random_parameters
from tests.training import tiny


def main():
    settings = tiny.config(model={"layers": 1, "heads": 8, "kv_heads": 4, "width": 48, "nextframe": False})
    parameters = random_parameters(settings.model)
    one = jax.device_put(parameters, jax.devices()[0])
    alone = held_out_loss(new_pipeline(settings, one, Words()), batch=5)
    mesh = make_mesh(fsdp=2, sequence=2, tensor=2)
    laid = jax.device_put(parameters, parameter_shardings(settings.model, mesh))
    packed = settings.replace(data={"row_tokens": 72, "samples_per_row": 3})
    together = held_out_loss(new_pipeline(packed, laid, Words(), mesh=mesh), batch=3)
    differences = [abs(a / b - 1) for a, b in zip(together.curve, alone.curve, strict=True)]
    print(json.dumps({"loss": abs(together.loss / alone.loss - 1), "curve": max(differences)}))


if __name__ == "__main__":
    main()
