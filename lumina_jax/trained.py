"""Trained models, opened for drawing or for further training.

In: the folder of a run, or one made by `convert --to jax`. Out: its parameters where they are wanted, or a pipeline on
this machine's devices, whatever mesh the model was trained on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lumina_jax.config import Config, FinetuneConfig, MeshConfig, ModelConfig
from lumina_jax.config.sample import WeightsName
from lumina_jax.encoders.configured import encoder_of
from lumina_jax.generation.pipeline import Pipeline, new_pipeline
from lumina_jax.interop.converted import load_parameters, read_model
from lumina_jax.interop.kohya import kohya_file, read_kohya
from lumina_jax.interop.peft import Adapter, is_peft, read_peft
from lumina_jax.modalities import load_autoencoders
from lumina_jax.models.adapters import (
    Decomposed,
    Factors,
    Trained,
    adapted,
    adapted_shardings,
    check_base,
    identity,
    joined,
    merged,
    new_trained,
    scaled,
    unadapted,
)
from lumina_jax.models.division import one_device_shardings, parameter_shardings
from lumina_jax.models.precision import abstract_parameters, device_bytes, matrix_type, memory_words, quantised
from lumina_jax.models.quantised import FORMATS, QuantisedWeight, is_quantised
from lumina_jax.parallel.mesh import axes_of, check_heads, local_mesh, make_mesh
from lumina_jax.run import CHECKPOINTS, CONFIG_FILE, checkpoints_of, found_model, read_run, write_config
from lumina_jax.training.checkpoint import EXECUTION_FIELDS, Checkpoints, changed_fields, check_same_model, located
from lumina_jax.weights.modules import dotted, named_parameters

DRAWING_FIELDS = {"flow": frozenset({"path", "prediction"}), "text": frozenset({"max_tokens", "see_padding"})}
SIZE_FIELDS = {"data": frozenset({"image_size", "frames", "grid_columns", "seconds", "sample_rate", "modality"})}
"""Besides the model, what decides how the same noise is drawn, by section."""


def open_run(
    folder: str | Path,
    step: int | None = None,
    config: Config | None = None,
    *,
    mesh: MeshConfig = MeshConfig(),  # noqa: B008 (an immutable value)
    weights: WeightsName = "float32",
    adapters: Sequence[tuple[str | Path, float]] = (),
) -> Pipeline:
    """The pipeline of a trained model, which draws with the average of its parameters on all devices of this process.

    Args:
      folder: of a run, or of converted weights.
      step: of the checkpoint; None: the newest.
      config: all settings but the model, which is that of the folder; converted weights need it. None: those of the
        run, which must then be the ones that were saved with the checkpoint.
      mesh: how the devices share the work. By default each has all weights and draws its part of the samples;
        `MeshConfig(fsdp=4)` divides the weights over 4.
      weights: the type in which the matrices are held, see `SampleConfig.weights`; they are cast while they are read.
      adapters: folders of `open_adapter`, with their strengths; see `with_adapters`, which changes them later.

    Raises:
      ValueError: the folder holds no trained model, or no such checkpoint, or the configuration was edited so that the
        model would draw something else than what it was trained for; the devices cannot share the work, or do not hold
        the weights.
    """
    is_own = config is None
    config = read_run(folder) if config is None else config.replace(model=read_model(folder))
    check_as_trained(folder, config, step, DRAWING_FIELDS | (SIZE_FIELDS if is_own else {}))
    devices = local_mesh(mesh)
    if devices is None:
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = one_device_shardings(config.model, here)
    else:
        check_heads(config.model, devices)
        shardings = parameter_shardings(config.model, devices)
    abstract = abstract_parameters(config.model, weights, shardings)
    check_room(abstract)
    if adapters and weights in FORMATS and finetuning_of(folder).has_adapters:
        raise ValueError(
            f"{folder} trained adapters of quantised weights, to which others cannot be added; draw with its base and "
            f"all adapters instead, --adapter {folder} among them"
        )
    opened = [(open_adapter(one, config.model), strength) for one, strength in adapters]
    parameters, step = trained_parameters(folder, config, abstract, step)
    parameters = with_adapters(parameters, opened, folder) if opened else parameters
    pipeline = new_pipeline(config, parameters, encoder_of(config), load_autoencoders(config), devices)
    pipeline.step = step
    return pipeline


def how_it_draws(mesh: Mesh | None, parameters: dict[str, Any]) -> str:
    """The devices of a pipeline, the type of its weights and their memory on each device: "on 4 TPU v6 lite (data 4),
    weights bfloat16, 10.1 GB"."""
    mesh = mesh or make_mesh(devices=jax.local_devices()[:1])
    axes = ", ".join(f"{name} {mesh.shape[name]}" for name in axes_of(mesh, "data", "fsdp", "sequence", "tensor"))
    devices = f"{mesh.size} {jax.local_devices()[0].device_kind}" + (f" ({axes})" if axes else "")
    return f"on {devices}, weights {matrix_type(parameters)}, {memory_words(device_bytes(parameters))}"


def save(pipeline: Pipeline, folder: str | Path) -> Path:
    """Save a model so that `open_run`, `lumina sample` and `lumina convert` open it; returns the folder.

    The folder is that of a run without the state of its optimiser: `--run.init-from` starts a new run from it.

    Raises:
      ValueError: the folder holds a model already, or the weights are not float32.
    """
    folder, weights = Path(folder).absolute(), matrix_type(pipeline.parameters)
    if weights != "float32":
        raise ValueError(
            f"a run holds float32 weights, but those of this pipeline are {weights}; open it with weights='float32'"
        )
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


def finetuning_of(folder: str | Path) -> FinetuneConfig:
    """Which parameters the run in a folder trained; a converted folder does not tell, and counts as all of them."""
    try:
        return read_run(folder).finetune
    except ValueError:
        return FinetuneConfig()


def check_room(parameters: dict[str, Any]) -> None:
    """Raises ValueError if a device has less memory than its part of abstract parameters takes, as far as is known."""
    needed, room = device_bytes(parameters), device_memory()
    if room is None or needed <= room:
        return
    devices = jax.local_device_count()
    shared = f"divide them over the devices of this host, --mesh.fsdp {devices}, or " if devices > 1 else ""
    raise ValueError(
        f"weights must fit into the memory of a device, but take {needed / 1e9:.3g} GB, and a device has "
        f"{room / 1e9:.3g}; {shared}hold them in bfloat16, int8 or nf4: sample.weights"
    )


def device_memory() -> int | None:
    """Bytes that a program may use of a device; None: it does not say."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def trained_parameters(
    folder: str | Path, config: Config, abstract: dict[str, Any], step: int | None = None, part: str = "ema"
) -> tuple[dict[str, Any], int]:
    """The averaged parameters of a run or the parameters of a converted folder. Of a run that trained some of them:
    those it began from, changed; quantised ones have the adapters of the run beside them.

    Args:
      abstract: the type and sharding of each, as `abstract_parameters` returns them; each is cast before it is on a
        device.
      part: of the checkpoint of a run: the average "ema", or "parameters".

    Raises:
      ValueError: there are none, they cannot be read, or they are of another model than the configuration's.
    """
    check_trained(folder, config)
    if not located(checkpoints_of(folder)).is_dir():
        if step:  # what is opened from them says step 0
            raise ValueError(f"{folder} holds converted weights, which have no steps; leave out step={step}")
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        types = jax.tree.map(lambda leaf: leaf.dtype, abstract, is_leaf=is_quantised)
        return load_parameters(found_model(folder), config.model, shardings, types), 0
    checkpoints = Checkpoints(checkpoints_of(folder), read_only=True)
    step = checkpoints.chosen(step)
    check_as_trained(folder, config, step, {})
    saved = checkpoints.restore_config(step)
    if not saved.finetune.is_partial:
        return _restored(checkpoints, step, part, abstract), step
    trained, wanted = saved_changes(checkpoints, step, saved, abstract, part)
    base, _ = trained_parameters(saved.run.init_from, config, abstract)
    check_base(wanted, base, saved.run.init_from)

    def changed(base: dict[str, Any], trained: Trained) -> dict[str, Any]:
        whole = merged(adapted(base, scaled(trained, saved.finetune)))
        return jax.tree.map(
            lambda like, leaf: leaf if is_quantised(like) else leaf.astype(like.dtype),
            *(abstract, whole),
            is_leaf=is_quantised,
        )

    matrices = jax.tree.map(_matrix_sharding, abstract, is_leaf=is_quantised)
    shardings = adapted_shardings(matrices, jax.eval_shape(changed, base, trained))
    return jax.jit(changed, donate_argnums=0, out_shardings=shardings)(base, trained), step


def _restored(checkpoints: Checkpoints, step: int, part: str, abstract: dict[str, Any]) -> dict[str, Any]:
    """A part of a checkpoint; what is to be quantised is read one parameter after another."""
    wanted = named_parameters(abstract)
    plain = {name: leaf for name, leaf in wanted.items() if not is_quantised(leaf)}
    found = checkpoints.restore_subtree(step, part, plain)
    for name, like in wanted.items():
        if isinstance(like, QuantisedWeight):
            whole = jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=_matrix_sharding(like))
            value: Any = checkpoints.restore_subtree(step, part, {name: whole})[name]
            found[name] = jax.block_until_ready(quantised(value, type(like)))
            value.delete()
    return jax.tree.map_with_path(lambda path, _: found[dotted(path)], abstract, is_leaf=is_quantised)


def _matrix_sharding(leaf: Any) -> Any:
    """The sharding of an abstract parameter, or of the matrix that a quantised one was made from."""
    return (leaf.codes if isinstance(leaf, QuantisedWeight) else leaf).sharding


def saved_changes(
    checkpoints: Checkpoints, step: int, saved: Config, abstract: dict[str, Any], part: str = "ema"
) -> tuple[Trained, str]:
    """What a run has trained of its parameters, on every device and without the scale of adapters, and the identity of
    those it began from.

    Args:
      abstract: all parameters of the model.
      part: the average "ema", or "parameters".
    """
    everywhere = jax.tree.leaves(abstract)[0].sharding
    if isinstance(everywhere, NamedSharding):
        everywhere = NamedSharding(everywhere.mesh, PartitionSpec())
    whole = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "float32"), abstract, is_leaf=is_quantised)
    shapes = jax.eval_shape(lambda base: new_trained(saved.finetune, base, jax.random.key(0)), whole)
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        (shapes, {"fingerprint": jax.ShapeDtypeStruct((2,), "uint32")}),
    )
    words = checkpoints.restore_subtree(step, "base", wanted[1])["fingerprint"]
    return checkpoints.restore_subtree(step, part, wanted[0]), identity(words)


def open_adapter(folder: str | Path, model: ModelConfig) -> Adapter:
    """The adapter of a run that trained adapters alone, at its newest checkpoint, or that in a folder of PEFT or in a
    file with kohya's names.

    Raises:
      ValueError: the folder holds none, or it is of another model; the message names what does not fit.
    """
    if is_peft(Path(folder)):
        return read_peft(Path(folder), model)
    if file := kohya_file(Path(folder)):
        return read_kohya(file, model)
    if not located(checkpoints_of(folder)).is_dir():
        raise ValueError(
            f"{folder} holds no adapter; name a run that trained one, a folder with adapter_config.json, or a "
            ".safetensors file with kohya's names"
        )
    checkpoints = Checkpoints(checkpoints_of(folder), read_only=True)
    step = checkpoints.chosen(None)
    saved = checkpoints.restore_config(step)
    check_same_model(saved.model, model, f"the adapter in {folder} must be of this model", "name another adapter")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = abstract_parameters(model, "float32", one_device_shardings(model, here))
    trained, base = saved_changes(checkpoints, step, saved, abstract) if saved.finetune.is_partial else ({}, "")
    factors = {
        name: Factors(value.a, value.b) for name, value in trained.items() if isinstance(value, Factors | Decomposed)
    }
    lengths = {name: value.magnitude for name, value in trained.items() if isinstance(value, Decomposed)}
    if not factors or len(factors) < len(trained):
        raise ValueError(
            f"{folder} trained parameters themselves, which are no adapter; open the run alone, or export it whole"
        )
    alpha, scaling = saved.finetune.alpha, saved.finetune.scaling
    alphas = {name: float(factor.a.shape[-1]) if alpha is None else alpha for name, factor in factors.items()}
    is_rslora = alpha is not None and scaling == "rslora"
    return Adapter(jax.device_get(factors), alphas, is_rslora, base, jax.device_get(lengths))


def strength_of(word: str) -> tuple[str, float]:
    """The folder and the strength of FOLDER:STRENGTH; without one it is 1."""
    folder, _, strength = word.rpartition(":")
    try:
        return (folder, float(strength)) if folder else (word, 1.0)
    except ValueError:
        return word, 1.0


def with_adapters(
    parameters: dict[str, Any], adapters: Sequence[tuple[Adapter, float]], origin: str | Path
) -> dict[str, Any]:
    """Parameters with adapters at these strengths. Others of the same matrices and ranks need no other program.

    Args:
      origin: of the parameters, for messages.

    Raises:
      ValueError: an adapter was trained for other parameters.
    """
    base = unadapted(parameters)
    for wanted in {adapter.base for adapter, _ in adapters} - {""}:
        check_base(wanted, base, str(origin))
    sharding = jax.tree.leaves(base)[0].sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
    factors = joined([adapter.scaled(strength) for adapter, strength in adapters])
    return adapted(base, jax.device_put(factors, sharding))
