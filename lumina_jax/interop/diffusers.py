"""The layout of diffusers' `LuminaNextDiT2DModel`, the text-conditional Next-DiT with other names.

In this layout the text attention has a separate query projection, which in the released checkpoints is a copy of that
of the self-attention. A query that our model shares is written twice, and read as shared if the copies are equal.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from lumina_jax.config import ModelConfig
from lumina_jax.interop.limits import Factor, Size, check_fields, layer_fields
from lumina_jax.weights.rules import Rule, linear, norm

CLASS = "LuminaNextDiT2DModel"


class Settings(TypedDict, total=False):
    """The settings in diffusers' config.json."""

    _class_name: str
    num_layers: Size
    num_attention_heads: Size
    num_kv_heads: Size | None
    hidden_size: Size
    patch_size: Size
    in_channels: Size
    cross_attention_dim: Size
    multiple_of: Size
    ffn_dim_multiplier: Factor | None
    norm_eps: Factor
    qk_norm: bool
    learn_sigma: bool


def model_config(theirs: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> ModelConfig:
    """Convert diffusers' config.json to our configuration; settings that are absent have diffusers' defaults."""
    layers, heads = theirs.get("num_layers", 32), theirs.get("num_attention_heads", 32)
    copies = (("to_q.weight", "to_q.weight"), ("norm_q.weight", "norm_q.weight"), ("norm_q.bias", "norm_q.bias"))
    shared = all(
        np.array_equal(tensors[f"layers.{layer}.attn1.{original}"], tensors[f"layers.{layer}.attn2.{copy}"])
        for layer in range(layers)
        for original, copy in copies
        if f"layers.{layer}.attn2.{copy}" in tensors and f"layers.{layer}.attn1.{original}" in tensors
    )
    return ModelConfig(
        layers=layers,
        heads=heads,
        width=theirs.get("hidden_size", 2304),
        kv_heads=None if theirs.get("num_kv_heads") == heads else theirs.get("num_kv_heads"),
        block="next",
        final_shift=False,
        own_text_query=not shared,
        patch_size=theirs.get("patch_size", 2),
        channels=theirs.get("in_channels", 4),
        text_width=theirs.get("cross_attention_dim", 2048),
        qk_norm=theirs.get("qk_norm", True),
        mlp_multiple_of=theirs.get("multiple_of", 256),
        mlp_multiplier=theirs.get("ffn_dim_multiplier"),
        norm_eps=theirs.get("norm_eps", 1e-5),
        nextline=False,
        nextframe=False,
        pad_token=True,
        predict_sigma=theirs.get("learn_sigma", True),
        rope_axes=2,
    )


def their_config(config: ModelConfig) -> dict[str, Any]:
    """Convert our configuration to diffusers' config.json, with a latent size of 128 as released.

    Raises:
      ValueError: diffusers cannot represent the model; the message names the fields.
    """
    expected = {
        "conditioning": "text", "rope_axes": 2, "nextline": False, "nextframe": False,
        "norm_weights": True, "final_shift": False, "condition_limit": 1024, "rope_theta": 10_000.0,
        "attention_width": None, "time_scale": 1.0, "pad_token": True, "text_layers": 0, "others": (),
        "base_heads": None,  # queries of wider heads have a factor, which the layout has not
    }  # fmt: skip
    check_fields(config, layer_fields(config, "next") | expected, f"diffusers' {CLASS}, a text-conditional Next-DiT,")
    return {
        "_class_name": CLASS,
        "sample_size": 128,
        "patch_size": config.patch_size,
        "in_channels": config.channels,
        "hidden_size": config.width,
        "num_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_kv_heads": config.key_heads,  # diffusers fails with None, its default
        "multiple_of": config.mlp_multiple_of,
        "ffn_dim_multiplier": config.mlp_multiplier,
        "norm_eps": config.norm_eps,
        "learn_sigma": config.predict_sigma,
        "qk_norm": config.qk_norm,
        "cross_attention_dim": config.text_width,
        "scaling_factor": 1.0,
    }


def rules(config: ModelConfig) -> list[Rule]:
    """Return the rules for a Next-DiT with this configuration."""
    layer, embedding = "layers.{layer}", "time_caption_embed"
    query = "text_query" if config.own_text_query else "query"
    table = [
        Rule("pad_token", "pad_token"),
        *linear("patch_embedder.proj", "patch_embedding", bias=True),
        *linear(f"{embedding}.timestep_embedder.linear_1", "time_embedding.inner", bias=True),
        *linear(f"{embedding}.timestep_embedder.linear_2", "time_embedding.outer", bias=True),
        *norm(f"{embedding}.caption_embedder.0", "caption_pooling.norm", bias=True),
        *linear(f"{embedding}.caption_embedder.1", "caption_pooling.linear", bias=True),
        *linear(f"{layer}.norm1.linear", "blocks.modulation.linear", bias=True),
        *norm(f"{layer}.norm1.norm", "blocks.attention_norm", bias=False),
        *norm(f"{layer}.norm2", "blocks.attention_out_norm", bias=False),
        *norm(f"{layer}.ffn_norm1", "blocks.mlp_norm", bias=False),
        *norm(f"{layer}.ffn_norm2", "blocks.mlp_out_norm", bias=False),
        *linear(f"{layer}.feed_forward.linear_1", "blocks.mlp.gate", bias=False),
        *linear(f"{layer}.feed_forward.linear_2", "blocks.mlp.down", bias=False),
        *linear(f"{layer}.feed_forward.linear_3", "blocks.mlp.up", bias=False),
        *linear(f"{layer}.attn1.to_q", "blocks.attention.query", bias=False),
        *linear(f"{layer}.attn1.to_k", "blocks.attention.key", bias=False),
        *linear(f"{layer}.attn1.to_v", "blocks.attention.value", bias=False),
        *linear(f"{layer}.attn2.to_q", f"blocks.attention.{query}", bias=False),
        *linear(f"{layer}.attn2.to_out.0", "blocks.attention.out", bias=False),
        *norm(f"{layer}.norm1_context", "blocks.text.norm", bias=False),
        *linear(f"{layer}.attn2.to_k", "blocks.text.key", bias=False),
        *linear(f"{layer}.attn2.to_v", "blocks.text.value", bias=False),
        Rule(f"{layer}.gate", "blocks.text.gate"),
        *linear("norm_out.linear_1", "final_layer.modulation.linear", bias=True),
        *linear("norm_out.linear_2", "final_layer.linear", bias=True),
    ]
    if config.qk_norm:
        table += norm(f"{layer}.attn1.norm_q", "blocks.attention.query_norm", bias=True)
        table += norm(f"{layer}.attn1.norm_k", "blocks.attention.key_norm", bias=True)
        table += norm(f"{layer}.attn2.norm_q", f"blocks.attention.{query}_norm", bias=True)
        table += norm(f"{layer}.attn2.norm_k", "blocks.text.key_norm", bias=True)
    return table
