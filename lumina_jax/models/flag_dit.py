"""Flag-DiT, the flow-based large diffusion transformer (Lumina-T2X, arXiv 2405.05945, section 2.2 and figure 3), and
Next-DiT, which differs in its block, its rotary embedding and its final layer (Lumina-Next, arXiv 2406.18583).

In: a batch of packed tokens, the time of each sample, and its caption or label. Out: what the flow's prediction is
(by default the velocity) for each patch, in the order of the input patch; markers and padding carry values that mean
nothing. A model of several modalities has projections for each; zeros fill up what has fewer values than the longest
patch.

A row may hold several samples: times, captions and labels are per segment, [b s]. Parameters of all layers are
stacked; one scan runs them, so compile time does not grow with depth.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from lumina_jax.config import Modality, ModelConfig
from lumina_jax.kernels.arguments import GatedText
from lumina_jax.models.attention import (
    Attend,
    Attention,
    Sequence,
    TextKeys,
    TextProjection,
    attend_with,
    proportional_scale,
)
from lumina_jax.models.layers import (
    LabelEmbedding,
    LayerNorm,
    Linear,
    RMSNorm,
    SwiGLU,
    TimeEmbedding,
    normalize,
    param,
    small_normal,
    zeros,
)
from lumina_jax.models.rope import RopeScaling, rotation
from lumina_jax.models.stack import run_layers
from lumina_jax.models.text_layers import TextLayers
from lumina_jax.parallel.gather import Weights
from lumina_jax.parallel.tensor import ALONE, Tensor
from lumina_jax.tokens import Kind, TextFeatures, Tokens, spread


class Parallel(NamedTuple):
    """How parameters and rows are divided between devices; by default they are not."""

    layer: Weights | None = None
    """How the weights of one layer are gathered, where each device has a share of them."""
    tensor: Tensor = ALONE
    """The devices that divide attention heads and the width of the feed-forward."""
    row: tuple[str, ...] = ()
    """The mesh axes whose devices divide the tokens of a row."""


class TextContext(NamedTuple):
    """All that the network makes of the captions alone: computed once, used at every step of the sampler."""

    pooled: Float[Array, "b s c"]
    keys: TextKeys
    segment_ids: Int[Array, "b t"]


Condition = TextFeatures | TextContext | Int[Array, "b s"]


class Modulation(nnx.Module):
    """adaLN: SiLU and a zero-initialised linear from the condition to so many values of model width."""

    def __init__(self, rngs: nnx.Rngs, config: ModelConfig, parts: int):
        outputs = parts * config.width
        axes = ("condition", "modulation")
        self.linear = Linear(rngs, config.condition_width, outputs, axes=axes, init=zeros, bias=True)
        self.parts = parts

    def __call__(self, condition: Float[Array, "b s c"], segment_ids: Int[Array, "b l"]) -> list[Float[Array, "b _ m"]]:
        values = jnp.split(self.linear(jax.nn.silu(condition)), self.parts, axis=-1)
        return [spread(value, segment_ids) for value in values]


class Block(nnx.Module):
    """One layer: x += gate * attention(modulated x); x += gate * feed_forward(modulated x).

    Flag-DiT modulates by scale and shift. Next-DiT ("sandwich norm") has scales alone, norms what a branch returns once
    more, and takes the tanh of its gates.
    """

    def __init__(self, rngs: nnx.Rngs, config: ModelConfig):
        width, eps = config.width, config.norm_eps
        sandwich = config.block == "next"
        self.modulation = Modulation(rngs, config, parts=4 if sandwich else 6)
        self.attention_norm = RMSNorm(rngs, width, eps, weight=config.norm_weights)
        self.attention = Attention(rngs, config)
        self.attention_out_norm = RMSNorm(rngs, width, eps) if sandwich else None
        self.text = TextProjection(rngs, config) if config.conditioning == "text" else None
        self.mlp_norm = RMSNorm(rngs, width, eps, weight=config.norm_weights)
        self.mlp = SwiGLU(rngs, width, config.mlp_width)
        self.mlp_out_norm = RMSNorm(rngs, width, eps) if sandwich else None

    def __call__(
        self,
        x: Float[Array, "b l m"],
        condition: Float[Array, "b s c"],
        sequence: Sequence,
        text: GatedText | None,
        attend: Attend,
        tensor: Tensor = ALONE,
    ) -> Float[Array, "b l m"]:
        parts = self.modulation(condition, sequence.segment_ids)
        if self.attention_out_norm is None or self.mlp_out_norm is None:
            shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
            y = self.attention(self.attention_norm(x) * (1 + scale) + shift, sequence, text, attend, tensor)
            x = x + gate * y
            return x + mlp_gate * self.mlp(self.mlp_norm(x) * (1 + mlp_scale) + mlp_shift, tensor)
        scale, gate, mlp_scale, mlp_gate = parts
        y = self.attention(self.attention_norm(x) * (1 + scale), sequence, text, attend, tensor)
        x = x + jnp.tanh(gate) * self.attention_out_norm(y)
        y = self.mlp(self.mlp_norm(x) * (1 + mlp_scale), tensor)
        return x + jnp.tanh(mlp_gate) * self.mlp_out_norm(y)


class CaptionPooling(nnx.Module):
    """The mean of each caption's features through LayerNorm and a zero-initialised linear."""

    def __init__(self, rngs: nnx.Rngs, config: ModelConfig):
        self.norm = LayerNorm(rngs, config.caption_width)
        axes = ("text", "condition")
        self.linear = Linear(rngs, config.caption_width, config.condition_width, axes=axes, init=zeros, bias=True)

    def __call__(self, text: TextFeatures, segments: int) -> Float[Array, "b s c"]:
        member = (text.segment_ids[:, None, :] == jnp.arange(1, segments + 1)[:, None]).astype(jnp.float32)
        total = jnp.einsum("bst,btc->bsc", member, text.features.astype(jnp.float32), precision="highest")
        mean = total / jnp.maximum(jnp.sum(member, axis=-1, keepdims=True), 1)
        return self.linear(self.norm(mean))


class FinalLayer(nnx.Module):
    """LayerNorm without parameters, scale and perhaps shift, and for each modality a zero-initialised linear to the
    values of a patch."""

    def __init__(self, rngs: nnx.Rngs, config: ModelConfig):
        self.modulation = Modulation(rngs, config, parts=2 if config.final_shift else 1)
        parts = 2 if config.predict_sigma else 1
        self.linear, *others = (
            Linear(rngs, config.width, parts * modality.patch_values, axes=("embed", None), init=zeros, bias=True)
            for modality in config.modalities
        )
        self.others = nnx.List(others)

    def __call__(
        self, x: Float[Array, "b l m"], condition: Float[Array, "b s c"], segment_ids: Int[Array, "b l"]
    ) -> list[Float[Array, "b l _"]]:
        *shift, scale = self.modulation(condition, segment_ids)
        x = normalize(x, 1e-6).astype(x.dtype) * (1 + scale)
        x = x + shift[0] if shift else x
        return [linear(x).astype(jnp.float32) for linear in (self.linear, *self.others)]


class FlagDiT(nnx.Module):
    """The whole network. Sizes: `models/presets.py`."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.width
        self.patch_embedding, *others = (
            Linear(rngs, modality.patch_values, width, axes=(None, "embed"), bias=True)
            for modality in config.modalities
        )
        self.other_embeddings = nnx.List(others)
        markers = {Kind.PAD: config.pad_token, Kind.NEXTLINE: config.nextline, Kind.NEXTFRAME: config.nextframe}
        for kind, wanted in markers.items():
            token = param(rngs, (width,), small_normal, axes=(None,)) if wanted else None
            setattr(self, f"{kind.name.lower()}_token", token)
        self.time_embedding = TimeEmbedding(rngs, config.condition_width)
        self.text_layers = TextLayers(rngs, config) if config.text_layers else None
        if config.conditioning == "text":
            self.caption_pooling = CaptionPooling(rngs, config)
        else:
            self.label_embedding = LabelEmbedding(rngs, config.classes, config.condition_width)
        keys = jax.random.split(rngs.params(), config.layers)
        self.blocks = jax.vmap(lambda key: Block(nnx.Rngs(key), config))(keys)
        self.final_layer = FinalLayer(rngs, config)

    def __call__(
        self,
        tokens: Tokens,
        t: Float[Array, "b s"],
        condition: Condition,
        *,
        rope: RopeScaling = RopeScaling(),  # noqa: B008 (an immutable value)
        base_length: int | None = None,
        attend: Attend | None = None,
        keep_sigma: bool = False,
        parallel: Parallel = Parallel(),  # noqa: B008
    ) -> Float[Array, "b l p"]:
        """The prediction for each patch, float32.

        Args:
          tokens: noised patches x_t in their rows.
          t: time of each sample, 0 noise, 1 data.
          condition: caption features, or what `encode_text` made of them; labels for a label-conditional model.
          rope: rotary scalings for lengths beyond training.
          base_length: training length for proportional attention; None: the plain softmax scale.
          attend: attention to use instead of the one that the configuration names.
          keep_sigma: return the second half of the channels too, where `predict_sigma` makes one.
          parallel: how parameters are divided between devices, inside `jax.shard_map`. Tokens may be divided as well:
            then `attend` must cross the devices that share a row.
        """
        config, segments = self.config, t.shape[1]
        dtype = jnp.dtype(config.compute_dtype)
        attend = attend or attend_with(config)
        if isinstance(condition, TextFeatures):
            condition = self._through_text_layers(condition, parallel.tensor)
        scale = None
        if base_length is not None:
            scale = proportional_scale(tokens.segment_ids, segments, base_length, parallel.row)
        turns = rotation(
            coordinates(tokens.positions, config.rope_axes),
            head_width=config.head_width,
            theta=config.rope_theta,
            scaling=rope,
        )
        sequence = Sequence(tokens.segment_ids, turns, scale)
        conditioning = (self.time_embedding(config.time_scale * t) + self._pooled(condition, segments)).astype(dtype)
        x = self.embed(tokens).astype(dtype)
        x = self._run_blocks(x, conditioning, sequence, condition, attend, parallel)
        outputs = self.final_layer(x, conditioning, sequence.segment_ids)
        first, *others = (
            _in_order_of_input(output, modality, keep_sigma) for output, modality in zip(outputs, config.modalities)
        )
        return self._of_each(tokens, [_widened(prediction, config.patch_values) for prediction in (first, *others)])

    def embed(self, tokens: Tokens) -> Float[Array, "b l m"]:
        """Patches through the input projection of their modality, learned tokens at the markers, in float32."""
        patches = tokens.patches.astype(jnp.float32)
        x = self._of_each(
            tokens,
            [
                embedding(patches[:, :, : modality.patch_values])
                for embedding, modality in zip((self.patch_embedding, *self.other_embeddings), self.config.modalities)
            ],
        )
        for kind in (Kind.PAD, Kind.NEXTLINE, Kind.NEXTFRAME):
            token = getattr(self, f"{kind.name.lower()}_token")
            value = 0.0 if token is None else token[...]
            x = jnp.where((tokens.kinds == kind)[:, :, None], value, x)
        return x

    def _of_each(self, tokens: Tokens, values: list[Float[Array, "b l _"]]) -> Float[Array, "b l _"]:
        """For each token the values of its own modality."""
        chosen, *others = values
        for place, value in enumerate(others, start=1):
            assert tokens.modalities is not None
            chosen = jnp.where((tokens.modalities == place)[:, :, None], value, chosen)
        return chosen

    def encode_text(
        self,
        text: TextFeatures,
        segments: int = 1,
        parallel: Parallel = Parallel(),  # noqa: B008
    ) -> TextContext:
        """What depends on the captions alone: the pooled caption, and keys and values of every layer."""
        text = self._through_text_layers(text, parallel.tensor)
        features = text.features.astype(jnp.dtype(self.config.compute_dtype))

        def of_layer(block: Block) -> TextKeys:
            whole = block if parallel.layer is None else parallel.layer.whole(block)
            assert whole.text is not None
            return whole.text(features, parallel.tensor)

        keys = jax.lax.map(of_layer, self.blocks)
        return TextContext(self.caption_pooling(text, segments), keys, text.segment_ids)

    def _through_text_layers(self, text: TextFeatures, tensor: Tensor) -> TextFeatures:
        if self.text_layers is None:
            return text
        return self.text_layers(text, attend_with(self.config), jnp.dtype(self.config.compute_dtype), tensor)

    def _pooled(self, condition: Condition, segments: int) -> Float[Array, "b s c"]:
        if isinstance(condition, TextContext):
            return condition.pooled
        if isinstance(condition, TextFeatures):
            return self.caption_pooling(condition, segments)
        return self.label_embedding(condition)

    def _run_blocks(
        self,
        x: Float[Array, "b l m"],
        conditioning: Float[Array, "b s c"],
        sequence: Sequence,
        condition: Condition,
        attend: Attend,
        parallel: Parallel,
    ) -> Float[Array, "b l m"]:
        def layer(x: Float[Array, "b l m"], inputs: tuple[Block, TextKeys | None], shared: Any, fixed: Any) -> Array:
            (block, keys), (conditioning, features), (sequence, text_ids) = inputs, shared, fixed
            text = None
            if block.text is not None:
                keys = block.text(features, parallel.tensor) if keys is None else keys
                text = GatedText(*keys, block.text.gate[...], text_ids)
            return block(x, conditioning, sequence, text, attend, parallel.tensor)

        features = jnp.asarray(condition.features, x.dtype) if isinstance(condition, TextFeatures) else None
        given = condition.keys if isinstance(condition, TextContext) else None
        ids = jnp.asarray(condition.segment_ids) if isinstance(condition, TextFeatures | TextContext) else None
        weights = None if parallel.layer is None else parallel.layer.beside(given)
        return run_layers(
            layer, x, (self.blocks, given), (conditioning, features), (sequence, ids),
            remat=self.config.remat, unroll=self.config.unroll, weights=weights,
        )  # fmt: skip


def _in_order_of_input(output: Float[Array, "b l o"], modality: Modality, keep_sigma: bool) -> Float[Array, "b l p"]:
    """Values ordered (channel, row, column), as those of patches are; the projection has (row, column, channel)."""
    side = modality.patch_size
    output = rearrange(output, "b l (i j c) -> b l c (i j)", i=side, j=side)
    return rearrange(output if keep_sigma else output[:, :, : modality.channels], "b l c v -> b l (c v)")


def _widened(patches: Float[Array, "b l p"], values: int) -> Float[Array, "b l _"]:
    """Patches with zeros appended up to so many values."""
    return jnp.pad(patches, ((0, 0), (0, 0), (0, max(0, values - patches.shape[-1]))))


def coordinates(positions: Int[Array, "b l 4"], axes: int) -> Int[Array, "b l n"]:
    """What rotary embeddings turn by: the place in the sequence (1), row and column (2), or the frame as well (3)."""
    return positions[:, :, :1] if axes == 1 else positions[:, :, -axes:]


def abstract_model(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure, shapes and logical axes of a model, without computing a value."""
    return nnx.split(nnx.eval_shape(lambda: FlagDiT(config, rngs=nnx.Rngs(0))))
