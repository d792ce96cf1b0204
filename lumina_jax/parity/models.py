"""Comparison with recorded forward passes of Flag-DiT, Next-DiT and the audio model, as released and in diffusers.

In: a golden file of one of `CLASSES`. Out: a comparison for each forward or guided call, computed in float32 with the
weights converted by `interop`. Some released models keep the rotary scaling of an earlier guided call, so cases run in
their recorded order and the scaling is kept here as well.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from lumina_jax.flow.guidance import guide_doubled
from lumina_jax.interop.layouts import LAYOUTS, load_model
from lumina_jax.models.flag_dit import FlagDiT, coordinates
from lumina_jax.models.rope import RopeScaling, rotation, time_aware
from lumina_jax.parity.golden import Comparison, Golden, Pair, attempt, compare
from lumina_jax.tokens import TextFeatures, Tokens, latent_grid, pack, tokens_of, unpack, unpatchify

FORWARD, GUIDED, RELATIVE = 3e-5, 2e-4, 1e-4
"""Absolute tolerances of forward and guided calls, and the relative tolerance of both."""
GUIDED_CHANNELS = 3
ANGLES = 5e-6
"""The tolerance of cosines and sines of angles up to about 40 in float32."""

Arguments = Mapping[str, Any]


class Released(NamedTuple):
    """The layout of a class of released models, and the rotary scaling of its calls."""

    layout: str
    scaling: Callable[[Golden, str, RopeScaling], RopeScaling]
    """Returns the scaling for a file, a case, and the scaling after the previous case."""
    keeps_sigma: bool = False


def _until_changed(golden: Golden, case: str, current: RopeScaling) -> RopeScaling:
    """Flag-DiT and the label-conditional Next-DiT: an argument replaces a factor for this and all later calls."""
    given = map(golden.calls[case]["kwargs"].get, ("rope_scaling_factor", "ntk_factor"))
    return RopeScaling(*(old if new is None else new for new, old in zip(given, current[:2])))


def _time_aware(golden: Golden, case: str, current: RopeScaling) -> RopeScaling:
    """Next-DiT: a guided call sets the scaling from its first time; other calls do not change it."""
    arguments = golden.calls[case]["kwargs"]
    if "cfg_scale" not in arguments:
        return current
    factor, watershed = arguments.get("scale_factor", 1.0), arguments.get("scale_watershed", 1.0)
    return time_aware(factor, watershed, float(golden.inputs(case)["t"][0]))


def _per_call(golden: Golden, case: str, current: RopeScaling) -> RopeScaling:
    """diffusers: the rotary embedding is an argument of every call."""
    arguments = golden.calls[case]["kwargs"]
    return RopeScaling(arguments.get("linear_factor", 1.0), arguments.get("ntk_factor", 1.0))


CLASSES = {
    "lumina_t2i/models/model.py:DiT_Llama": Released("lumina", _until_changed),
    "Flag-DiT-ImageNet/models/model.py:DiT_Llama": Released("lumina", _until_changed),
    "Next-DiT-ImageNet/models/models.py:DiT_Llama": Released("lumina", _until_changed),
    "lumina_next_t2i_mini/models/nextdit.py:NextDiT": Released("lumina", _time_aware),
    "lumina_next_t2i/models/model.py:NextDiT": Released("lumina", _time_aware),
    "lumina_audio": Released("lumina", _until_changed),
    "lumina_music": Released("lumina", _until_changed),
    "lumina_t2i DiT_Llama": Released("lumina", _until_changed),
    "diffusers LuminaNextDiT2DModel": Released("diffusers", _per_call, keeps_sigma=True),
}
"""The released models by a prefix of `cls` in the file."""

_run = jax.jit(FlagDiT.__call__, static_argnames=("base_length", "keep_sigma"))


def run(golden: Golden) -> Iterator[Comparison]:
    """Compare every call of the file."""
    released, model = released_class(golden), released_model(golden)
    factors = golden.config.get("rope_scaling_factor", 1.0), golden.config.get("ntk_factor", 1.0)
    scaling = RopeScaling(factors[0], factors[1] * golden.config.get("scale_factor", 1.0))
    for case in golden.calls:
        scaling = released.scaling(golden, case, scaling)
        yield attempt(
            case,
            lambda case=case, scaling=scaling: compare(case, _pairs(model, golden, case, scaling)),  # type: ignore[misc]
        )


def released_class(golden: Golden) -> Released:
    """Return the entry of `CLASSES` for a file; raise ValueError if there is none."""
    for prefix, released in CLASSES.items():
        if golden.cls.startswith(prefix):
            return released
    raise ValueError(f"cls={golden.cls!r} must begin with one of {', '.join(CLASSES)}; name another file")


def released_model(golden: Golden) -> FlagDiT:
    """Return our model with the weights of the file, in float32."""
    layout = LAYOUTS[released_class(golden).layout]
    try:
        config = layout.read_config(golden.config, golden.parameters)
    except KeyError as error:
        raise ValueError(
            f"a file with cls={golden.cls!r} must contain param/{error.args[0]}; record it again"
        ) from error
    return load_model(layout, config, golden.parameters, compute_dtype="float32", remat="none")


def _pairs(model: FlagDiT, golden: Golden, case: str, scaling: RopeScaling) -> Iterator[Pair]:
    inputs, arguments = golden.inputs(case), golden.calls[case]["kwargs"]
    if isinstance(inputs["x"], list):
        yield from _list_pairs(model, inputs, golden.outputs(case), scaling)
        return
    guided = "cfg_scale" in arguments
    ours = _forward(model, inputs, arguments, scaling, released_class(golden).keeps_sigma)
    yield "y", ours, golden.outputs(case)["y"], GUIDED if guided else FORWARD, RELATIVE


def _forward(
    model: FlagDiT, inputs: dict[str, Any], arguments: Arguments, scaling: RopeScaling, keep_sigma: bool
) -> np.ndarray:
    """Return the output [b c h w] (for sounds [b c w]) for a batch of samples of the same size."""
    config, x = model.config, inputs["x"]
    guided = "cfg_scale" in arguments
    if guided:
        half = x[: len(x) // 2]
        x = np.concatenate([half, half])
    sound = x.ndim == 3
    latents = rearrange(jnp.asarray(x[:, :, None] if sound else x), "b c h w -> b 1 h w c")
    tokens, grid = tokens_of(
        latents, patch_size=config.patch_size, nextline=config.nextline, nextframe=config.nextframe
    )
    base_length = arguments.get("base_seqlen") if arguments.get("proportional_attn") else None
    output = _call(model, tokens, inputs, scaling, base_length, keep_sigma)
    if guided:
        channels = min(GUIDED_CHANNELS, config.channels)
        output = guide_doubled(output, arguments["cfg_scale"], patch_size=config.patch_size, guided_channels=channels)
    pictures = np.asarray(rearrange(unpatchify(output, grid, config.patch_size), "b 1 h w c -> b c h w"))
    return pictures[:, :, 0] if sound else pictures


def _list_pairs(
    model: FlagDiT, inputs: dict[str, Any], outputs: dict[str, Any], scaling: RopeScaling
) -> Iterator[Pair]:
    """Compare pictures of several sizes, one in each padded row.

    Outputs at padding are not compared, because they are never used and differ between implementations.
    """
    config = model.config
    tokens, grids = packed_list(model, inputs["x"])
    output = _call(model, jax.tree.map(jnp.asarray, tokens), inputs, scaling, None)
    valid = tokens.segment_ids > 0
    latents = [row[0] for row in unpack(np.asarray(output), grids, patch_size=config.patch_size)]
    for index, (ours, theirs) in enumerate(zip(latents, outputs["y"])):
        yield f"y.{index}", rearrange(ours, "1 h w c -> c h w"), theirs, FORWARD, RELATIVE
    if "embed" in outputs:
        yield "embed", model.embed(jax.tree.map(jnp.asarray, tokens)), outputs["embed"], FORWARD, RELATIVE
    if "mask" in outputs:
        yield "mask", valid, outputs["mask"], 0.0, 0.0
    if "freqs" in outputs:
        position = coordinates(jnp.asarray(tokens.positions), config.rope_axes)
        turns = rotation(position, head_width=config.head_width, theta=config.rope_theta, scaling=scaling)
        yield "freqs", jnp.stack(turns, axis=-1)[:, :, 0][valid], outputs["freqs"][valid], ANGLES, 0.0
    if "tokens" in outputs:
        p = config.patch_size
        theirs = rearrange(outputs["tokens"], "b l (i j c) -> b l c (i j)", i=p, j=p)[:, :, : config.channels]
        yield "tokens", np.asarray(output)[valid], rearrange(theirs, "b l c v -> b l (c v)")[valid], FORWARD, RELATIVE


def packed_list(model: FlagDiT, pictures: list[np.ndarray]) -> tuple[Tokens, list]:
    """Pack pictures [c h w] one in each row, padded to the longest."""
    config = model.config
    p, nextline = config.patch_size, config.nextline
    latents = [rearrange(picture, "c h w -> 1 h w c") for picture in pictures]
    longest = max(
        latent_grid(*latent.shape[:3], patch_size=p, nextline=nextline, nextframe=False).length for latent in latents
    )
    rows = [[latent] for latent in latents]
    return pack(rows, row_tokens=longest, patch_size=p, nextline=nextline, nextframe=False)


def read_condition(model: FlagDiT, inputs: dict[str, Any]) -> TextFeatures | jax.Array:
    """Return caption features with their mask, or labels."""
    if model.config.conditioning == "label":
        return jnp.asarray(inputs["y"])[:, None]
    if "context" in inputs:
        features = jnp.asarray(inputs["context"])
        return TextFeatures(features, jnp.ones(features.shape[:2], jnp.int32))
    return TextFeatures(jnp.asarray(inputs["cap_feats"]), jnp.asarray(inputs["cap_mask"]))


def _call(
    model: FlagDiT,
    tokens: Tokens,
    inputs: dict[str, Any],
    scaling: RopeScaling,
    base_length: int | None,
    keep_sigma: bool = False,
) -> jax.Array:
    # the released network takes scaled times, ours takes times in 0..1
    t, condition = jnp.asarray(inputs["t"])[:, None] / model.config.time_scale, read_condition(model, inputs)
    return _run(model, tokens, t, condition, rope=scaling, base_length=base_length, keep_sigma=keep_sigma)
