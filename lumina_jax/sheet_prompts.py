"""The prompts of the sheets that a run draws as it goes.

In: a configuration, and the source of its data. Out: the configuration with prompts that the model can draw.
"""

from lumina_jax.config import Config
from lumina_jax.data.example import Source, some_prompts
from lumina_jax.generation.sheets import check_previews


def with_prompts(config: Config, source: Source) -> Config:
    """The configuration with prompts for its sheets: those that it names, or else captions or labels from the data.

    Raises:
      ValueError: none of these captions can be drawn with the settings of sampling.
    """
    if config.run.sample_every is None or config.run.sample_prompts:
        return config
    first = config.model.modality_index(None)
    parts = getattr(source, "parts", (source,))
    indices = [config.model.modality_index(data.modality) for data in config.data.parts]
    found = [part for part, index in zip(parts, indices) if index == first]
    classes = config.model.classes if config.model.conditioning == "label" else None
    chosen = [
        config.replace(run={"sample_prompts": (prompt,)})
        for prompt in (some_prompts(found[0], classes=classes) if found else ())
    ]
    good = [one.run.sample_prompts[0] for one in chosen if _can_be_drawn(one)]
    if chosen and not good:
        check_previews(chosen[0])
    return config.replace(run={"sample_prompts": tuple(good)})


def _can_be_drawn(config: Config) -> bool:
    """Whether the prompts of the sheets suit the model and the settings of sampling."""
    try:
        check_previews(config)
    except ValueError:
        return False
    return True
