"""Trained models, opened for drawing or for further training.

In: the folder of a run, or one made by `convert --to jax`. Out: its parameters where they are wanted, or a pipeline on
this machine's devices, whatever mesh the model was trained on.
"""

from pathlib import Path
from typing import Any

import jax
from flax import nnx

from lumina_jax.config import Config
from lumina_jax.encoders.configured import encoder_of
from lumina_jax.generation.pipeline import Pipeline, new_pipeline
from lumina_jax.interop.converted import load_parameters, read_model
from lumina_jax.modalities import load_autoencoders
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.run import CHECKPOINTS, CONFIG_FILE, checkpoints_of, read_run, write_config
from lumina_jax.training.checkpoint import EXECUTION_FIELDS, Checkpoints, changed_fields, check_same_model, located

DRAWING_FIELDS = {"flow": frozenset({"path", "prediction"}), "text": frozenset({"max_tokens", "see_padding"})}
SIZE_FIELDS = {"data": frozenset({"image_size", "frames", "grid_columns", "seconds", "sample_rate", "modality"})}
"""Besides the model, what decides how the same noise is drawn, by section."""


def open_run(folder: str | Path, step: int | None = None, config: Config | None = None) -> Pipeline:
    """The pipeline of a trained model, which draws with the average of its parameters.

    Args:
      folder: of a run, or of converted weights.
      step: of the checkpoint; None: the newest.
      config: all settings but the model, which is that of the folder; converted weights need it. None: those of the
        run, which must then be the ones that were saved with the checkpoint.

    Raises:
      ValueError: the folder holds no trained model, or no such checkpoint, or the configuration was edited so that the
        model would draw something else than what it was trained for.
    """
    is_own = config is None
    config = read_run(folder) if config is None else config.replace(model=read_model(folder))
    check_as_trained(folder, config, step, DRAWING_FIELDS | (SIZE_FIELDS if is_own else {}))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = nnx.to_pure_dict(abstract_model(config.model)[1])
    parameters, step = trained_parameters(folder, config, jax.tree.map(lambda _: here, abstract), step)
    pipeline = new_pipeline(config, parameters, encoder_of(config), load_autoencoders(config))
    pipeline.step = step
    return pipeline


def save(pipeline: Pipeline, folder: str | Path) -> Path:
    """Save a model so that `open_run`, `lumina sample` and `lumina convert` open it; returns the folder.

    The folder is that of a run without the state of its optimiser: `--run.init-from` starts a new run from it.

    Raises:
      ValueError: the folder holds a model already.
    """
    folder = Path(folder).absolute()
    if (folder / CONFIG_FILE).exists() or (folder / CHECKPOINTS).exists():
        raise ValueError(f"{folder} holds a model already; name another folder")
    config = pipeline.config.replace(
        run={"root": str(folder.parent), "name": folder.name, "checkpoints": "", "init_from": ""}
    )
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        checkpoints.save(pipeline.step, {"ema": pipeline.parameters}, {}, config.to_json())
    write_config(config)
    return folder


def check_as_trained(folder: str | Path, config: Config, step: int | None, sections: dict[str, frozenset[str]]) -> None:
    """Refuse a configuration of which fields are not those saved with the checkpoint; weights alone know none.

    Args:
      sections: the fields of each section that count.
    """
    if not located(checkpoints_of(folder)).is_dir():
        return
    checkpoints = Checkpoints(checkpoints_of(folder), read_only=True)
    step = checkpoints.latest() if step is None else step
    if step is None or step not in checkpoints.steps():
        return  # whoever reads the parameters says so
    saved = checkpoints.restore_config(step)
    changed = changed_fields("model", saved.model, config.model, but=EXECUTION_FIELDS)
    for section, fields in sections.items():
        before, now = getattr(saved, section), getattr(config, section)
        pairs = zip(before.parts, now.parts) if section == "data" else [(before, now)]
        for one, other in pairs:
            others = frozenset({*one.settings(), *other.settings()}) - fields
            changed += changed_fields(section, one, other, but=others)
    if changed:
        raise ValueError(
            f"a model draws as it was trained, but since step {step} {'; '.join(changed)}; restore these settings in "
            f"{Path(folder) / CONFIG_FILE}, or name another --step"
        )


def check_trained(folder: str | Path, config: Config) -> None:
    """Raises ValueError unless the folder holds a model of this configuration."""
    rule, remedy = f"the model must be the one in {folder}", "set these fields of the configuration to what they were"
    check_same_model(read_model(folder), config.model, rule, remedy)


def trained_parameters(
    folder: str | Path, config: Config, shardings: dict[str, Any], step: int | None = None
) -> tuple[dict[str, Any], int]:
    """The averaged parameters of a run or the parameters of a converted folder, born where `shardings` says.

    Raises:
      ValueError: there are none, they cannot be read, or they are of another model than the configuration's.
    """
    check_trained(folder, config)
    if not located(checkpoints_of(folder)).is_dir():
        if step is not None:
            raise ValueError(f"{folder} holds converted weights, which have no steps; leave out step={step}")
        return load_parameters(folder, config.model, shardings), 0
    checkpoints = Checkpoints(checkpoints_of(folder), read_only=True)
    step = checkpoints.chosen(step)
    check_as_trained(folder, config, step, {})
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nnx.to_pure_dict(abstract_model(config.model)[1]),
        shardings,
    )
    return checkpoints.restore_subtree(step, "ema", abstract), step
