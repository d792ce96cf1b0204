"""What is asked of a model: prompts, settings, sizes and a seed, refused before anything is computed if it cannot work.

In: a configuration, and what is to be drawn with it. Out: nothing, or a ValueError that names the setting or the
prompt, the rule, and what helps. No weights are read for it.
"""

from collections.abc import Sequence

from lumina_jax.config import Config, SampleConfig
from lumina_jax.encoders.phonemes import check_pitch
from lumina_jax.flow.sde import STOCHASTIC
from lumina_jax.flow.solvers import SOLVERS
from lumina_jax.modalities import Shape
from lumina_jax.seeds import check_seed

MOST_TOKENS = 1 << 22
"""Of one sample: 64 times those of a picture of 2048 x 2048 pixels whose patches are 8 x 8."""
SHOWN = 60
"""Characters of a prompt that a message shows."""


def check_request(
    config: Config,
    settings: SampleConfig,
    prompts: Sequence[str],
    shapes: Sequence[Shape],
    unit: tuple[int, int],
    *,
    modality: str | None = None,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
) -> None:
    """Refuse what a model of this configuration cannot draw.

    Args:
      shapes: of each sample.
      unit: the pixels of a patch, (height, width).
      modality: a modality of the model; None: the first.
      seed, seeds: of all samples, or of each.

    Raises:
      ValueError: there are no prompts or not a shape for each, the model has no such modality, a prompt is no text or
        no label of it, a size does not fit, or the settings do not.
    """
    check_seed(seed)
    settings.check_path(config.flow.path)
    if isinstance(prompts, str):
        raise ValueError(f"prompts must be a list, but {shortened(prompts)} is one text; write [{shortened(prompts)}]")
    channels = config.model.modality_of(modality).channels
    guided = settings.guided_channels
    if guided is not None and not 1 <= guided <= channels:
        raise ValueError(
            f"sample.guided_channels={guided} must be between 1 and the {channels} channels of the model's latents; "
            "None guides all"
        )
    if not prompts or len(prompts) != len(shapes):
        raise ValueError(f"give at least one prompt and a shape for each, but there are {len(prompts)=} {len(shapes)=}")
    if seeds is not None:
        check_seeds(seeds, len(prompts), seed)
    for shape in dict.fromkeys(shapes):
        check_shape(shape, unit)
    for prompt in [*prompts, settings.negative]:
        check_prompt(config, prompt)


def check_seeds(seeds: Sequence[int], count: int, seed: int) -> None:
    """Refuse seeds that are not one for each of `count` prompts, and another `seed` besides them."""
    if seed:
        raise ValueError(f"give one seed for all samples or a seed for each, but there are {seed=} and seeds={seeds}")
    if len(seeds) != count:
        raise ValueError(
            f"there must be a seed for each prompt, but there are {len(seeds)} seeds and {count} prompts; repeat a "
            "prompt to draw it with several seeds"
        )
    for index, one in enumerate(seeds):
        check_seed(one, f"seeds[{index}]")


def check_prompt(config: Config, prompt: str) -> None:
    """Refuse a prompt that the model cannot read."""
    if config.model.conditioning == "label":
        label_of(prompt, config.model.classes)
        return
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a prompt must be text, but {shortened(prompt)} has no character at {error.start}; write it in UTF-8"
        ) from None
    if config.text.encoder == "phonemes":
        check_pitch(prompt)


def check_shape(shape: Shape, unit: tuple[int, int]) -> None:
    """Refuse a size that the `unit` pixels of a patch, (height, width), do not divide, one without a frame, and one of
    more than MOST_TOKENS patches."""
    if shape.frames < 1:
        raise ValueError(f"a sample needs at least one frame, but frames={shape.frames}")
    for name, value, least in zip(("height", "width"), (shape.height, shape.width), unit):
        if value % least or value < least:
            raise ValueError(
                f"{name} must be a positive multiple of the {least} pixels of a patch, but the size is {shape.height} "
                f"x {shape.width}"
            )
    tokens = shape.frames * (shape.height // unit[0]) * (shape.width // unit[1])
    if tokens > MOST_TOKENS:
        raise ValueError(
            f"a sample of {shape.frames} frames of {shape.height} x {shape.width} has {tokens} patches, but may have "
            f"{MOST_TOKENS}; ask for a smaller one"
        )


def label_of(prompt: str, classes: int) -> int:
    """The number of a label; the empty prompt is the row for 'no label'."""
    if not prompt:
        return classes
    if not (prompt.isdecimal() and len(prompt) < 10 and int(prompt) < classes):
        raise ValueError(
            f"a label-conditional model is prompted by a label from 0 to {classes - 1}, but got "
            f"prompt={shortened(prompt)}"
        )
    return int(prompt)


def check_reversible(settings: SampleConfig) -> None:
    """Refuse a solver whose path can't be walked back."""
    if settings.solver not in SOLVERS:
        kind = "stochastic" if settings.solver in STOCHASTIC else "for denoising alone"
        raise ValueError(
            f"only the probability flow can be walked back, but solver={settings.solver!r} is {kind}; choose an "
            "ODE solver such as midpoint or dopri5"
        )


def shortened(prompt: str) -> str:
    """The prompt in quotes, or its beginning."""
    return repr(prompt if len(prompt) <= SHOWN else f"{prompt[:SHOWN]}...")
