"""What the names of tensors tell: which network they are of, and what was put before them.

In: the tensors of a checkpoint as it was found. Out: those of the network under their plain names, and notes on what
was removed; or an error that says what the file is instead.
"""

import re
from collections.abc import Iterable

from lumina_jax.weights.files import SCALE
from lumina_jax.weights.rules import listed
from lumina_jax.weights.tensors import Renamed, Tensors

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile and FSDP put anywhere into a name."""
ENDS = {"lumina": "final_layer.linear.weight", "diffusers": "norm_out.linear_2.weight"}
"""A tensor that every model of a layout has; what stands before it in a file stands before all of them."""
LOW_RANK = re.compile(
    r"(^|[._])(lora|lora_(embedding_)?[AB]|lora_(up|down|mid)|lora_magnitude_vector|hada_w\d.*|lokr_w\d.*|oft_blocks|dora_scale)"
    r"([._]|$)"
)
QUANTISED = re.compile(r"\.(absmax|nested_absmax|quant_map|quant_state\..*|SCB|qweight|qzeros|g_idx)$")
"""What bitsandbytes, GPTQ and AWQ store beside weights, or instead of them."""
KINDS = (
    (re.compile(r"^blocks\.attention\.query\.kernel$"), "these are parameters of lumina_jax: --from jax"),
    (re.compile(r"(^|\.)x_embedder\.weight$"), "they look like those of the authors: --from lumina"),
    (re.compile(r"(^|\.)time_caption_embed\."), "they look like those of diffusers: --from diffusers"),
    (re.compile(r"(^|\.)(encoder|decoder)\.conv_(in|out)\."), "they look like those of an autoencoder"),
    (re.compile(r"(^|\.)self_attn\.q_proj\."), "they look like those of a language model"),
    (re.compile(r"(^|\.)(down_blocks|input_blocks)\.0\."), "they look like those of a U-Net"),
    (re.compile(r"(^|\.)(double|single)_blocks\.0\."), "they look like those of Flux"),
)  # fmt: skip
"""What other names mean."""
NEWER = re.compile(r"(^|\.)context_refiner\.0\.")


def network(tensors: Tensors, layout: str, origin: str) -> tuple[Tensors, list[str]]:
    """The tensors of the network under their plain names, and notes on what was removed.

    Raises:
      ValueError: the file holds a LoRA, another network, or several; the message says what to do.
    """
    check_whole(tensors, origin)
    plain = {name: _without_wrappers(name) for name in tensors}
    end = ENDS[layout]
    prefixes = sorted({name.removesuffix(end) for name in plain.values() if f".{name}".endswith(f".{end}")})
    if not prefixes:
        raise ValueError(f"{origin}: {_other_names(tensors, layout)}")
    if len(prefixes) > 1:
        raise ValueError(
            f"{origin} holds several networks, whose names begin with {', '.join(map(repr, prefixes))}; save one alone"
        )
    [prefix] = prefixes
    if any(NEWER.search(name) for name in plain.values()):
        raise ValueError(f"{origin} is a Lumina-Image 2.0, whose network is another than those of Lumina-T2X and Next")
    other = [name for name in plain.values() if not name.startswith(prefix)]
    notes = [f"names: {prefix!r} at the beginning was removed"] if prefix else []
    notes += [f"left out: {len(other)} tensors besides the network, such as {other[0]}"] if other else []
    if wrapped := sum(name != stored for stored, name in plain.items()):
        notes.append(f"names: what torch.compile or FSDP put into {wrapped} of them was removed")
    if not notes:
        return tensors, []
    return Renamed(tensors, lambda name: plain[name][len(prefix) :] if plain[name].startswith(prefix) else None), notes


def check_whole(names: Iterable[str], origin: str) -> None:
    """Raises ValueError when the names are those of a LoRA, which changes a model and is none, or of integers with
    their scales."""
    names = list(names)
    if quantised := [name for name in names if QUANTISED.search(name) or SCALE.search(name)]:
        raise ValueError(
            f"{origin} holds quantised weights ({listed(quantised, most=2)}); take the checkpoint that was not "
            "quantised"
        )
    if low_rank := [name for name in names if LOW_RANK.search(name)]:
        raise ValueError(
            f"{origin} holds a LoRA ({listed(low_rank, most=2)}), which changes a model and is none; merge it into "
            "its model first, in diffusers with load_lora_weights, fuse_lora and save_pretrained, and convert that"
        )


def _without_wrappers(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _other_names(names: Iterable[str], layout: str) -> str:
    found = list(names)
    hint = next((hint for kind, hint in KINDS if any(kind.search(name) for name in found)), "check --from")
    return (
        f"it does not have the tensors of a model of the {layout} layout, such as {ENDS[layout]}, but "
        f"{listed(found, most=3)}; {hint}"
    )
