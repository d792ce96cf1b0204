"""The text encoder that a configuration names.

In: a configuration. Out: its encoder, whose features have the width that the model takes.
"""

import jax

from lumina_jax.config import Config
from lumina_jax.encoders.text import TextEncoder, text_encoder
from lumina_jax.parallel.mesh import make_mesh


def encoder_of(config: Config) -> TextEncoder | None:
    """The text encoder of a configuration, cut over the devices of this process; None for a label-conditional model.

    Raises:
      ValueError: it makes features of another width than the model takes.
    """
    if config.model.conditioning != "text":
        return None
    devices = jax.local_devices()  # of this process: processes may differ in what they have to encode
    mesh = make_mesh(fsdp=len(devices), devices=devices) if len(devices) > 1 else None
    text = config.text
    encoder = text_encoder(text.encoder, text.max_tokens, mesh=mesh, dtype=text.dtype, see_padding=text.see_padding)
    if encoder.width != config.model.text_width:
        raise ValueError(
            f"model.text_width={config.model.text_width} must be the width {encoder.width} of the text encoder "
            f"{config.text.encoder!r}"
        )
    return encoder
