"""A setting that is one of several kinds of thing, each with the settings of that kind alone.

In: a base class, such as `SourceConfig`, and a subclass for each kind. Out: `kinds`, which finds a subclass by the name
that configurations and flags give it, and JSON in which that name stands as "kind" beside the settings.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from lumina_jax.config.section import Section, require
from lumina_jax.documents import forget_types


@dataclass(frozen=True, kw_only=True)
class Choice(Section):
    """One of several kinds. A subclass that defines `kind` can be chosen from then on, wherever it is defined."""

    kind: str = ""
    """The name of this kind."""
    kinds: ClassVar[dict[str, Any]] = {}
    """The class of every kind, by the name of the kind."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if Choice in cls.__bases__:
            cls.kinds = {}
        elif vars(cls).get("kind"):
            cls.kinds[cls.kind] = cls
            forget_types()

    def __post_init__(self) -> None:
        super().__post_init__()
        found = self.kinds.get(self.kind)
        require(found is type(self), f"{type(self).__name__} is not a kind; choose one of {self.choices()}")

    def __str__(self) -> str:
        return f"{self.kind} ({', '.join(f'{name} {getattr(self, name)}' for name in self.setting_names())})"

    @classmethod
    def choices(cls) -> str:
        """Every kind with its class, for error messages."""
        return ", ".join(f"{name!r} ({kind.__name__})" for name, kind in cls.kinds.items())

    @classmethod
    def setting_names(cls) -> list[str]:
        """The names of the settings, without the kind."""
        return [field.name for field in dataclasses.fields(cls) if field.name != "kind"]

    @classmethod
    def every_setting(cls) -> set[str]:
        """The names of the settings of all kinds."""
        return {name for one in cls.kinds.values() for name in one.setting_names()}

    @classmethod
    def kinds_with(cls, name: str) -> list[str]:
        """The kinds that have a setting."""
        return [kind for kind, one in cls.kinds.items() if name in one.setting_names()]

    @classmethod
    def __get_pydantic_core_schema__(cls, declared: Any, handler: Any) -> Any:
        """Where JSON may hold any kind, its "kind" says which."""
        from pydantic_core import core_schema

        if cls.kind:
            return handler(declared)
        return core_schema.tagged_union_schema(
            {name: handler.generate_schema(kind) for name, kind in cls.kinds.items()}, discriminator="kind"
        )
