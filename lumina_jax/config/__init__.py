"""Every setting of an experiment, as frozen dataclasses that refuse what cannot work.

In: a Python file under `configs/` with `get_config() -> Config`, and command-line flags on top of it.
Out: one `Config`, saved as JSON beside each checkpoint and read back with `Config.from_json`.

Nothing here imports jax, so `--help` is instant. Derived quantities are properties, never fields.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from lumina_jax.config.data import DataConfig as DataConfig
from lumina_jax.config.data import Part as Part
from lumina_jax.config.finetune import FinetuneConfig as FinetuneConfig
from lumina_jax.config.flow import FlowConfig as FlowConfig
from lumina_jax.config.hosts import HostsConfig as HostsConfig
from lumina_jax.config.media import ClipConfig as ClipConfig
from lumina_jax.config.media import MediaConfig as MediaConfig
from lumina_jax.config.media import PictureConfig as PictureConfig
from lumina_jax.config.media import SoundConfig as SoundConfig
from lumina_jax.config.media import ViewGridConfig as ViewGridConfig
from lumina_jax.config.media import ViewsConfig as ViewsConfig
from lumina_jax.config.media import VisualConfig as VisualConfig
from lumina_jax.config.mesh import MeshConfig as MeshConfig
from lumina_jax.config.migration import migrated
from lumina_jax.config.model import ModalityConfig as ModalityConfig
from lumina_jax.config.model import ModelConfig as ModelConfig
from lumina_jax.config.optimizer import OptimizerConfig as OptimizerConfig
from lumina_jax.config.run import RunConfig as RunConfig
from lumina_jax.config.sample import SampleConfig as SampleConfig
from lumina_jax.config.section import Section, require
from lumina_jax.config.sources import EmojiConfig as EmojiConfig
from lumina_jax.config.sources import FolderConfig as FolderConfig
from lumina_jax.config.sources import LuminaYamlConfig as LuminaYamlConfig
from lumina_jax.config.sources import PreparedConfig as PreparedConfig
from lumina_jax.config.sources import SourceConfig as SourceConfig
from lumina_jax.config.sources import TfdsConfig as TfdsConfig
from lumina_jax.config.text import TextConfig as TextConfig
from lumina_jax.config.vae import AutoencoderConfig as AutoencoderConfig
from lumina_jax.config.vae import OtherAutoencoder as OtherAutoencoder
from lumina_jax.config.vae import VaeConfig as VaeConfig
from lumina_jax.documents import parse_json


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """One experiment."""

    model: ModelConfig
    flow: FlowConfig = field(default_factory=FlowConfig)
    text: TextConfig = field(default_factory=TextConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    hosts: HostsConfig = field(default_factory=HostsConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in self.data.parts:
            modality = self.model.modality_of(part.modality)
            part.media.check_patches(modality, f" of {modality.name!r}" if self.model.others else "")
        named, known = [one.modality for one in self.vae.others], [one.name for one in self.model.others]
        require(
            set(named) <= set(known) and len(named) == len(set(named)),
            f"vae.others must name modalities of model.others, {known}, each once, but names {named}; the autoencoder "
            f"of {self.model.modality!r} is named in vae.path",
        )
        self.sample.check_path(self.flow.path)
        require(
            self.flow.path != "ddpm" or self.model.time_scale == 1,
            f"flow.path='ddpm' tells the network the step, from 0 to 999, so model.time_scale={self.model.time_scale} "
            "must be 1",
        )
        require(
            self.data.batch_rows % self.optimizer.accumulate == 0,
            f"data.batch_rows={self.data.batch_rows} must be a multiple of "
            f"optimizer.accumulate={self.optimizer.accumulate}",
        )

        if self.finetune.is_partial:
            require(
                self.optimizer.name == "adamw",
                f"optimizer.name={self.optimizer.name!r} must be 'adamw' where only some parameters train (finetune)",
            )
            require(
                self.mesh.tensor == 1,
                f"mesh.tensor={self.mesh.tensor} must be 1 where only some parameters train (finetune); use mesh.fsdp",
            )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str | bytes, origin: str = "the configuration") -> "Config":
        """The configuration that `to_json` wrote, in this or an older version.

        Raises:
          ValueError: a field is wrong or unknown; the message names it.
        """
        return parse_json(text, Config, origin, migrated)

    def data_of(self, modality: str | None) -> DataConfig:
        """The data settings for a modality of the model, with the first source that has it.

        Args:
          modality: its name; None: the first modality, model.modality.

        Raises:
          ValueError: the model has no such modality, or no source has it.
        """
        index = self.model.modality_index(modality)
        for part in self.data.parts:
            if self.model.modality_index(part.modality) == index:
                return part
        raise ValueError(f"no source of data.mixture has the modality {self.model.modalities[index].name!r}")

    def vae_of(self, modality: str | None) -> AutoencoderConfig:
        """The autoencoder of a modality of the model, which is none without a path; None: of the first modality."""
        index = self.model.modality_index(modality)
        return self.vae if index == 0 else self.vae.of(self.model.modalities[index].name)

    def replace(self, **sections: Any) -> "Config":
        """A copy with settings changed: `config.replace(run={"steps": 10}, data={"image_size": 64})`.

        A whole section may be given, too: `config.replace(model=preset("2B"))`.
        """
        changed: dict[str, Any] = {
            name: new if isinstance(new, Section) else getattr(self, name).replace(**new)
            for name, new in sections.items()
        }
        return dataclasses.replace(self, **changed)
