"""Train a Lumina model: python train.py configs/emoji.py [--section.field value ...]

The same command continues a run that was stopped (Ctrl-C saves first), killed or preempted, from its last checkpoint
and bit for bit. On several hosts it is started on each of them: docs/tpu-vm.md.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from lumina_jax.config import Config, DataConfig, HostsConfig
from lumina_jax.failures import report, reported, written_to
from lumina_jax.launch import keep_memory_on_cpu, outlive_output
from lumina_jax.run import CHECKPOINTS, flat_settings, parse_config, run_folder, write_config
from lumina_jax.start import with_started_model


def main(words: Sequence[str]) -> int:
    with reported():
        keep_memory_on_cpu()  # first: it starts this program again
        config = with_started_model(parse_config(words, __doc__ or ""), words)
        outlive_output()
        status = run_in_job(config)
    return status


def run_in_job(config: Config) -> int:
    """The run, by this process alone or with the others of its job; returns the exit status."""
    from lumina_jax.parallel.multihost import check_agreement, joined
    from lumina_jax.training.lock import locked

    with joined(config.hosts, report):
        alike = dataclasses.replace(config, hosts=HostsConfig())  # the place of a process in the job is not the run's
        check_agreement(flat_settings(alike), "start the same command on every host, but for hosts.index")
        with locked([run_folder(alike), *filter(None, [alike.run.checkpoints])]):
            is_finished = run(alike)
    return 0 if is_finished else config.hosts.stopped_status


def run(config: Config) -> bool:
    """The whole run, top to bottom; whether it reached its last step. jax is imported here, after flags were read."""
    from lumina_jax.data.batches import Stream
    from lumina_jax.generation.sheets import check_previews, encoder_of, sheet_writer, vae_of
    from lumina_jax.parallel.mesh import check_mesh, configured_mesh
    from lumina_jax.parallel.multihost import is_first, say
    from lumina_jax.trained import check_trained
    from lumina_jax.training.checkpoint import Checkpoints, is_begun
    from lumina_jax.training.feed import Feed, local_rows
    from lumina_jax.training.loop import restored_or_new, train
    from lumina_jax.training.metrics import MetricWriter
    from lumina_jax.training.step import train_step

    # Devices
    folder = run_folder(config)
    mesh = configured_mesh(config.mesh)
    check_mesh(config, mesh)
    check_previews(config)

    # Its checkpoints, and whether they or its start are of this model: before any long work
    place = config.run.checkpoints or folder / CHECKPOINTS
    if config.run.init_from and not is_begun(place):  # a run that resumes needs its start no more
        check_trained(config.run.init_from, config)
    checkpoints = Checkpoints(place, keep=config.run.keep_checkpoints, keep_every=config.run.keep_every)
    if is_complete(config, checkpoints):
        return True

    # Data
    source = opened_source(config)
    config = with_prompts(config, source)
    encoder, vae = encoder_of(config), vae_of(config)
    data = counted_in_latents(config, vae, mesh)
    say_header(config, mesh, source, data)
    source, features = encoded_source(config, source, encoder, vae)
    stream = Stream(
        source, data, config.model, seed=config.run.seed, features=features, rows=local_rows(mesh, data.batch_rows)
    )

    # State: the newest checkpoint of this run, or a new one from the seed
    with checkpoints, stream:
        initial = functools.partial(first_parameters, config, mesh) if config.run.init_from else None
        state = restored_or_new(config, mesh, checkpoints, stream, initial)
        writer = MetricWriter(folder, resumed_step=int(state.step)) if is_first() else None
        if is_first():
            with written_to(folder, "the configuration", "run.root"):
                write_config(config)
        show = sheet_writer(config, encoder, writer, vae, mesh) if config.run.sample_prompts else None

        # Steps
        try:
            state = train(
                config, state, train_step(config, mesh), Feed(stream, mesh, data.batch_rows),
                checkpoints=checkpoints, writer=writer, show=show,
            )  # fmt: skip
        finally:
            if writer is not None:
                writer.close()
    say(f"step {int(state.step)} of {config.run.steps} in {folder}")
    return int(state.step) >= config.run.steps


def is_complete(config: Config, checkpoints: Any) -> bool:
    """Whether the newest checkpoint is of the last step, or of a later one; if so, it is said.

    Raises:
      ValueError: it is of another model, or not all processes find it.
    """
    from lumina_jax.parallel.multihost import say
    from lumina_jax.training.loop import check_newest

    newest, steps = check_newest(config, checkpoints), config.run.steps
    if newest is None or newest < steps:
        return False
    say(
        f"{run_folder(config)} is complete: its newest checkpoint is of step {newest}, and run.steps is {steps}. To "
        f"train further give a larger --run.steps; for a new run another --run.name"
    )
    checkpoints.close()
    return True


def first_parameters(config: Config, mesh: Any) -> dict[str, Any]:
    """Those in the folder `run.init_from`."""
    from lumina_jax.models.division import parameter_shardings
    from lumina_jax.parallel.multihost import say
    from lumina_jax.trained import trained_parameters

    say(f"starting from the parameters in {config.run.init_from}")
    return trained_parameters(config.run.init_from, config, parameter_shardings(config.model, mesh))[0]


def say_header(config: Config, mesh: Any, source: Any, data: DataConfig) -> None:
    """The run, the model, the devices, the data and a batch, in a line each."""
    from lumina_jax.data.batches import row_tokens
    from lumina_jax.parallel.multihost import say
    from lumina_jax.training.header import header_lines

    say("\n".join(header_lines(config, mesh, source=source, row_tokens=row_tokens(data, config.model))))


def with_prompts(config: Config, source: Any) -> Config:
    """The configuration with prompts for its sheets: those that it names, or else some of the data.

    Raises:
      ValueError: none of the data can be drawn with the settings of sampling.
    """
    from lumina_jax.data.example import some_prompts
    from lumina_jax.generation.sheets import check_previews

    if config.run.sample_every is None or config.run.sample_prompts:
        return config
    own = config.model.place(None)
    parts = getattr(source, "parts", (source,))
    found = [part for part, data in zip(parts, config.data.parts) if config.model.place(data.modality) == own]
    classes = config.model.classes if config.model.conditioning == "label" else None
    chosen = [
        config.replace(run={"sample_prompts": (prompt,)})
        for prompt in (some_prompts(found[0], classes=classes) if found else ())
    ]
    good = [one.run.sample_prompts[0] for one in chosen if can_be_drawn(one)]
    if chosen and not good:
        check_previews(chosen[0])
    return config.replace(run={"sample_prompts": tuple(good)})


def can_be_drawn(config: Config) -> bool:
    """Whether the prompts of the sheets suit the model and the settings of sampling."""
    from lumina_jax.generation.sheets import check_previews

    try:
        check_previews(config)
    except ValueError:
        return False
    return True


def opened_source(config: Config) -> Any:
    """The source, which must be the same in all processes."""
    from lumina_jax.data.example import contents
    from lumina_jax.data.sources import open_source
    from lumina_jax.parallel.multihost import check_agreement

    source = open_source(config.data, config.model)
    held = contents(source)
    check_agreement(
        {"the number of samples": held.samples, "the digest of names, captions and labels": held.ordered},
        f"copy the same data to every host ({source!r}), and start all of them again",
    )
    return source


def encoded_source(config: Config, source: Any, encoder: Any, vae: Any) -> tuple[Any, Any]:
    """The source and the features of its captions. They and pictures are encoded once, and read from files from then
    on."""
    from lumina_jax.parallel.multihost import barrier

    features = None if encoder is None else caption_features(config, source, encoder)
    source = source if vae is None else latents(config, source, vae)
    barrier("captions and pictures are encoded")
    return source, features


def caption_features(config: Config, source: Any, encoder: Any) -> Any:
    """The features of every caption of the source."""
    from lumina_jax.data.example import captions
    from lumina_jax.encoders.caption_cache import encode_captions
    from lumina_jax.encoders.cuts import notices
    from lumina_jax.parallel.multihost import is_first, say

    say("encoding captions")
    all_captions = captions(source)
    with written_to(config.text.cache, "features of captions", "text.cache"):
        features = encode_captions(all_captions, encoder, config.text.cache)
    for notice in notices(encoder, all_captions, config.text.max_tokens) if is_first() else ():
        say(notice)
    return features


def counted_in_latents(config: Config, vae: Any, mesh: Any) -> DataConfig:
    """The data settings counted in values of latents, if there are any; their rows suit the mesh, or are refused."""
    from lumina_jax.data.batches import row_tokens
    from lumina_jax.data.latents import latent_data
    from lumina_jax.data.sound_latents import sound_latent_data
    from lumina_jax.parallel.mesh import check_tokens

    data = config.data
    if vae is not None:
        data = (latent_data if data.seconds is None else sound_latent_data)(data, vae.factor)
    check_tokens(row_tokens(data, config.model), mesh)
    return data


def latents(config: Config, source: Any, vae: Any) -> Any:
    """The source with latents in the place of pictures or sounds."""
    import jax

    from lumina_jax.data.latents import encode_pictures
    from lumina_jax.data.sound_latents import encode_sounds
    from lumina_jax.parallel.multihost import say

    say("encoding sounds" if config.data.seconds is not None else "encoding pictures")
    cache, shard = config.vae.cache, (jax.process_index(), jax.process_count())
    with written_to(cache, "latents", "vae.cache"):
        if config.data.seconds is not None:
            return encode_sounds(source, vae, config.data, cache, shard=shard)
        return encode_pictures(source, vae, config.data, config.model, cache, shard=shard)
