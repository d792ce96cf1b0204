"""The sheets of samples that a training run draws as it goes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from lumina_jax.config import Config
from lumina_jax.encoders.text import TextEncoder
from lumina_jax.failures import written_to
from lumina_jax.generation.pipeline import new_pipeline
from lumina_jax.generation.request import check_request
from lumina_jax.modalities import modality_of
from lumina_jax.modalities.files.contact_sheet import contact_sheet
from lumina_jax.modalities.files.png import save_png
from lumina_jax.models.adapters import without_adapters
from lumina_jax.run import run_folder

SHEET_BATCH = 16
PAIRED_COLUMNS = 4
"""Of a sheet that shows two samples of each prompt side by side; an even number."""


@runtime_checkable
class ImageWriter(Protocol):
    """Where a sheet is shown besides its file."""

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None: ...


def check_previews(config: Config) -> None:
    """Raises ValueError unless `run.sample_prompts` can be drawn with the settings in `sample`; nothing is computed."""
    if config.run.sample_prompts:
        modality = modality_of(config)
        shapes = [modality.shape_for(prompt, config.text) for prompt in config.run.sample_prompts]
        check_request(config, config.sample, config.run.sample_prompts, shapes, modality.patch_extent)


def sheet_writer(
    config: Config,
    encoder: TextEncoder | None,
    writer: ImageWriter | None,
    autoencoders: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
) -> Callable[[int, dict[str, Any], dict[str, Any] | None], None]:
    """A function that draws `run.sample_prompts` with given parameters into samples/ of the run's folder. Where there
    are parameters of a base, too, a sheet shows beside each sample what they draw from the same prompt and noise.

    All processes of a job draw, since each has a part of the parameters; the one with a writer writes. The
    parameters lie on `mesh` as in training, and its devices share the samples; None: on one device.
    """
    pipeline = new_pipeline(config, None, encoder, autoencoders, mesh)
    prompts, folder = config.run.sample_prompts, run_folder(config) / "samples"
    modality = pipeline.modality()
    shape = [modality.shape_for(prompt, config.text) for prompt in prompts]

    batch = min(max(SHEET_BATCH, pipeline.least_batch), len(prompts))
    before: list[Any] = []

    def drawn(parameters: dict[str, Any]) -> list[Any]:
        pipeline.parameters = parameters
        return list(pipeline(prompts, config.sample, seed=config.run.seed, shape=shape, batch=batch))

    def show(step: int, parameters: dict[str, Any], base: dict[str, Any] | None = None) -> None:
        samples, captions, columns = drawn(parameters), list(prompts), None
        if base is not None:
            if not before:  # the base never changes
                before.extend(drawn(without_adapters(parameters, base)))
            samples = [sample for pair in zip(before, samples) for sample in pair]
            captions = [caption for prompt in prompts for caption in (f"{prompt} (base)", prompt)]
            columns = PAIRED_COLUMNS
        if writer is not None:
            sheet = contact_sheet([modality.preview(sample) for sample in samples], captions, columns=columns)
            with written_to(folder, "a sheet", "run.root"):
                save_png(Path(folder) / f"step_{step:07}.png", sheet, {"step": step, "prompts": list(prompts)})
            writer.image(step, "samples", sheet)

    return show
