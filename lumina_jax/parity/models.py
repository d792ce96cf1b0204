"""Recorded forward passes of the authors' Flag-DiT, text- and label-conditional.

In: a golden file of `lumina_t2i` or `Flag-DiT-ImageNet`. Out: one comparison for each forward or guided call, made in
float32 with the weights converted by `interop`. The released model keeps the rotary scaling of the last guided call
that named one; cases run in their recorded order and so do we.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from lumina_jax.flow.guidance import guide_doubled
from lumina_jax.interop.lumina import from_lumina, model_config
from lumina_jax.models.flag_dit import FlagDiT
from lumina_jax.models.rope import RopeScaling
from lumina_jax.parity.golden import Comparison, Golden, Pair, attempt, compare
from lumina_jax.tokens import TextFeatures, Tokens, latent_grid, pack, tokens_of, unpack, unpatchify

FORWARD, GUIDED, RELATIVE = 3e-5, 2e-4, 1e-4
GUIDED_CHANNELS = 3


_run = jax.jit(FlagDiT.__call__, static_argnames="base_length")


def run(golden: Golden) -> Iterator[Comparison]:
    """Every call of the file."""
    model = released_model(golden)
    rope = RopeScaling(golden.config.get("rope_scaling_factor", 1.0), golden.config.get("ntk_factor", 1.0))
    for case, call in golden.calls.items():
        arguments = call["kwargs"]
        rope = RopeScaling(
            *(new if new is not None else old for new, old in zip(map(arguments.get, _ROPE_ARGUMENTS), rope))
        )
        yield attempt(case, lambda case=case, rope=rope: compare(case, _pairs(model, golden, case, rope)))  # type: ignore[misc]


_ROPE_ARGUMENTS = ("rope_scaling_factor", "ntk_factor")


def released_model(golden: Golden) -> FlagDiT:
    """Our model with the file's weights, in float32."""
    config = model_config(golden.config, golden.parameters, compute_dtype="float32", remat="none")
    return from_lumina(config, golden.parameters)


def _pairs(model: FlagDiT, golden: Golden, case: str, rope: RopeScaling) -> Iterator[Pair]:
    inputs, arguments = golden.inputs(case), golden.calls[case]["kwargs"]
    if isinstance(inputs["x"], list):
        yield from _list_pairs(model, inputs, golden.outputs(case), rope)
        return
    guided = "cfg_scale" in arguments
    yield (
        "y",
        _forward(model, inputs, arguments, rope),
        golden.outputs(case)["y"],
        GUIDED if guided else FORWARD,
        RELATIVE,
    )


def _forward(model: FlagDiT, inputs: dict[str, Any], arguments: dict[str, Any], rope: RopeScaling) -> np.ndarray:
    """The output [b c h w] of a batch of pictures of one size."""
    config, x = model.config, inputs["x"]
    guided = "cfg_scale" in arguments
    if guided:
        half = x[: len(x) // 2]
        x = np.concatenate([half, half])
    latents = rearrange(jnp.asarray(x), "b c h w -> b 1 h w c")
    tokens, grid = tokens_of(
        latents, patch_size=config.patch_size, nextline=config.nextline, nextframe=config.nextframe
    )
    base_length = arguments.get("base_seqlen") if arguments.get("proportional_attn") else None
    output = _call(model, tokens, inputs, rope, base_length)
    if guided:
        channels = min(GUIDED_CHANNELS, config.channels)
        output = guide_doubled(output, arguments["cfg_scale"], patch_size=config.patch_size, guided_channels=channels)
    return np.asarray(rearrange(unpatchify(output, grid, config.patch_size), "b 1 h w c -> b c h w"))


def _list_pairs(model: FlagDiT, inputs: dict[str, Any], outputs: dict[str, Any], rope: RopeScaling) -> Iterator[Pair]:
    """Pictures of several sizes, each in a row of its own that ends in padding.

    Rows of padding carry values that nothing reads, and ours differ; they are left out of `tokens`.
    """
    config = model.config
    tokens, grids = packed_list(model, inputs["x"])
    output = _call(model, Tokens(*map(jnp.asarray, tokens)), inputs, rope, None)
    valid = tokens.segment_ids > 0
    latents = [row[0] for row in unpack(np.asarray(output), grids, patch_size=config.patch_size)]
    for index, (ours, theirs) in enumerate(zip(latents, outputs["y"])):
        yield f"y.{index}", rearrange(ours, "1 h w c -> c h w"), theirs, FORWARD, RELATIVE
    if "embed" in outputs:
        yield "embed", model.embed(Tokens(*map(jnp.asarray, tokens))), outputs["embed"], FORWARD, RELATIVE
    if "mask" in outputs:
        yield "mask", valid, outputs["mask"], 0.0, 0.0
    if "tokens" in outputs:
        p = config.patch_size
        theirs = rearrange(outputs["tokens"], "b l (i j c) -> b l c (i j)", i=p, j=p)[:, :, : config.channels]
        yield "tokens", np.asarray(output)[valid], rearrange(theirs, "b l c v -> b l (c v)")[valid], FORWARD, RELATIVE


def packed_list(model: FlagDiT, pictures: list[np.ndarray]) -> tuple[Tokens, list]:
    """Pictures [c h w], each in a row of its own, as long as the longest."""
    config = model.config
    p, nextline = config.patch_size, config.nextline
    latents = [rearrange(picture, "c h w -> 1 h w c") for picture in pictures]
    longest = max(
        latent_grid(*latent.shape[:3], patch_size=p, nextline=nextline, nextframe=False).length for latent in latents
    )
    rows = [[latent] for latent in latents]
    return pack(rows, row_tokens=longest, patch_size=p, nextline=nextline, nextframe=False)


def condition_of(model: FlagDiT, inputs: dict[str, Any]) -> TextFeatures | jax.Array:
    """Caption features and their mask, or labels."""
    if model.config.conditioning == "label":
        return jnp.asarray(inputs["y"])[:, None]
    return TextFeatures(jnp.asarray(inputs["cap_feats"]), jnp.asarray(inputs["cap_mask"]))


def _call(
    model: FlagDiT, tokens: Tokens, inputs: dict[str, Any], rope: RopeScaling, base_length: int | None
) -> jax.Array:
    t = jnp.asarray(inputs["t"])[:, None]
    return _run(model, tokens, t, condition_of(model, inputs), rope=rope, base_length=base_length)
