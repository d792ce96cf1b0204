"""Time one training step on this machine: python benchmarks/train_step.py

The model: a text-conditional Flag-DiT of 24M parameters, batch 8, 272 picture tokens and 32 text tokens, AdamW and the
moving average, float32. Each round times a few steps in a fresh process with the allocator as the system has it, then
with the settings that train.py makes on CPU (`lumina_jax/launch.py`); medians of all rounds and their ratio are
printed.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import tyro

from lumina_jax.launch import KEEP_MEMORY


@dataclass(frozen=True)
class Arguments:
    rounds: int = 3
    """Processes of each kind, in turn."""
    steps: int = 5
    """Timed steps of a process, after one that compiles and one that warms up."""


def main(arguments: Arguments) -> None:
    times: dict[str, list[float]] = {"system allocator": [], "memory kept": []}
    for number in range(arguments.rounds):
        for name, settings in zip(times, ({}, KEEP_MEMORY)):
            clean = {key: value for key, value in os.environ.items() if key not in KEEP_MEMORY}
            environment = clean | settings | {"PYTHONPATH": os.pathsep.join(sys.path)}
            command = [sys.executable, __file__, "--worker", str(arguments.steps)]
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            times[name] += json.loads(done.stdout)
            print(f"round {number + 1}, {name}: {statistics.median(times[name]):.3f} s a step so far", flush=True)
    system, kept = (statistics.median(values) for values in times.values())
    print(f"\n{'':18} {'median':>8} {'fastest':>8}   seconds a step")
    for name, values in times.items():
        print(f"{name:18} {statistics.median(values):8.3f} {min(values):8.3f}")
    print(f"memory kept / system allocator = {kept / system:.3f}")


def worker(steps: int) -> list[float]:
    """Seconds of each timed step."""
    import jax
    import numpy as np

    from lumina_jax.config import Config, DataConfig, ModelConfig
    from lumina_jax.parallel.mesh import make_mesh
    from lumina_jax.tokens import TextFeatures, tokens_of
    from lumina_jax.training.state import create_state
    from lumina_jax.training.step import TrainBatch, train_step

    model = ModelConfig(layers=6, heads=8, width=512, text_width=384, compute_dtype="float32", remat="none")
    config, mesh = Config(model=model, data=DataConfig(batch_rows=8)), make_mesh(devices=jax.devices()[:1])
    random = np.random.default_rng(0)
    tokens, _ = tokens_of(
        random.standard_normal((8, 1, 32, 32, 4)).astype(np.float32), patch_size=2, nextline=True, nextframe=True
    )
    text = TextFeatures(random.standard_normal((8, 32, 384)).astype(np.float32), np.ones((8, 32), np.int32))
    batch = jax.device_put(TrainBatch(tokens, text, np.ones((8, 1), np.float32)))
    state, step = create_state(config, mesh), train_step(config, mesh)
    millions = sum(leaf.size for leaf in jax.tree.leaves(state.parameters)) / 1e6
    print(f"{millions:.1f}M parameters, {tokens.kinds.shape[1]} tokens", file=sys.stderr)
    seconds = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(worker(int(sys.argv[2]))))
    else:
        main(tyro.cli(Arguments, description=__doc__))
