"""Recognising a network by the names of its tensors, and removing prefixes from them.

In: the tensors of a checkpoint. Out: the tensors of the network without prefixes, and notes on what was removed; or an
error that describes the file.
"""

import re
from collections.abc import Iterable

from lumina_jax.weights.files import SCALE_NAMES
from lumina_jax.weights.rules import listed
from lumina_jax.weights.tensors import Renamed, Tensors

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Components that torch.compile and FSDP insert anywhere in a name."""
KNOWN_TENSORS = {"lumina": "final_layer.linear.weight", "diffusers": "norm_out.linear_2.weight"}
"""A tensor that every model of the layout has; its prefix in a file is that of all tensors."""
LOW_RANK = re.compile(
    r"(^|[._])(lora|lora_(embedding_)?[AB]|lora_(up|down|mid)|lora_magnitude_vector|hada_w\d.*|lokr_w\d.*|oft_blocks|dora_scale)"
    r"([._]|$)"
)
QUANTISED = re.compile(r"\.(absmax|nested_absmax|quant_map|quant_state\..*|SCB|qweight|qzeros|g_idx)$")
"""Tensors that bitsandbytes, GPTQ and AWQ store in addition to weights, or instead of them."""
HINTS = (
    (re.compile(r"^blocks\.attention\.query\.kernel$"), "these are parameters of lumina_jax; use --from jax"),
    (re.compile(r"(^|\.)x_embedder\.weight$"), "they look like the released checkpoints; use --from lumina"),
    (re.compile(r"(^|\.)time_caption_embed\."), "they look like those of diffusers; use --from diffusers"),
    (re.compile(r"(^|\.)(encoder|decoder)\.conv_(in|out)\."), "they look like those of an autoencoder"),
    (re.compile(r"(^|\.)self_attn\.q_proj\."), "they look like those of a language model"),
    (re.compile(r"(^|\.)(down_blocks|input_blocks)\.0\."), "they look like those of a U-Net"),
    (re.compile(r"(^|\.)(double|single)_blocks\.0\."), "they look like those of Flux"),
)  # fmt: skip
"""Hints for other networks, by a name that each of them has."""
NEWER = re.compile(r"(^|\.)context_refiner\.0\.")


def network(tensors: Tensors, layout: str, origin: str) -> tuple[Tensors, list[str]]:
    """Return the tensors of the network without prefixes, and notes on what was removed.

    Raises:
      ValueError: the file contains a LoRA, another network, or several networks; the message has a remedy.
    """
    check_whole(tensors, origin)
    plain = {name: _without_wrappers(name) for name in tensors}
    known = KNOWN_TENSORS[layout]
    prefixes = sorted({name.removesuffix(known) for name in plain.values() if f".{name}".endswith(f".{known}")})
    if not prefixes:
        raise ValueError(f"{origin}: {_other_names(tensors, layout)}")
    if len(prefixes) > 1:
        raise ValueError(
            f"{origin} contains several networks, with the prefixes {', '.join(map(repr, prefixes))}; save only one of "
            "them"
        )
    [prefix] = prefixes
    if any(NEWER.search(name) for name in plain.values()):
        raise ValueError(
            f"{origin} is a Lumina-Image 2.0 network, which is not supported; use Lumina-T2X or Lumina-Next"
        )
    other = [name for name in plain.values() if not name.startswith(prefix)]
    notes = [f"names: the prefix {prefix!r} was removed"] if prefix else []
    notes += [f"skipped: {len(other)} tensors that do not belong to the network, such as {other[0]}"] if other else []
    if wrapped := sum(name != stored for stored, name in plain.items()):
        notes.append(f"names: the components that torch.compile or FSDP inserted in {wrapped} of them were removed")
    if not notes:
        return tensors, []
    return Renamed(tensors, lambda name: plain[name][len(prefix) :] if plain[name].startswith(prefix) else None), notes


def check_whole(names: Iterable[str], origin: str) -> None:
    """Raise ValueError if the names are those of a LoRA or of quantised weights."""
    names = list(names)
    if quantised := [name for name in names if QUANTISED.search(name) or SCALE_NAMES.search(name)]:
        raise ValueError(
            f"{origin} contains quantised weights ({listed(quantised, most=2)}); use the checkpoint that was not "
            "quantised"
        )
    if low_rank := [name for name in names if LOW_RANK.search(name)]:
        raise ValueError(
            f"{origin} contains a LoRA ({listed(low_rank, most=2)}), which is a change to a model; first merge it into "
            "the model, in diffusers with load_lora_weights, fuse_lora and save_pretrained, and convert the result"
        )


def _without_wrappers(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _other_names(names: Iterable[str], layout: str) -> str:
    found = list(names)
    hint = next((hint for pattern, hint in HINTS if any(pattern.search(name) for name in found)), "check --from")
    return (
        f"it does not have the tensors of a model in the {layout} layout, such as {KNOWN_TENSORS[layout]}, but "
        f"{listed(found, most=3)}; {hint}"
    )
