"""Floating point operations of a step, counted from the architecture.

In: a `ModelConfig` and the contents of a batch. Out: multiplications and additions of all matrix products, by purpose.
Norms, activations, softmax and the optimiser are not counted: that is what "model FLOPs" means where utilisation (MFU)
is compared. A product of [m k] and [k n] takes 2 m n k; backward takes two such, one for each factor, and only one
where the input needs no gradient (noised patches, the sinusoids of time). With a frozen base the matrix has none
either, and the products of its adapters are not counted. What rematerialisation computes again is not counted either.

Nothing here imports jax.
"""

import dataclasses

from lumina_jax.config import ModelConfig

TIME_FREQUENCIES = 256
"""Sinusoids that the time embedding reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """The contents of a batch, whose rows are all alike."""

    rows: int
    tokens: int
    """Tokens in a row, markers and padding included."""
    samples: int = 1
    """Samples in a row, of equal length; tokens attend within their sample."""
    text_tokens: int = 0
    """Tokens of each sample's caption."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations of one forward pass, or of one training step, by kind."""

    projections: float
    """Queries, keys, values and the output of attention."""
    attention: float
    """Logits and weighted sums of self-attention, every pair of tokens of a sample."""
    text: float
    """Keys and values of the captions, attention of each token to its sample's caption, and a trained text encoder."""
    feed_forward: float
    conditioning: float
    """adaLN, time, caption pooling."""
    ends: float
    """Patches in and out."""

    @property
    def total(self) -> float:
        return float(sum(dataclasses.asdict(self).values()))

    def scaled(self, factor: float) -> "Flops":
        return Flops(**{name: factor * value for name, value in dataclasses.asdict(self).items()})


def forward_flops(model: ModelConfig, load: Load) -> Flops:
    """Operations of one prediction for the whole batch."""
    return _flops(model, load, backward=False)


def step_flops(model: ModelConfig, load: Load, *, frozen: bool = False) -> Flops:
    """Operations of prediction and gradient for the whole batch.

    Args:
      frozen: only adapters train, or another small part.
    """
    return _flops(model, load, backward=True, frozen=frozen)


def sampling_flops(model: ModelConfig, load: Load, calls: int, captions: int) -> float:
    """Operations to draw the batch with `calls` predictions, each with one caption of every sample, or with guidance
    two, or three with a negative that has a scale. Caption keys are made once."""
    every = dataclasses.replace(load, rows=load.rows * captions)
    once = _text_keys(model, every) * model.layers
    return calls * (forward_flops(model, every).total - once) + once


def _flops(model: ModelConfig, load: Load, *, backward: bool, frozen: bool = False) -> Flops:
    pairs, one = (3.0, 2.0) if backward else (1.0, 1.0)  # products that need the gradient of both factors, or of one
    both, one, ahead = (one, 1.0, 1.0) if frozen else (pairs, one, pairs)  # of which one is a matrix
    width, heads, condition = model.width, model.heads_width, model.condition_width
    open_heads = model.text_query_heads * model.head_width
    tokens, samples = load.rows * load.tokens, load.rows * load.samples
    parts = 4 if model.block == "next" else 6
    final_parts = 2 if model.final_shift else 1
    text_projections = 0.0  # of tokens: queries of their own for the text, in DiT an output projection as well
    if model.conditioning == "text":
        queries = heads if model.qk_norm else open_heads
        text_projections = 4.0 * width * heads if model.block == "dit" else 2.0 * width * queries * model.own_text_query
    conditioning = ahead * samples * 2 * condition * width * (model.layers * parts + final_parts)
    conditioning += samples * 2 * condition * (one * TIME_FREQUENCIES + ahead * condition)
    text = 0.0
    if model.conditioning == "text":
        conditioning += ahead * samples * 2 * model.caption_width * condition
        keys = one if model.block == "dit" and not model.text_layers else ahead  # of captions that nothing has changed
        text = model.layers * (keys * _text_keys(model, load) + pairs * 4 * tokens * load.text_tokens * open_heads)
    values = sum(modality.patch_values for modality in model.modalities)
    out = values * (2 if model.predict_sigma else 1)
    encoder_tokens = samples * load.text_tokens if model.text_layers else 0
    encoder = model.text_layers * encoder_tokens * (_projections(model) + 6.0 * width * model.mlp_width)
    encoder += model.text_layers * 4 * encoder_tokens * load.text_tokens * heads
    encoder_in = 2 * encoder_tokens * model.text_width * width
    return Flops(
        projections=both * model.layers * tokens * (_projections(model) + text_projections),
        attention=pairs * model.layers * 4 * tokens * (load.tokens / load.samples) * heads,
        text=text + both * encoder + one * encoder_in,
        feed_forward=both * model.layers * tokens * _feed_forward(model),
        conditioning=conditioning,
        ends=2 * tokens * width * (one * values + both * out),
    )


def _projections(model: ModelConfig) -> float:
    """Operations for one token in one layer."""
    keys = model.key_heads * model.head_width
    return 2.0 * model.width * (2 * model.heads_width + 2 * keys)


def _feed_forward(model: ModelConfig) -> float:
    """Operations for one token in one layer: gate, up and down; DiT has no gate."""
    return (4.0 if model.block == "dit" else 6.0) * model.width * model.mlp_width


def _text_keys(model: ModelConfig, load: Load) -> float:
    """Operations for the keys and values of all captions in one layer."""
    if model.conditioning != "text":
        return 0.0
    captions = load.rows * load.samples * load.text_tokens
    keys = model.key_heads if model.qk_norm else model.text_key_heads
    return 2.0 * captions * model.caption_width * (keys + model.text_key_heads) * model.head_width
