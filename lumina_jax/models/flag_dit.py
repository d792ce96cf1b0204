"""Flag-DiT, the flow-based large diffusion transformer (Lumina-T2X, arXiv 2405.05945, section 2.2 and figure 3);
Next-DiT, which differs in its block, its rotary embedding and its final layer (Lumina-Next, arXiv 2406.18583); and DiT
(arXiv 2212.09748), which differs in its block (`blocks.py`) and in its positions, which are added to the tokens.

In: a batch of packed tokens, the time of each sample, and its caption or label. Out: the prediction (by default the
velocity) for each patch, with its values in the order of the input patch; the values at markers and padding have no
meaning. A model of several modalities has an input and an output projection for each; shorter patches are padded with
zeros to the length of the longest.

A row may hold several samples: times, captions and labels are per segment, [b s]. Parameters of all layers are
stacked; one scan runs them, so compile time does not grow with depth.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from lumina_jax.config import ModalityConfig, ModelConfig
from lumina_jax.kernels.arguments import Attend, may_be_kernels
from lumina_jax.kernels.flash.blocks import Sizes
from lumina_jax.kernels.flash.call import row_length
from lumina_jax.models.attention import (
    LayerText,
    TextKeys,
    TokenContext,
    attend_with,
    lanes_for_kernel,
    proportional_scale,
)
from lumina_jax.models.blocks import BLOCKS, Block, Modulation, values_across
from lumina_jax.models.layers import (
    LabelEmbedding,
    Linear,
    ParameterKeys,
    TimeEmbedding,
    divide,
    normalize,
    param,
    small_normal,
    zeros,
)
from lumina_jax.models.merged_attention import Merging
from lumina_jax.models.parametrization import scale_initial_values
from lumina_jax.models.rope import RopeScaling, rotation, sine_positions
from lumina_jax.models.shared_attention import Sharing
from lumina_jax.models.stack import run_layers
from lumina_jax.models.text_layers import CaptionPooling, TextLayers
from lumina_jax.parallel.columns import DividedColumns
from lumina_jax.parallel.gather import ShardedWeights
from lumina_jax.parallel.tensor import ALONE, Tensor
from lumina_jax.tokens import Kind, TextFeatures, Tokens, lengthened


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How devices compute a model together, inside `jax.shard_map`; by default one device does everything."""

    attend: Attend | None = None
    """Attention across the devices that share a row; None: the back end that the configuration names."""
    layer: ShardedWeights | None = None
    """How the weights of one layer are gathered; None: each device has all of them."""
    modulation: DividedColumns | None = None
    """How devices that divide the matrices of adaLN compute its vectors for all layers at once, so that those matrices
    are not among what `layer` gathers; None: each layer computes its own."""
    tensor: Tensor = ALONE
    """The devices that divide attention heads and the hidden width of the feed-forward."""
    row: tuple[str, ...] = ()
    """The mesh axes over which the tokens of a row are divided."""


class TextContext(NamedTuple):
    """What depends on the captions alone: computed once, used at every step of the sampler."""

    pooled: Float[Array, "b s c"]
    keys: TextKeys
    segment_ids: Int[Array, "b t"]


Condition = TextFeatures | TextContext | Int[Array, "b s"]


class FinalLayer(nnx.Module):
    """LayerNorm without parameters, a scale and (with `model.final_shift`) a shift, and for each modality a
    zero-initialised linear to the values of a patch."""

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
    """The whole network. Sizes: `models/presets.py`.

    `parallel` says how devices compute it together; parameters, their names and initial values do not depend on it.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, parallel: Parallel = Parallel()):
        self.config, self.parallel = config, parallel
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
        self.blocks = jax.vmap(lambda key: BLOCKS[config.block](ParameterKeys(key), config))(keys)
        self.final_layer = FinalLayer(rngs, config)
        scale_initial_values(self, config)
        divide(self, parallel.tensor)

    def __call__(
        self,
        tokens: Tokens,
        t: Float[Array, "b s"],
        condition: Condition,
        *,
        rope: RopeScaling = RopeScaling(),  # noqa: B008 (an immutable value)
        base_length: int | None = None,
        keep_sigma: bool = False,
        sharing: Float[Array, " b"] | None = None,
        merging: Merging | None = None,
    ) -> Float[Array, "b l p"]:
        """The prediction for each patch, float32.

        Args:
          tokens: noised patches x_t in their rows.
          t: time of each sample, 0 noise, 1 data.
          condition: caption features, or what `encode_text` made of them; for a label-conditional model, labels.
          rope: scalings of positions for lengths beyond training.
          base_length: training length for proportional attention; None: the plain softmax scale.
          keep_sigma: return the second half of the channels too, which `model.predict_sigma` adds.
          sharing: how strongly the first sample of each row attends to the second, its reference, from 0 to 1
            (`shared_attention.py`); None: samples see themselves alone.
          merging: which keys are merged, and when (`merged_attention.py`); None: each token has its own.
        """
        chex.assert_rank([tokens.patches, tokens.positions, t], [3, 3, 2])
        chex.assert_equal_shape_prefix([tokens.patches, tokens.positions, t], 1)
        chex.assert_equal_shape([tokens.kinds, tokens.segment_ids])
        chex.assert_equal_shape_prefix([tokens.patches, tokens.kinds, tokens.positions], 2)
        chex.assert_axis_dimension(tokens.patches, 2, self.config.patch_values)
        config, segments, length = self.config, t.shape[1], tokens.kinds.shape[1]
        if sharing is None and merging is None:
            tokens = lengthened(tokens, self._row_length(length, condition))
        dtype = jnp.dtype(config.compute_dtype)
        if isinstance(condition, TextFeatures):
            condition = self._through_text_layers(condition)
        scale = None
        if base_length is not None:
            scale = proportional_scale(tokens.segment_ids, segments, base_length, self.parallel.row)
        turns, lanes, where = None, None, coordinates(tokens.positions, config.position_axes)
        x = self.embed(tokens)
        if config.position_kind == "rope":
            turns = rotation(where, head_width=config.head_width, theta=config.rope_theta, scaling=rope)
            lanes = lanes_for_kernel(config, self.parallel.tensor, turns)
        else:
            x = x + sine_positions(where, width=config.width, theta=config.rope_theta, scaling=rope)
        shared = None if sharing is None else Sharing(sharing, self.parallel.row, config.attention)
        merging = None if merging is None else dataclasses.replace(merging, row=self.parallel.row)
        context = TokenContext(tokens.segment_ids, turns, scale, lanes, shared, merging)
        conditioning = (self.time_embedding(config.time_scale * t) + self._pooled(condition, segments)).astype(dtype)
        x = self._run_blocks(x.astype(dtype), conditioning, context, condition)
        outputs = self.final_layer(x, conditioning, tokens.segment_ids)
        predictions = (
            _in_order_of_input(output, modality, keep_sigma) for output, modality in zip(outputs, config.modalities)
        )
        values = _by_modality(tokens, [_padded(prediction, config.patch_values) for prediction in predictions])
        return values[:, :length]

    def _row_length(self, tokens: int, condition: Condition) -> int:
        """The tokens of a row for which attention need not append some in each layer."""
        config, devices = self.config, self.parallel.tensor.size
        if self.parallel.row or not may_be_kernels(config.attention):
            return tokens
        text = condition.segment_ids.shape[1] if isinstance(condition, TextFeatures | TextContext) else 0
        sizes = Sizes(
            length=tokens,
            text=0 if config.block == "dit" else text,
            heads=config.heads // devices,
            key_heads=config.key_heads // devices,
            width=config.head_width,
            itemsize=jnp.dtype(config.compute_dtype).itemsize,
        )
        return row_length(sizes, auto=config.attention == "auto")

    def embed(self, tokens: Tokens) -> Float[Array, "b l m"]:
        """Patches through the input projection of their modality, and the learned tokens of the markers, in float32."""
        patches = tokens.patches.astype(jnp.float32)
        x = _by_modality(
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

    def encode_text(self, text: TextFeatures, segments: int = 1) -> TextContext:
        """What depends on the captions alone: the pooled caption, and keys and values for every layer."""
        text = self._through_text_layers(text)
        features, gathering = text.features.astype(jnp.dtype(self.config.compute_dtype)), self.parallel.layer

        def text_keys(block: Block) -> TextKeys:
            block = block if gathering is None else gathering.whole(block)
            assert block.text is not None
            return block.text(features)

        keys = jax.lax.map(text_keys, self._layers)
        return TextContext(self.caption_pooling(text, segments), keys, text.segment_ids)

    @property
    def _layers(self) -> Block:
        """The stacked layers, without what `parallel.modulation` computes for all of them."""
        if self.parallel.modulation is None:
            return self.blocks
        layers = jax.tree.map(lambda leaf: leaf, self.blocks)
        layers.modulation = None
        return layers

    def _through_text_layers(self, text: TextFeatures) -> TextFeatures:
        if self.text_layers is None:
            return text
        return self.text_layers(text, attend_with(self.config), jnp.dtype(self.config.compute_dtype))

    def _pooled(self, condition: Condition, segments: int) -> Float[Array, "b s c"]:
        if isinstance(condition, TextContext):
            return condition.pooled
        if isinstance(condition, TextFeatures):
            return self.caption_pooling(condition, segments)
        return self.label_embedding(condition)

    def _run_blocks(
        self, x: Float[Array, "b l m"], conditioning: Float[Array, "b s c"], tokens: TokenContext, condition: Condition
    ) -> Float[Array, "b l m"]:
        attend, gathering = self.parallel.attend or attend_with(self.config), self.parallel.layer
        attend = functools.partial(attend, segments=conditioning.shape[1])

        def layer(x: Float[Array, "b l m"], inputs: tuple[Block, Any, Any], shared: Any, fixed: Any) -> Array:
            (block, keys, modulation), (conditioning, features), (tokens, text_ids) = inputs, shared, fixed
            text = None
            if block.text is not None:
                text = LayerText(block.text(features) if keys is None else keys, text_ids)
            modulation = block.modulation.values(conditioning) if modulation is None else modulation
            return block(x, modulation, tokens, text, attend)

        features = jnp.asarray(condition.features, x.dtype) if isinstance(condition, TextFeatures) else None
        given = condition.keys if isinstance(condition, TextContext) else None
        ids = jnp.asarray(condition.segment_ids) if isinstance(condition, TextFeatures | TextContext) else None
        modulation = None
        if self.parallel.modulation is not None:
            modulation = values_across(self.blocks.modulation, conditioning, self.parallel.modulation)
        weights = None if gathering is None else gathering.beside((given, modulation))
        return run_layers(
            layer, x, (self._layers, given, modulation), (conditioning, features), (tokens, ids),
            remat=self.config.remat, unroll=self.config.unroll, weights=weights,
        )  # fmt: skip


def _by_modality(tokens: Tokens, values: list[Float[Array, "b l _"]]) -> Float[Array, "b l _"]:
    """For each token its row of the values of its modality."""
    chosen, *others = values
    for modality, value in enumerate(others, start=1):
        assert tokens.modalities is not None
        chosen = jnp.where((tokens.modalities == modality)[:, :, None], value, chosen)
    return chosen


def _in_order_of_input(
    output: Float[Array, "b l o"], modality: ModalityConfig, keep_sigma: bool
) -> Float[Array, "b l p"]:
    """Values ordered (channel, row, column) as in patches, from those of the projection: (row, column, channel)."""
    side = modality.patch_size
    output = rearrange(output, "b l (i j c) -> b l c (i j)", i=side, j=side)
    return rearrange(output if keep_sigma else output[:, :, : modality.channels], "b l c v -> b l (c v)")


def _padded(patches: Float[Array, "b l p"], values: int) -> Float[Array, "b l _"]:
    """Patches with zeros appended until each has `values` values."""
    return jnp.pad(patches, ((0, 0), (0, 0), (0, max(0, values - patches.shape[-1]))))


def coordinates(positions: Int[Array, "b l 4"], axes: int) -> Int[Array, "b l n"]:
    """The coordinates of a position: index in the sequence (1 axis), row and column (2), frame as well (3)."""
    return positions[:, :, :1] if axes == 1 else positions[:, :, -axes:]


def abstract_model(config: ModelConfig, parallel: Parallel = Parallel()) -> tuple[nnx.GraphDef, nnx.State]:
    """Structure, shapes and logical axes of a model, without computing a value."""
    return nnx.split(nnx.eval_shape(lambda: FlagDiT(config, rngs=ParameterKeys(0), parallel=parallel)))
