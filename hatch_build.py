"""What hatch adds to a wheel: a copy of configs/. An editable install reads the folder itself, and gets no copy."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Hook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"]["configs"] = "lumina_jax/configs"
