"""The sources by name, as `data.source` chooses them."""

from collections.abc import Callable

from lumina_jax.config import DataConfig, ModelConfig
from lumina_jax.data.emoji_source import EMBEDDED, EmojiSource
from lumina_jax.data.example import Source
from lumina_jax.data.file_sources import FolderSource, LuminaSource


def open_source(data: DataConfig, model: ModelConfig) -> Source:
    """The source that the configuration names; no picture is read.

    Raises:
      ValueError: it is not there, or not of the expected form.
    """
    return OPENERS[data.source](data, model)


def _emoji(data: DataConfig, model: ModelConfig) -> Source:
    return EmojiSource(data.emoji_names, data.split, data.image_size, folder=data.path or EMBEDDED)


def _folder(data: DataConfig, model: ModelConfig) -> Source:
    return FolderSource(data.path)


def _lumina(data: DataConfig, model: ModelConfig) -> Source:
    return LuminaSource(data.path)


def _tfds(data: DataConfig, model: ModelConfig) -> Source:
    from lumina_jax.data.tfds_source import TfdsSource  # only this source pays for importing tensorflow-datasets

    is_text = model.conditioning == "text"
    return TfdsSource(
        data.path,
        data.split,
        image_key=data.image_key,
        caption_key=data.caption_key if is_text else None,
        label_key=None if is_text else data.label_key,
        data_dir=data.data_dir,
    )


OPENERS: dict[str, Callable[[DataConfig, ModelConfig], Source]] = {
    "emoji": _emoji,
    "folder": _folder,
    "lumina": _lumina,
    "tfds": _tfds,
}
