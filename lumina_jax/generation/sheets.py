"""Sheets of pictures: those a training run draws as it goes, and the parts that sampling shares with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import UInt8

from lumina_jax.config import Config
from lumina_jax.encoders.text import TextEncoder, text_encoder
from lumina_jax.generation.media import contact_sheet, save_png
from lumina_jax.generation.pipeline import Pipeline, Shape
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.run import run_folder

SHEET_BATCH = 16


class ImageWriter(Protocol):
    """Where a sheet is shown besides its file."""

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None: ...


def encoder_of(config: Config) -> TextEncoder | None:
    """The text encoder of a configuration; None for a label-conditional model.

    Raises:
      ValueError: it makes features of another width than the model takes.
    """
    if config.model.conditioning != "text":
        return None
    encoder = text_encoder(config.text.encoder, config.text.max_tokens)
    if encoder.width != config.model.text_width:
        raise ValueError(
            f"model.text_width={config.model.text_width} must be the width {encoder.width} of the text encoder "
            f"{config.text.encoder!r}"
        )
    return encoder


def new_pipeline(config: Config, parameters: dict[str, Any] | None, encoder: TextEncoder | None) -> Pipeline:
    """A pipeline for a model of this configuration; `parameters` may follow later."""
    return Pipeline(config, abstract_model(config.model)[0], parameters or {}, encoder)


def sheet_writer(
    config: Config, encoder: TextEncoder | None, writer: ImageWriter
) -> Callable[[int, dict[str, Any]], None]:
    """A function that draws `run.sample_prompts` with given parameters into samples/ of the run's folder."""
    pipeline = new_pipeline(config, None, encoder)
    prompts, folder = config.run.sample_prompts, run_folder(config) / "samples"
    shape = Shape(config.data.image_size, config.data.image_size)

    def show(step: int, parameters: dict[str, Any]) -> None:
        pipeline.parameters = parameters
        batch = min(SHEET_BATCH, len(prompts))
        pictures = pipeline(prompts, config.sample, seed=config.run.seed, shape=shape, batch=batch)
        if jax.process_index() == 0:
            sheet = contact_sheet(pictures, prompts)
            save_png(Path(folder) / f"step_{step:07}.png", sheet, {"step": step, "prompts": list(prompts)})
            writer.image(step, "samples", sheet)

    return show
