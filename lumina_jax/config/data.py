"""The data of an experiment: where samples come from, what they are, and how they become rows of tokens."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from lumina_jax.config.choice import Choice
from lumina_jax.config.media import MediaConfig, PictureConfig
from lumina_jax.config.migration import check_current_names
from lumina_jax.config.section import Section, require, require_between
from lumina_jax.config.sources import EmojiConfig, SourceConfig

CHOICES: dict[str, type[Choice]] = {"source": SourceConfig, "media": MediaConfig}
"""The fields that hold one of several kinds. Flags and `replace` name the settings of a kind like those beside them."""

Same = TypeVar("Same", bound="Origin")


@dataclass(frozen=True, kw_only=True)
class Origin(Section):
    """A source, and what its samples are."""

    called: ClassVar[str] = "data."

    source: SourceConfig = field(default_factory=EmojiConfig)
    """Where samples come from."""
    media: MediaConfig = field(default_factory=PictureConfig)
    """What samples are."""
    modality: str | None = None
    """Which of the model's modalities the samples have; None: the first, model.modality."""

    def __new__(cls, **settings: Any) -> Any:
        check_current_names(cls.__name__, settings)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, base in CHOICES.items():
            value = getattr(self, name)
            require(isinstance(value, base), f"data.{name}={value!r} must be one of {base.choices()}")

    def replace(self: Same, **changed: Any) -> Same:
        """A copy with settings changed; those of source and media have the names of their flags.

        `data.replace(path="pictures", image_size=64)`; `data.replace(source="folder", path="pictures")` chooses another
        kind of source, which keeps the settings that both kinds have.

        Raises:
          ValueError: neither the source nor the media nor this section has such a setting.
        """
        chosen: dict[str, Any] = {}
        for name in CHOICES:
            given = changed.pop(name, getattr(self, name))
            before = getattr(self, name) if isinstance(given, str) else given
            kind = choice_named(name, given) if isinstance(given, str) else type(given)
            new = {setting: changed.pop(setting) for setting in kind.setting_names() if setting in changed}
            chosen[name] = kind(**(kept(before, kind) | new))
        for name in changed.keys() - {one.name for one in dataclasses.fields(self)}:
            raise ValueError(misplaced(name, {choice: one.kind for choice, one in chosen.items()}))
        return dataclasses.replace(self, **chosen, **changed)

    def settings(self) -> dict[str, Any]:
        """Each setting under the name of its flag, those of source and media included."""
        found: dict[str, Any] = {}
        for name, value in super().settings().items():
            found |= {name: value.kind} | kept(value, type(value)) if name in CHOICES else {name: value}
        return found


def choice_named(name: str, kind: str) -> type[Choice]:
    """The class of a kind of source or media.

    Raises:
      ValueError: there is no such kind.
    """
    base = CHOICES[name]
    require(kind in base.kinds, f"data.{name}={kind!r} must be one of {', '.join(map(repr, base.kinds))}")
    return base.kinds[kind]


def kept(before: Choice, kind: type[Choice]) -> dict[str, Any]:
    """The settings of `before` that `kind` has, too."""
    common = [name for name in kind.setting_names() if name in before.setting_names()]
    return {name: getattr(before, name) for name in common}


def misplaced(name: str, kinds: Mapping[str, str], section: str = "data") -> str:
    """Why a section with these kinds of source and media has no setting of that name."""
    for choice, base in CHOICES.items():
        if having := base.kinds_with(name):
            here, others = (
                ", ".join(choice_named(choice, kinds[choice]).setting_names()),
                " or ".join(map(repr, having)),
            )
            return (
                f"{section}.{name} is a setting of {section}.{choice}={others}, but {section}.{choice} is "
                f"{kinds[choice]!r}, whose settings are {here}; choose the kind with it, as in --{section}.{choice} "
                f"{having[0]}"
            )
    return f"{section} has no setting {name!r}"


@dataclass(frozen=True, kw_only=True)
class Part(Origin):
    """One source of a mixture."""

    weight: float = 1.0
    """Its share of the samples, relative to those of the other parts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            1e-9 <= self.weight <= 1e9,
            f"the weight {self.weight} of a part of data.mixture must be positive, from 1e-9 to 1e9",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig(Origin):
    """Where the examples come from, and how they become rows of tokens."""

    mixture: tuple[Part, ...] = ()
    """Several sources whose samples share the rows; source, media and modality above are then those of each part."""
    batch_rows: int = 32
    """Rows of tokens in a batch, over all devices."""
    row_tokens: int | None = None
    """Tokens in a row; None: as many as the longest sample needs. More packs several samples into a row."""
    samples_per_row: int = 1
    """The most samples that share a row."""
    caption_dropout: float = 0.1
    """Share of captions replaced by the empty one, for classifier-free guidance."""
    workers: int = 0
    """Processes that read and decode; 0: threads of this process."""
    prefetch: int = 16
    """Examples (or batches) held ready."""
    bad_samples: int = 100
    """Unreadable samples that are skipped, each reported by name, before the run stops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_rows", "samples_per_row", "prefetch"):
            require(getattr(self, name) >= 1, f"data.{name}={getattr(self, name)} must be at least 1")
        require_between("data.workers", self.workers, 0, 1024, "each is a process")
        require_between("data.prefetch", self.prefetch, 1, 65_536, "each is kept in memory")
        require(
            self.row_tokens is None or self.row_tokens >= 1,
            f"data.row_tokens={self.row_tokens} must be at least 1, or None for as many as a sample needs",
        )
        require(self.bad_samples >= 0, f"data.bad_samples={self.bad_samples} must not be negative")
        require(
            0 <= self.caption_dropout < 1,
            f"data.caption_dropout={self.caption_dropout} must lie in [0, 1); 0.1 is usual",
        )
        require(
            self.samples_per_row == 1 or self.row_tokens is not None,
            f"data.samples_per_row={self.samples_per_row} needs data.row_tokens, the length of a packed row",
        )

    @property
    def parts(self) -> "tuple[DataConfig, ...]":
        """These settings with each source of the mixture in turn; without a mixture, these alone."""
        names = [one.name for one in dataclasses.fields(Origin)]
        return tuple(
            dataclasses.replace(self, mixture=(), **{name: getattr(part, name) for name in names})
            for part in self.mixture
        ) or (self,)
