"""Train a Lumina model: python train.py configs/emoji.py [--section.field value ...]

The same command continues a run that was stopped, killed or preempted, from its last checkpoint and bit for bit.
"""

import os
import sys
from typing import Any

from lumina_jax.config import Config, DataConfig
from lumina_jax.launch import keep_memory_on_cpu
from lumina_jax.run import parse_config, run_folder, write_config


def main() -> None:
    try:
        config = parse_config(sys.argv[1:], __doc__ or "")
        keep_memory_on_cpu()
        run(config)
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("LUMINA_TRACEBACK"):
            raise
        raise SystemExit(f"error: {error}\n(LUMINA_TRACEBACK=1 shows where)") from None


def run(config: Config) -> None:
    """The whole run, top to bottom. jax is imported here, after the flags were read."""
    import jax

    from lumina_jax.data.batches import Stream
    from lumina_jax.data.sources import open_source
    from lumina_jax.generation.sheets import encoder_of, sheet_writer, vae_of
    from lumina_jax.parallel.mesh import check_mesh, configured_mesh, row_shard
    from lumina_jax.run import CHECKPOINTS
    from lumina_jax.trained import check_trained, trained_parameters
    from lumina_jax.training.checkpoint import Checkpoints
    from lumina_jax.training.feed import Feed
    from lumina_jax.training.loop import restored_or_new, train
    from lumina_jax.training.metrics import MetricWriter
    from lumina_jax.training.state import parameter_shardings
    from lumina_jax.training.step import train_step

    # Devices
    folder = run_folder(config)
    mesh = configured_mesh(config.mesh)
    check_mesh(config, mesh)

    if config.run.init_from and not (folder / CHECKPOINTS).is_dir():  # a run that resumes needs its start no more
        check_trained(config.run.init_from, config)

    def initial() -> dict[str, Any]:
        print(f"starting from the parameters in {config.run.init_from}", flush=True)
        return trained_parameters(config.run.init_from, config, parameter_shardings(config.model, mesh))[0]

    # Data: captions and pictures are encoded once, and read from files from then on
    source = open_source(config.data, config.model)
    encoder, vae = encoder_of(config), vae_of(config)
    process = (jax.process_index(), jax.process_count())
    features = None if encoder is None else caption_features(config, source, encoder)
    source, data = (source, config.data) if vae is None else latents(config, source, vae, process)

    # State: the newest checkpoint of this run, or a new one from the seed
    checkpoints = Checkpoints(folder / CHECKPOINTS, keep=config.run.keep_checkpoints, keep_every=config.run.keep_every)
    with Stream(source, data, config.model, seed=config.run.seed, features=features, shard=row_shard(mesh)) as stream:
        state = restored_or_new(config, mesh, checkpoints, stream, initial if config.run.init_from else None)
        write_config(config)
        writer = MetricWriter(folder, resumed_step=int(state.step))
        show = sheet_writer(config, encoder, writer, vae) if config.run.sample_prompts else None

        # Steps
        try:
            state = train(
                config, state, train_step(config, mesh), Feed(stream, mesh),
                checkpoints=checkpoints, writer=writer, show=show,
            )  # fmt: skip
        finally:
            writer.close()
            checkpoints.close()
    print(f"step {int(state.step)} of {config.run.steps} in {folder}", flush=True)


def caption_features(config: Config, source: Any, encoder: Any) -> Any:
    """The features of every caption of the source."""
    from lumina_jax.data.example import captions
    from lumina_jax.encoders.caption_cache import encode_captions

    print(f"{len(source)} samples of {source!r}; encoding their captions", flush=True)
    return encode_captions(captions(source), encoder, config.text.cache)


def latents(config: Config, source: Any, vae: Any, shard: tuple[int, int]) -> tuple[Any, DataConfig]:
    """The source with latents in the place of pictures, and the data settings counted in their values."""
    from lumina_jax.data.latents import encode_pictures, latent_data

    def say(done: int, total: int) -> None:
        print(f"encoded {done} of {total}", flush=True)

    print(f"{len(source)} samples of {source!r}; encoding their pictures", flush=True)
    encoded = encode_pictures(source, vae, config.data, config.model, config.vae.cache, shard=shard, progress=say)
    return encoded, latent_data(config.data, vae.factor)


if __name__ == "__main__":
    main()
