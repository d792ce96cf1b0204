"""Configurations of before sources and media had classes: one flat section of data, in which every setting stood.

In: the content of an older config.json, or the arguments of an older Python file. Out: the content as it is written
now, or an error that shows the code as it is written now.
"""

from typing import Any

from lumina_jax.config.choice import Choice
from lumina_jax.config.media import MediaConfig
from lumina_jax.config.sources import SourceConfig

SOURCE_SETTINGS = frozenset(
    {"path", "split", "limit", "emoji_names", "image_key", "caption_key", "label_key", "data_dir"}
)
MEDIA_SETTINGS = frozenset(
    {"image_size", "crop", "frames", "frame_rate", "grid_columns"}
    | {"seconds", "sample_rate", "pitch", "seconds_per_phoneme", "pause"}
)
"""The settings that stood in the section itself."""


def migrated(content: Any) -> Any:
    """The content of a config.json as it is written now; what is not an older one stays as it is."""
    if not (isinstance(content, dict) and isinstance(content.get("data"), dict)):
        return content
    model, data = content.get("model"), content["data"]
    first = model.get("modality") if isinstance(model, dict) else None
    if isinstance(data.get("mixture"), list):
        parts = [_nested(part, first) if isinstance(part, dict) else part for part in data["mixture"]]
        data = data | {"mixture": parts}
    return content | {"data": _nested(data, first)}


def check_current_names(name: str, settings: dict[str, Any]) -> None:
    """Refuse the arguments that a section of data had before, with the code that stands for them now.

    Raises:
      ValueError: one of them is given.
    """
    if not _is_flat(settings):
        return
    source, media, others = _parts(settings, None)
    arguments = [f"source={_code(SourceConfig, source)}"] if "source" in settings or len(source) > 1 else []
    arguments += [f"media={_code(MediaConfig, media)}"] if len(media) > 1 else []
    arguments += [f"{key}={value!r}" for key, value in others.items()]
    raise ValueError(f"sources and media have classes of their kind: write {name}({', '.join(arguments)})")


def _is_flat(settings: dict[str, Any]) -> bool:
    return isinstance(settings.get("source"), str) or bool(settings.keys() & (SOURCE_SETTINGS | MEDIA_SETTINGS))


def _nested(settings: dict[str, Any], first: str | None) -> dict[str, Any]:
    """A section of data with its source and media nested.

    Args:
      first: the first modality of the model.
    """
    if not _is_flat(settings):
        return settings
    source, media, others = _parts(settings, first)
    return {"source": source, "media": media} | others


def _parts(settings: dict[str, Any], first: str | None) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The settings of the source, those of the media, each with its kind, and the others.

    What a kind does not have said nothing, and is left out.
    """
    kinds = {"source": settings.get("source", "emoji"), "media": _media_kind(settings, first)}
    source = _chosen(SourceConfig, kinds["source"], SOURCE_SETTINGS, settings)
    media = _chosen(MediaConfig, kinds["media"], MEDIA_SETTINGS, settings)
    gone = SOURCE_SETTINGS | MEDIA_SETTINGS | {"source"}
    return source, media, {name: value for name, value in settings.items() if name not in gone}


def _media_kind(settings: dict[str, Any], first: str | None) -> str:
    """What the samples were. Clips and views were told apart by what the source holds; here the modality tells."""
    if settings.get("seconds") is not None:
        return "sounds"
    if settings.get("grid_columns") is not None:
        return "view-grid"
    if settings.get("frames", 1) != 1 or settings.get("frame_rate") is not None:
        return "views" if (settings.get("modality") or first) == "views" else "clips"
    return "pictures"


def _chosen(base: type[Choice], kind: Any, names: frozenset[str], settings: dict[str, Any]) -> dict[str, Any]:
    known = base.kinds[kind].setting_names() if kind in base.kinds else names
    return {"kind": kind} | {name: settings[name] for name in settings if name in names and name in known}


def _code(base: type[Choice], settings: dict[str, Any]) -> str:
    """The Python expression for the settings of a kind."""
    known = base.kinds.get(settings["kind"])
    arguments = ", ".join(f"{name}={value!r}" for name, value in settings.items() if name != "kind")
    return f"{known.__name__ if known else base.__name__}({arguments})"
