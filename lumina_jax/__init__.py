"""Lumina-T2X in JAX: flow-based diffusion transformers from text to any modality.

    import lumina_jax as lumina

offers the names of `__all__`. Each is imported when it is first used, so that importing the package is instant. Other
modules are imported as usual, such as `from lumina_jax.config import FlowConfig`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lumina_jax.commands.train import train
    from lumina_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, RunConfig, SampleConfig
    from lumina_jax.config_files import load_config
    from lumina_jax.generation.pipeline import Pipeline
    from lumina_jax.held_out import held_out_loss
    from lumina_jax.models.flag_dit import FlagDiT
    from lumina_jax.models.presets import preset
    from lumina_jax.trained import open_run, save
    from lumina_jax.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "Config",
    "DataConfig",
    "FlagDiT",
    "ModelConfig",
    "OptimizerConfig",
    "Pipeline",
    "RunConfig",
    "SampleConfig",
    "Trainer",
    "held_out_loss",
    "load_config",
    "open_run",
    "preset",
    "save",
    "train",
]

_MODULES = {
    "lumina_jax.commands.train": ("train",),
    "lumina_jax.config": ("Config", "DataConfig", "ModelConfig", "OptimizerConfig", "RunConfig", "SampleConfig"),
    "lumina_jax.config_files": ("load_config",),
    "lumina_jax.generation.pipeline": ("Pipeline",),
    "lumina_jax.held_out": ("held_out_loss",),
    "lumina_jax.models.flag_dit": ("FlagDiT",),
    "lumina_jax.models.presets": ("preset",),
    "lumina_jax.trained": ("open_run", "save"),
    "lumina_jax.trainer": ("Trainer",),
}
"""Where each name of `__all__` is defined."""


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
