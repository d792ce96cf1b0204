"""Peak memory of conversions: python benchmarks/convert_memory.py

Makes a random Next-DiT checkpoint in the authors' layout with as many layers as the size asks for and converts it in
every direction, each time in a fresh process. Prints the most memory that each process held (ru_maxrss) against the
bound of 1.5 x the largest tensor of either layout of theirs + 1 GB, and whether the last weights are the first, bit for
bit.
"""

import filecmp
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from lumina_jax.config import ModelConfig
from lumina_jax.interop.converted import parameter_shapes
from lumina_jax.interop.layouts import LAYOUTS
from lumina_jax.models.presets import preset
from lumina_jax.weights.streams import plan_theirs
from lumina_jax.weights.tensors import ComputedTensors
from lumina_jax.weights.writer import Planned, write_tensors

WAYS = ("lumina", "jax", "diffusers", "lumina", "diffusers", "jax", "lumina")
WEIGHTS = "consolidated.00-of-01"
LAYER_BYTES = 72e6


@dataclass(frozen=True)
class Arguments:
    gigabytes: float = 2.2
    """Size of the checkpoint, in float32."""
    folder: Path | None = None
    """Where to put it, four times; default: the folder for temporary files."""


def main(arguments: Arguments) -> None:
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        plan = make_checkpoint(folder / "0", layers=max(2, round(arguments.gigabytes * 1e9 / LAYER_BYTES)))
        largest, total = max(tensor.bytes for tensor in plan), sum(tensor.bytes for tensor in plan)
        bound = 1.5 * largest + 1e9
        print(f"{total / 1e9:.2f} GB in {len(plan)} tensors, the largest {largest / 1e6:.1f} MB")
        print(f"bound: {bound / 1e9:.3f} GB")
        print("\n| from | to | peak, GB | of the bound | seconds |\n|---|---|---|---|---|")
        for number, (source, target) in enumerate(itertools.pairwise(WAYS)):
            words = [str(folder / f"{number}"), str(folder / f"{number + 1}"), "--from", source, "--to", target]
            seconds, peak = convert(words)
            print(f"| {source} | {target} | {peak / 1e9:.3f} | {peak / bound:.0%} | {seconds:.1f} |", flush=True)
        last = folder / f"{len(WAYS) - 1}"
        same = filecmp.cmp(folder / f"0/{WEIGHTS}.safetensors", last / f"{WEIGHTS}.safetensors", shallow=False)
        print(f"\nthe last weights are {'the first, bit for bit' if same else 'NOT THE FIRST'}")


def make_checkpoint(folder: Path, *, layers: int) -> list[Planned]:
    """Random weights in the authors' layout, written a layer at a time."""
    config: ModelConfig = preset(
        "Next-2B", layers=layers, width=1024, heads=16, text_width=512, pad_token=True, predict_sigma=True
    )
    shapes = {name: (shape, np.dtype(np.float32)) for name, shape in parameter_shapes(config).items()}
    layout = LAYOUTS["lumina"]
    zeros = ComputedTensors(shapes, lambda name: np.broadcast_to(np.float32(0), shapes[name][0]))
    plan = plan_theirs(zeros, layout.rules(config))
    generator = np.random.default_rng(0)

    def values(shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        yield generator.standard_normal(shape, np.float32)

    random = [tensor._replace(pieces=lambda shape=tensor.shape: values(shape)) for tensor in plan]
    folder.mkdir()
    write_tensors(folder, WEIGHTS, random, shard_bytes=None)
    (folder / "config.json").write_text(json.dumps(layout.write_config(config)))
    return random


def convert(words: list[str]) -> tuple[float, int]:
    """Seconds and peak bytes of one conversion."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "lumina_jax", "convert", *words]
    process = os.posix_spawn(sys.executable, command, os.environ)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
