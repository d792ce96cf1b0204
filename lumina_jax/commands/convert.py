"""lumina convert SRC DST --from LAYOUT --to LAYOUT: weights from one layout to another.

lumina: the authors' checkpoints, consolidated.00-of-01 with model_args.pth or config.json beside it, or one file.
diffusers: a pipeline or its transformer/. jax: our own; as a source also the folder of a run.
The tensors go through memory one at a time, and DST appears when all is written.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from etils import epath

from lumina_jax.failures import reported
from lumina_jax.run import checkpoints_of

if TYPE_CHECKING:
    from lumina_jax.config import Config
    from lumina_jax.interop.sources import Source

LARGEST_SAMPLE = 2**16
LayoutName = Literal["lumina", "diffusers", "jax"]


@dataclass(frozen=True)
class Arguments:
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Folder or file to read, or a repository of the Hugging Face hub that was downloaded before, as owner/name."""
    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Folder to write; it must not exist, or be empty."""
    source_layout: Annotated[LayoutName, tyro.conf.arg(name="from")]
    """Layout of SRC."""
    layout: Annotated[LayoutName, tyro.conf.arg(name="to")]
    """Layout of DST."""
    dry_run: bool = False
    """Print what would become of each parameter, and write nothing."""
    weights: Literal["ema", "params"] | None = None
    """Moving average or parameters as trained, where SRC holds both; default: the average where there is one."""
    step: int | None = None
    """Checkpoint of a run; default: the newest."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type to write; default: the one that is stored."""
    shard_gb: float = 5.0
    """Files larger than this are split (never in the lumina layout, whose readers take one file)."""
    sample_size: int | None = None
    """Side of the latents of training, which a diffusers pipeline draws by default and compares with; default: 128."""
    overwrite: bool = False
    """Replace an earlier export in DST; only one of ours that nobody changed."""
    components: Path | None = None
    """A folder, or downloaded repository, whose vae/, text_encoder/ and tokenizer/ are copied into a diffusers
    pipeline."""


def main(words: Sequence[str]) -> int:
    arguments = tyro.cli(Arguments, args=words, prog="lumina convert", description=__doc__)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with reported():
        convert(arguments)
    return 0


def convert(arguments: Arguments) -> None:
    """Check everything, then write.

    Raises:
      ValueError, OSError: something is wrong with the source or the destination; nothing was written.
    """
    from lumina_jax.interop.export import mapping_table, plan_export, write_export
    from lumina_jax.interop.sources import found
    from lumina_jax.weights.folders import unfinished
    from lumina_jax.weights.writer import total_bytes

    if not 0 < arguments.shard_gb < math.inf:
        raise ValueError(f"--shard-gb {arguments.shard_gb} must be a positive number")
    if arguments.sample_size is not None and not 0 < arguments.sample_size <= LARGEST_SAMPLE:
        raise ValueError(f"--sample-size {arguments.sample_size} must be from 1 to {LARGEST_SAMPLE}")
    components = arguments.components and found(arguments.components, "pipeline")
    arguments = dataclasses.replace(arguments, source=found(arguments.source, "checkpoint"), components=components)
    _check_apart(arguments)
    source = opened(arguments)
    export = plan_export(source, arguments.layout, arguments.dtype, arguments.sample_size)
    total, count = total_bytes(export.plan), sum(tensor.size for tensor in export.plan)
    for line in (f"from {source.origin}", *export.source.notes):
        print(line)
    if arguments.dry_run:
        print_table(mapping_table(export), arguments.layout)
    print(f"{count:,} parameters in {len(export.plan)} tensors, {total / 1e9:.3f} GB")
    if arguments.dry_run:
        return
    for path in unfinished(arguments.destination):
        print(f"{path} was left by a conversion that was killed; remove it, unless that one still runs")
    with progress_bar(total) as progress:
        write_export(
            export,
            arguments.destination,
            shard_bytes=int(arguments.shard_gb * 1e9),
            overwrite=arguments.overwrite,
            components=components,
            progress=progress,
        )
    print(f"written to {arguments.destination}")


def opened(arguments: Arguments) -> "Source":
    """The source that the arguments name: a checkpoint, or a run."""
    from lumina_jax.interop.sources import open_source

    folder = arguments.source
    if arguments.source_layout == "jax" and epath.Path(checkpoints_of(folder)).is_dir():
        return run_source(folder, arguments.step, arguments.weights or "ema", keeps_all=arguments.layout == "jax")
    if arguments.step is not None:
        raise ValueError(f"--step {arguments.step} needs the folder of a run, but {folder} is none")
    return open_source(folder, arguments.source_layout, arguments.weights)


def run_source(
    folder: Path, step: int | None, weights: Literal["ema", "params"], *, keeps_all: bool = True
) -> "Source":
    """A checkpoint of a run, read one parameter at a time.

    Args:
      keeps_all: False: leave out the [nextframe] token of a model that has learned single frames, which have none.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lumina_jax.config import PictureConfig
    from lumina_jax.interop.converted import parameter_shapes
    from lumina_jax.interop.sources import Source
    from lumina_jax.training.checkpoint import Checkpoints
    from lumina_jax.weights.tensors import ComputedTensors

    checkpoints = Checkpoints(checkpoints_of(folder), read_only=True)
    step = checkpoints.chosen(step)
    trained = checkpoints.restore_config(step)
    config, notes = trained.model, [trained_with(trained)]
    if not keeps_all and config.nextframe and all(isinstance(part.media, PictureConfig) for part in trained.data.parts):
        config = dataclasses.replace(config, nextframe=False)
        notes.append("left out: nextframe_token, which follows the frames of clips; the model has learned single ones")
    here = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    shapes = {name: (shape, np.dtype(np.float32)) for name, shape in parameter_shapes(config).items()}
    abstract = {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=here) for name, (shape, _) in shapes.items()}
    part = {"ema": "ema", "params": "parameters"}[weights]

    @functools.lru_cache(maxsize=1)
    def read(name: str) -> np.ndarray:
        return np.asarray(checkpoints.restore_subtree(step, part, {name: abstract[name]})[name])

    note = f"weights: {'the moving average (ema)' if weights == 'ema' else 'the parameters as trained (params)'}"
    origin = f"{folder.resolve().name} at step {step}, a run of lumina_jax"
    return Source(config, ComputedTensors(shapes, read), origin, (note, *notes))


def trained_with(config: "Config") -> str:
    """What somebody who draws with the weights must know, and no tensor tells."""
    media = config.data.media
    settings = {
        "flow.path": config.flow.path,
        "flow.prediction": config.flow.prediction,
        "data.media": media.kind,
        **{f"data.{name}": getattr(media, name) for name in media.setting_names()},
        "vae.path": config.vae.path or "none (pixels)",
    }
    if config.model.conditioning == "text":
        settings["text.encoder"] = config.text.encoder
    return f"trained with {', '.join(f'{name}={value}' for name, value in settings.items())}"


def print_table(rows: Sequence[tuple[str, str, str, str, str]], layout: str) -> None:
    """What becomes of each parameter, a line each."""
    for source, ours, target, kind, steps in rows:
        names = list(dict.fromkeys((source, ours, target) if layout != "jax" else (source, ours)))
        print(f"{' -> '.join(names)}  {kind}  {steps}")


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int], object]]:
    """A function to be told of bytes written, which a terminal shows."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


def _check_apart(arguments: Arguments) -> None:
    """Nothing is written where something is read."""
    read, written = arguments.source.resolve(), arguments.destination.resolve()
    if read == written or written in read.parents or read in written.parents:
        raise ValueError(
            f"{arguments.destination} must lie apart from {arguments.source}, which is read meanwhile; name another "
            "folder"
        )
    if arguments.components is not None and arguments.components.resolve() in written.parents:
        raise ValueError(
            f"{arguments.destination} must not lie in {arguments.components}, which is copied; name another folder"
        )
