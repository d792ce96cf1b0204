"""Lowers training steps at 4,096 tokens for CUDA on meshes of four devices, and prints what is in the programs.

Run by test_cuda_programs.py in a new process, because the number of devices is fixed when jax starts. Out: a JSON
object, for each mesh the calls of cuDNN forward and backward and the most values of an array in the types of attention.
"""

import dataclasses
import json
import math
import os
import re

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
from jax._src.cudnn import fused_attention_stablehlo

from lumina_jax.aot.plan import Load, abstract_batch, abstract_state
from lumina_jax.kernels import cudnn
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.training.step import train_step
from tests.parallel.eight_devices import settings

MESHES = {
    "fsdp": ({"fsdp": 4}, {"remat": "attention"}, 1),
    "packed rows": ({"fsdp": 4}, {"remat": "full"}, 4),
    "fsdp, heads exchanged": ({"fsdp": 2, "sequence": 2}, {"remat": "full"}, 1),
    "fsdp, tensor": ({"fsdp": 2, "tensor": 2}, {"remat": "none"}, 1),
    "ring": ({"sequence": 4, "ring": 4}, {"remat": "full"}, 1),
}


def program(sizes, model, samples):
    """The text of a training step."""
    mesh = make_mesh(**sizes)
    config = settings({}, {"compute_dtype": "bfloat16", **model})
    data = dataclasses.replace(config.data, row_tokens=4096, samples_per_row=samples)
    config = dataclasses.replace(config, data=data)
    load = Load(rows=8, tokens=4096, samples=samples, text_tokens=16)
    traced = train_step(config, mesh).trace(abstract_state(config, mesh), abstract_batch(config, load, mesh))
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def found(text):
    arrays = re.findall(r"tensor<((?:\d+x)+)\w+>", text)
    return {
        "forward": len(re.findall(r"@__cudnn\$fmhaSoftmax\(", text)),
        "backward": len(re.findall(r"@__cudnn\$fmhaSoftmaxBackward\(", text)),
        "largest": max(math.prod(int(size) for size in one.split("x") if size) for one in set(arrays)),
    }


def main():
    jax.default_backend = lambda: "gpu"
    cudnn.on_cuda = lambda: True
    fused_attention_stablehlo.check_cudnn_version = lambda: 91_000
    print(json.dumps({name: found(program(*mesh)) for name, mesh in MESHES.items()}))


if __name__ == "__main__":
    main()
