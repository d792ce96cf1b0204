"""The image encoder of CLIP and both projections, so that pictures and captions can be compared.

In: pictures [b side side 3] with values 0..255; token ids [b t] and their mask. Out: features [b e] of either, whose
cosine says how well a caption fits a picture. Radford et al., arXiv 2103.00020: a vision transformer with a class token
and learned absolute positions, pre-norm layers, and a norm before them. The published layout is `model_type: clip`.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lumina_jax.encoders.clip import CLIP_LAYER_RULES, ClipLayer, ClipText, load_clip
from lumina_jax.encoders.numbers import Count
from lumina_jax.encoders.published import (
    CONFIG_FILE,
    apply_layers,
    check_rules,
    check_settings,
    heads_divide_width,
    read_config,
    read_sizes,
    read_weights,
    stack_layers,
    typed_values,
)
from lumina_jax.models.layers import LayerNorm, Linear, ParameterKeys, param, small_normal
from lumina_jax.weights.files import Renamed
from lumina_jax.weights.modules import load_module
from lumina_jax.weights.rules import CONVOLUTION, MATRIX, Rule, norm

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the values 0..1 of a channel, in the data that OpenAI's and OpenCLIP's networks were trained on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipImageConfig:
    """Sizes of a CLIP image encoder."""

    side: int
    patch: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    norm_eps: float
    activation: Literal["quick_gelu", "gelu"]
    features: int
    """The width of the features that pictures and captions share."""


class ClipImage(nnx.Module):
    """The image encoder and its projection."""

    def __init__(self, rngs: nnx.Rngs, config: ClipImageConfig):
        width, patch, patches = config.width, config.patch, (config.side // config.patch) ** 2
        self.patches = param(rngs, (patch, patch, 3, width), small_normal, axes=(None, None, None, "embed"))
        self.class_token = param(rngs, (width,), small_normal, axes=("embed",))
        self.positions = param(rngs, (patches + 1, width), small_normal, axes=(None, "embed"))
        self.first_norm = LayerNorm(rngs, width, eps=config.norm_eps)
        self.layers = stack_layers(lambda rngs: ClipLayer(rngs, config), rngs, config.layers)
        self.last_norm = LayerNorm(rngs, width, eps=config.norm_eps)
        self.projection = Linear(rngs, width, config.features, axes=("embed", None))
        self.config = config

    def __call__(self, pictures: Float[Array, "b h w 3"]) -> Float[Array, "b e"]:
        config, batch = self.config, len(pictures)
        with jax.default_matmul_precision("highest"):
            x = (pictures / 255 - jnp.array(MEAN)) / jnp.array(DEVIATION)
            x = jax.lax.conv_general_dilated(
                x, self.patches[...], (config.patch,) * 2, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            token = jnp.broadcast_to(self.class_token[...], (batch, 1, config.width))
            x = jnp.concatenate([token, x.reshape(batch, -1, config.width)], axis=1) + self.positions[...]
            allowed = jnp.ones((batch, x.shape[1], x.shape[1]), bool)
            x = apply_layers(self.layers, self.first_norm(x), allowed)
            return self.projection(self.last_norm(x[:, 0]))


class ClipCaption(nnx.Module):
    """The text encoder and its projection."""

    def __init__(self, text: ClipText, projection: Linear):
        self.text, self.projection = text, projection

    def __call__(self, token_ids: Int[Array, "b t"], mask: Bool[Array, "b t"]) -> Float[Array, "b e"]:
        """Project the state of the closing token, which is the last real one of each caption."""
        with jax.default_matmul_precision("highest"):
            states = self.text(token_ids, mask)
            return self.projection(states[jnp.arange(len(states)), mask.sum(axis=1) - 1])


def load_clip_image(folder: Path) -> ClipImage:
    """Read the image encoder of the CLIP in `folder`.

    Raises:
      ValueError: a file is missing or unreadable, or the CLIP has no image encoder or one that is not implemented here.
    """
    config, tensors = _config(folder), read_weights(folder)

    def rename(stored: str) -> str | None:
        name = stored.removeprefix(_VISION)
        return name if (name != stored or stored == _PROJECTION) and name != "embeddings.position_ids" else None

    try:
        build = lambda: ClipImage(ParameterKeys(0), config)  # noqa: E731
        return load_module(build, Renamed(tensors, rename), _RULES, layers=config.layers)
    except ValueError as error:
        raise ValueError(f"{tensors.path} does not match {folder / CONFIG_FILE}: {error}") from error


def load_clip_caption(folder: Path) -> ClipCaption:
    """Read the text encoder of the CLIP in `folder`, and its projection.

    Raises:
      ValueError: as `load_clip_image`.
    """
    text, tensors, features = load_clip(folder), read_weights(folder), _config(folder).features
    if "text_projection.weight" not in tensors:
        raise ValueError(f"{tensors.path} lacks text_projection.weight; use the weights of a whole CLIP")
    rule, width = Rule("text_projection.weight", "kernel", MATRIX), text.config.width
    only = Renamed(tensors, lambda name: name if name == rule.theirs else None)
    try:
        build = lambda: Linear(ParameterKeys(0), width, features, axes=("embed", None))  # noqa: E731
        return ClipCaption(text, load_module(build, only, [rule], layers=1))
    except ValueError as error:
        raise ValueError(f"{tensors.path} does not match {folder / CONFIG_FILE}: {error}") from error


_VISION, _PROJECTION = "vision_model.", "visual_projection.weight"
_RULES = (
    Rule("embeddings.patch_embedding.weight", "patches", CONVOLUTION),
    Rule("embeddings.class_embedding", "class_token"),
    Rule("embeddings.position_embedding.weight", "positions"),
    *norm("pre_layrnorm", "first_norm", bias=True),
    *CLIP_LAYER_RULES,
    *norm("post_layernorm", "last_norm", bias=True),
    Rule(_PROJECTION, "projection.kernel", MATRIX),
)
_PUBLISHED = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "norm_eps": "layer_norm_eps",
    "activation": "hidden_act",
    "side": "image_size",
    "patch": "patch_size",
}
_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-5,
    "hidden_act": "quick_gelu",
    "image_size": 224,
    "patch_size": 32,
}
"""The defaults of the published format: `vision_config` may list only values that differ."""


def _config(folder: Path) -> ClipImageConfig:
    values = read_config(folder)
    if values.get("model_type") != "clip":
        raise ValueError(
            f"{folder / CONFIG_FILE} has model_type={values.get('model_type')!r}, but pictures need a whole CLIP, of "
            "model_type 'clip'; download one such as openai/clip-vit-base-patch32"
        )
    kinds: dict[str, Any] = dict.fromkeys(("vision_config", "vision_config_dict"), dict[str, Any])
    given = typed_values(values, {**kinds, "projection_dim": Count}, folder)
    older = given.get("vision_config_dict")  # if present, it replaces vision_config in this format
    sizes = {**_DEFAULTS, **(given.get("vision_config", {}) if older is None else older)}
    found = read_sizes(sizes, _PUBLISHED, folder)
    check_settings(sizes, {"hidden_act": ["quick_gelu", "gelu"], "num_channels": [3]}, folder)
    side, patch = found["side"], found["patch"]
    rules = {f"image_size={side} must be a multiple of patch_size={patch}": side % patch == 0}
    check_rules({**heads_divide_width(found), **rules}, folder)
    return ClipImageConfig(**found, features=given.get("projection_dim", 512))
