"""Train a model: lumina train emoji [--section.field value ...]

CONFIG is one of the configurations that come with lumina_jax, or a .py or .json file. The same command continues a run
that was stopped (Ctrl-C saves first), killed or preempted, from its last checkpoint and bit for bit. On several hosts
it is started on each of them: docs/tpu-vm.md.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lumina_jax.config import Config, HostsConfig
from lumina_jax.failures import report, reported, written_to
from lumina_jax.flags import flat_settings, parse_config
from lumina_jax.launch import keep_memory_on_cpu, outlive_output
from lumina_jax.run import CHECKPOINTS, run_folder, write_config
from lumina_jax.start import with_started_model


def main(words: Sequence[str]) -> int:
    with reported():
        keep_memory_on_cpu()  # first: it starts this program again
        config = with_started_model(parse_config(words, __doc__ or ""), words)
        outlive_output()
        is_finished = run_in_job(config)
    return 0 if is_finished else config.hosts.stopped_status


def train(config: Config) -> Path:
    """Train as the command does, in this process: begin a run, or continue it to `run.steps`.

    Returns:
      the folder of the run, which `open_run` opens. Ctrl-C saves after the running step and returns.

    Raises:
      ValueError: the settings cannot work, or the folder holds another run.
    """
    run_in_job(with_started_model(config, ()))
    return run_folder(config)


def run_in_job(config: Config) -> bool:
    """The run, by this process alone or with the others of its job; whether it reached its last step."""
    from lumina_jax.parallel.multihost import check_agreement, joined
    from lumina_jax.training.lock import locked

    with joined(config.hosts, report):
        alike = dataclasses.replace(config, hosts=HostsConfig())  # which differ between the processes of a job
        check_agreement(flat_settings(alike), "start the same command on every host, but for hosts.index")
        with locked([run_folder(alike), *filter(None, [alike.run.checkpoints])]):
            return run(alike)


def run(config: Config) -> bool:
    """The whole run, top to bottom; whether it reached its last step. jax is imported here, after flags were read."""
    from lumina_jax.encoders.configured import encoder_of
    from lumina_jax.generation.sheets import check_previews, sheet_writer
    from lumina_jax.held_out import evaluator
    from lumina_jax.modalities import load_autoencoders, modalities_of_sources
    from lumina_jax.parallel.mesh import check_mesh, configured_mesh
    from lumina_jax.parallel.multihost import is_first, say
    from lumina_jax.sheet_prompts import with_prompts
    from lumina_jax.training import loop
    from lumina_jax.training.checkpoint import Checkpoints, is_begun
    from lumina_jax.training.feed import Feed
    from lumina_jax.training.step import train_step
    from lumina_jax.training.trackers import check_trackers
    from lumina_jax.training_data import encoded_stream, opened_source

    # Devices
    folder = run_folder(config)
    mesh = configured_mesh(config.mesh)
    check_mesh(config, mesh)
    check_previews(config)
    check_trackers(config)

    # Checkpoints. A model that does not fit them, or the weights the run starts from, is refused before long work.
    saved = config.run.checkpoints or folder / CHECKPOINTS
    check_start(config, is_new=not is_begun(saved))
    checkpoints = Checkpoints(saved, keep=config.run.keep_checkpoints, keep_every=config.run.keep_every)
    if is_complete(config, checkpoints):
        return True

    # Data
    source = opened_source(config)
    config = with_prompts(config, source)
    encoder, autoencoders, modalities = encoder_of(config), load_autoencoders(config), modalities_of_sources(config)
    say_header(config, mesh, source, modalities)
    stream = encoded_stream(config, mesh, source, encoder, modalities, autoencoders)
    evaluate = evaluator(config, mesh, modalities, encoder, autoencoders)

    # State: the newest checkpoint of this run, or a new one from the seed
    with checkpoints, stream:
        initial = functools.partial(first_parameters, config, mesh) if config.run.init_from else None
        state = loop.restored_or_new(config, mesh, checkpoints, stream, initial)
        writer = metric_writer(config, int(state.step)) if is_first() else None
        if is_first():
            with written_to(folder, "the configuration", "run.root"):
                write_config(config)
        show = sheet_writer(config, encoder, writer, autoencoders, mesh) if config.run.sample_prompts else None

        # Steps
        try:
            state = loop.train_steps(
                config, state, train_step(config, mesh), Feed(stream, mesh, config.data.batch_rows),
                checkpoints=checkpoints, writer=writer, show=show, evaluate=evaluate,
            )  # fmt: skip
        finally:
            if writer is not None:
                writer.close()
    say(f"step {int(state.step)} of {config.run.steps} in {folder}")
    return int(state.step) >= config.run.steps or checkpoints.lowest.has_run_out(config.run.patience)


def metric_writer(config: Config, resumed_step: int) -> Any:
    """What writes the metrics of a run from a step on."""
    from lumina_jax.training.metrics import MetricWriter
    from lumina_jax.training.trackers import new_trackers

    folder = run_folder(config)
    with written_to(folder, "metrics", "run.root"):
        folder.mkdir(parents=True, exist_ok=True)
    return MetricWriter(new_trackers(config, folder, resumed_step))


def check_start(config: Config, *, is_new: bool) -> None:
    """Raises ValueError unless `run.init_from` holds the model of the run, if it is named, or is needed."""
    from lumina_jax.models.quantised import FORMATS
    from lumina_jax.trained import check_trained, finetuning_of

    if config.finetune.is_partial and not config.run.init_from:
        raise ValueError(
            "finetune trains some parameters of trained weights, but there are none; name them with run.init_from"
        )
    if config.finetune.base in FORMATS and finetuning_of(config.run.init_from).is_partial:
        raise ValueError(
            f"finetune.base={config.finetune.base!r} quantises whole weights, but run.init_from="
            f"{config.run.init_from!r} holds changes of others; write the whole, lumina convert "
            f"{config.run.init_from} whole --from jax --to jax, and start from that"
        )
    if config.run.init_from and (is_new or config.finetune.is_partial):
        check_trained(config.run.init_from, config)


def is_complete(config: Config, checkpoints: Any) -> bool:
    """Whether the newest checkpoint is of the last step or a later one, or the run stopped early; that is then said.

    Raises:
      ValueError: it is of another model, or not all processes find it.
    """
    from lumina_jax.parallel.multihost import say
    from lumina_jax.training.early_stopping import saved_lowest
    from lumina_jax.training.loop import check_newest

    newest, steps, patience = check_newest(config, checkpoints), config.run.steps, config.run.patience
    if newest is None:
        return False
    if patience is not None and (lowest := saved_lowest(checkpoints.restore_data(newest))).has_run_out(patience):
        say(
            f"{run_folder(config)} stopped early, at step {newest}: its held-out loss was lowest at {lowest.step}. "
            f"To train further give a larger --run.patience than {patience}; for a new run another --run.name"
        )
        checkpoints.close()
        return True
    if newest < steps:
        return False
    say(
        f"{run_folder(config)} is complete: its newest checkpoint is of step {newest}, and run.steps is {steps}. To "
        f"train further give a larger --run.steps; for a new run another --run.name"
    )
    checkpoints.close()
    return True


def first_parameters(config: Config, mesh: Any) -> dict[str, Any]:
    """The parameters in the folder `run.init_from`."""
    from lumina_jax.models.division import parameter_shardings
    from lumina_jax.models.precision import abstract_parameters
    from lumina_jax.parallel.multihost import say
    from lumina_jax.trained import trained_parameters

    say(f"starting from the parameters in {config.run.init_from}")
    abstract = abstract_parameters(config.model, config.finetune.base, parameter_shardings(config.model, mesh))
    return trained_parameters(config.run.init_from, config, abstract)[0]


def say_header(config: Config, mesh: Any, source: Any, modalities: Sequence[Any]) -> None:
    """Print a line each about the run, the model, the devices, the data and a batch.

    Raises:
      ValueError: the devices of the mesh cannot share a row of the batch.
    """
    from lumina_jax.data.batches import row_tokens
    from lumina_jax.parallel.mesh import check_tokens
    from lumina_jax.parallel.multihost import say
    from lumina_jax.training.header import header_lines

    tokens = row_tokens(config.data, config.model, modalities)
    check_tokens(tokens, mesh)
    say("\n".join(header_lines(config, mesh, source=source, row_tokens=tokens)))
