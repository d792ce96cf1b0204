"""Next-DiT against diffusers on this machine's CPU, with the same weights: python benchmarks/cpu_vs_torch.py

Contenders: diffusers' LuminaNextDiT2DModel, eager and compiled, and ours with the settings that train.py makes on CPU.
Tasks: one forward pass; a training step (forward, backward, AdamW); 20 Euler steps with guidance. Each round runs every
contender in a fresh process, one after the other; the table shows medians over all rounds, and ratios to torch eager:
of the time that passed, and of the time that the processors computed for the process. The second leaves out what the
kernel did, such as handing back memory that it had taken, whose page faults are in the third.
Before anything is timed, the two float32 forward passes are compared. Needs: pip install -e '.[convert]'.
"""

import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from lumina_jax.launch import KEEP_MEMORY

CONTENDERS = ("torch eager", "torch compile", "lumina_jax")
TASKS = ("forward", "train", "sample")
TYPES = ("float32", "bfloat16")
STEPS, GUIDANCE, THREADS = 20, 4.0, 2
REPEATS = {"forward": 5, "train": 3, "sample": 1}


class Measure(NamedTuple):
    """Of one repetition: seconds that passed, seconds that processors computed, page faults."""

    seconds: float
    computing: float
    faults: float


@dataclass(frozen=True)
class Size:
    """The model and its inputs: 24M parameters, 8 latents of 32 x 32 x 4 (256 tokens) with 32 text tokens each."""

    layers: int = 6
    heads: int = 8
    width: int = 512
    text_width: int = 384
    side: int = 32
    text_tokens: int = 32
    batch: int = 8


@dataclass(frozen=True)
class Arguments:
    rounds: int = 3
    """Processes of each contender for each row of the table."""
    tasks: tuple[str, ...] = TASKS
    types: tuple[str, ...] = TYPES
    contenders: tuple[str, ...] = CONTENDERS
    size: Size = Size()


def main(arguments: Arguments) -> None:
    packages = ("torch", "diffusers", "jax", "jaxlib", "flax", "optax")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages), f"{THREADS} threads", sep=", ")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "size.json").write_text(json.dumps(vars(arguments.size)))
        _run(work, "torch eager", "weights", "float32")
        _check(work, arguments.contenders)
        print(f"\n{'':28}" + "".join(f"{name:>16}" for name in arguments.contenders) + "   ratio to the first")
        for task in arguments.tasks:
            for kind in arguments.types:
                measured: dict[str, list[Measure]] = {name: [] for name in arguments.contenders}
                for _ in range(arguments.rounds):
                    for name in arguments.contenders:
                        measured[name] += [Measure(*values) for values in _run(work, name, task, kind)]
                _print_rows(f"{task} {kind}", list(measured.values()))


def _print_rows(title: str, measured: list[list[Measure]]) -> None:
    """A row for each quantity, with the median of each contender."""
    for field in Measure._fields:
        medians = [statistics.median(getattr(measure, field) for measure in measures) for measures in measured]
        if field == "faults":
            cells = "".join(f"{median:16.0f}" for median in medians)
        else:
            cells = "".join(f"{median:9.3f} ({median / medians[0]:4.2f})" for median in medians)
        print(f"{title:18}{field:10}{cells}", flush=True)
        title = ""


def _run(work: Path, contender: str, task: str, kind: str) -> list[list[float]]:
    """What each repetition took, in a process of its own."""
    threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"), "JAX_PLATFORMS": "cpu"}
    environment = {**os.environ, **threads, **cache, **(KEEP_MEMORY if contender == "lumina_jax" else {})}
    command = [sys.executable, __file__, "--worker", str(work), contender, task, kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{contender}, {task} {kind} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _check(work: Path, contenders: tuple[str, ...]) -> None:
    """Raises SystemExit when the contenders' float32 outputs differ."""
    outputs = {}
    for name in contenders:
        _run(work, name, "output", "float32")
        outputs[name] = np.load(work / "output.npy")
    first, *others = outputs.values()
    worst = max((float(np.abs(other - first).max() / np.abs(first).max()) for other in others), default=0.0)
    print(f"forward passes agree to a relative {worst:.1e}", flush=True)
    if worst > 1e-4:
        raise SystemExit("the models are not the same")


def worker(work: Path, contender: str, task: str, kind: str) -> list[Measure]:
    size = Size(**json.loads((work / "size.json").read_text()))
    if task == "weights":
        torch_model(size, None).save_pretrained(work / "transformer")
        return []
    make = jax_task if contender == "lumina_jax" else torch_task
    run = make(work, size, task, kind, **({} if contender == "lumina_jax" else {"compiled": "compile" in contender}))
    if task == "output":
        np.save(work / "output.npy", run())
        return []
    return list(_measures(run, REPEATS[task]))


def _measures(run: Callable[[], Any], repeats: int) -> Iterator[Measure]:
    """After one run that compiles and one that warms up."""
    for number in range(repeats + 2):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        run()
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        if number >= 2:
            yield Measure(seconds, after.ru_utime - before.ru_utime, after.ru_minflt - before.ru_minflt)


def inputs(size: Size, samples: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "x": random.standard_normal((samples, 4, size.side, size.side)).astype(np.float32),
        "target": random.standard_normal((samples, 4, size.side, size.side)).astype(np.float32),
        "t": random.uniform(size=samples).astype(np.float32),
        "text": random.standard_normal((samples, size.text_tokens, size.text_width)).astype(np.float32),
    }


def torch_model(size: Size, folder: Path | None) -> Any:
    """diffusers' model: new, with no parameter zero, or the one in a folder."""
    import torch
    from diffusers import LuminaNextDiT2DModel

    if folder is not None:
        return LuminaNextDiT2DModel.from_pretrained(folder)
    torch.manual_seed(0)
    model = LuminaNextDiT2DModel(
        sample_size=size.side, hidden_size=size.width, num_layers=size.layers, num_attention_heads=size.heads,
        num_kv_heads=size.heads, cross_attention_dim=size.text_width, learn_sigma=True,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def torch_task(work: Path, size: Size, task: str, kind: str, *, compiled: bool) -> Callable[[], Any]:
    import torch
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    torch.set_num_threads(THREADS)
    dtype = getattr(torch, kind)
    model = torch_model(size, work / "transformer").train(task == "train")
    guided = task == "sample"
    given = {name: torch.from_numpy(array) for name, array in inputs(size, size.batch).items()}
    mask = torch.ones(given["text"].shape[:2], dtype=torch.bool)
    rotary = get_2d_rotary_pos_embed_lumina(size.width // size.heads, 384, 384)
    network = torch.compile(model) if compiled else model
    # Training keeps float32 parameters and computes in `kind`; inference holds the parameters in `kind`, as users do.
    if task != "train":
        model.to(dtype)
        given = {name: array.to(dtype) for name, array in given.items()}

    def call(x: Any, t: Any, text: Any, mask: Any) -> Any:
        with torch.autocast("cpu", dtype, enabled=task == "train" and kind != "float32"):
            output = network(x, t, text, mask, image_rotary_emb=rotary, cross_attention_kwargs={}).sample
        return output.chunk(2, dim=1)[0]

    if task == "train":
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)

        def train() -> None:
            loss = ((call(given["x"], given["t"], given["text"], mask).float() - given["target"]) ** 2).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        return train

    @torch.no_grad()
    def infer() -> np.ndarray:
        if not guided:
            return call(given["x"], given["t"], given["text"], mask).float().numpy()
        x, text = given["x"][: size.batch // 2], given["text"]
        for step in range(STEPS):
            t = torch.full((size.batch,), step / STEPS, dtype=dtype)
            with_text, without_text = call(torch.cat([x, x]), t, text, mask).chunk(2)
            x = x + (without_text + GUIDANCE * (with_text - without_text)) / STEPS
        return x.float().numpy()

    return infer


def jax_task(work: Path, size: Size, task: str, kind: str) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp
    from einops import rearrange
    from flax import nnx

    from lumina_jax.config import Config, DataConfig, PictureConfig, SampleConfig
    from lumina_jax.generation import sampler
    from lumina_jax.generation.extrapolation import Extent
    from lumina_jax.interop.layouts import LAYOUTS, load_model
    from lumina_jax.tokens import TextFeatures, tokens_of, unpatchify
    from lumina_jax.weights.files import TensorFiles

    layout, tensors = LAYOUTS["diffusers"], TensorFiles(work / "transformer")
    config = layout.read_config(json.loads((work / "transformer" / "config.json").read_text()), tensors)
    model = load_model(layout, config, tensors, compute_dtype=kind, remat="none", unroll=config.layers)
    config = model.config
    graph, state = nnx.split(model)
    parameters = nnx.to_pure_dict(state)
    given = inputs(size, size.batch)
    latents = rearrange(jnp.asarray(given["x"]), "b c h w -> b 1 h w c")
    tokens, grid = tokens_of(latents, patch_size=2, nextline=False, nextframe=False)
    text = TextFeatures(jnp.asarray(given["text"]), jnp.ones(given["text"].shape[:2], jnp.int32))
    t = jnp.asarray(given["t"])[:, None]
    if task == "train":
        return _jax_training(graph, parameters, tokens, t, text, given["target"])
    if task == "sample":
        settings = SampleConfig(solver="euler", steps=STEPS, guidance=GUIDANCE)
        half = size.batch // 2
        condition, null = (
            jax.tree.map(lambda x, part=part: x[part], text) for part in (slice(half), slice(half, None))
        )
        whole = sampler.Task(
            graph,
            Config(model=config, data=DataConfig(media=PictureConfig(image_size=size.side))),
            trained=Extent(1, size.side, size.side),
        )
        draw = jax.jit(lambda *given: sampler.draw(whole, settings, *given))
        prompt = sampler.Prompt(condition, null, jnp.float32(GUIDANCE), jnp.float32(1.0))
        keys = jax.random.split(jax.random.key(0), half)
        return lambda: np.asarray(draw(parameters, latents[:half], keys, prompt))
    forward = jax.jit(lambda p, x, t: unpatchify(nnx.merge(graph, p)(tokens._replace(patches=x), t, text), grid, 2))
    return lambda: np.asarray(rearrange(forward(parameters, tokens.patches, t), "b 1 h w c -> b c h w"))


def _jax_training(graph: Any, parameters: Any, tokens: Any, t: Any, text: Any, target: np.ndarray) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp
    import optax
    from einops import rearrange
    from flax import nnx

    from lumina_jax.tokens import tokens_of

    wanted = tokens_of(
        rearrange(jnp.asarray(target), "b c h w -> b 1 h w c"), patch_size=2, nextline=False, nextframe=False
    )[0].patches
    transform = optax.adamw(1e-4, weight_decay=0.0)

    def step(parameters: Any, moments: Any) -> tuple[Any, Any, Any]:
        def mean_square(parameters: Any) -> Any:
            return jnp.mean((nnx.merge(graph, parameters)(tokens, t, text) - wanted) ** 2)

        loss, gradients = jax.value_and_grad(mean_square)(parameters)
        updates, moments = transform.update(gradients, moments, parameters)
        return optax.apply_updates(parameters, updates), moments, loss

    compiled = jax.jit(step, donate_argnums=(0, 1))
    held = [parameters, jax.jit(transform.init)(parameters)]

    def train() -> None:
        *held[:], loss = compiled(*held)
        loss.block_until_ready()

    return train


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(worker(Path(sys.argv[2]), *sys.argv[3:])))
    else:
        main(tyro.cli(Arguments, description=__doc__))
