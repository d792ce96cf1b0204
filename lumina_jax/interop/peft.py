"""Adapters in files of PEFT, for the transformer of diffusers: adapter_config.json and adapter_model.safetensors.

In: such a folder and the configuration of a model, or an adapter of ours. Out: the other. Matrices are transposed and
their layers stacked, so that a round trip is exact; B has no scale in files, whose configuration has alpha instead. The
names of modules are those of `diffusers.rules`.

Our labels in the safetensors file name the base by its fingerprint, which PEFT does not record.
"""

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from typing_extensions import TypedDict

from lumina_jax.config import ModelConfig
from lumina_jax.documents import read_json
from lumina_jax.interop.converted import parameter_shapes
from lumina_jax.interop.fitting import reasons_against
from lumina_jax.interop.layouts import LAYOUTS
from lumina_jax.interop.sources import WeightSource
from lumina_jax.models.adapters import Decomposed, Factors, check_base
from lumina_jax.weights.files import TensorFiles
from lumina_jax.weights.folders import check_destination, new_folder, write_marker
from lumina_jax.weights.rules import Rule, listed
from lumina_jax.weights.tensors import ComputedTensors
from lumina_jax.weights.writer import Planned, write_tensors, write_text

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model"
PREFIX = "base_model.model."
BASE_LABEL = "lumina_jax_base"
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?:(?P<factor>[AB])\.weight|(?P<magnitude>magnitude_vector))")
MAGNITUDE = "magnitude"


class Adapter(NamedTuple):
    """Low-rank changes of matrices, and the factor of each, which is not yet in its B."""

    factors: dict[str, Factors]
    """By the dotted name of our parameter; of stacked layers there may be the last ones alone."""
    alphas: dict[str, float]
    is_rslora: bool
    base: str = ""
    """The fingerprint of the parameters that are changed; nothing: not known."""
    magnitudes: Mapping[str, np.ndarray] = MappingProxyType({})
    """The lengths of columns of adapters of the kind DoRA, [*layers, out]."""

    def scale(self, name: str) -> float:
        """The factor of a change: alpha / rank, or alpha / sqrt(rank)."""
        rank = self.factors[name].a.shape[-1]
        return self.alphas[name] / (math.sqrt(rank) if self.is_rslora else rank)

    def scaled(self, strength: float = 1.0) -> dict[str, Factors | Decomposed]:
        """The changes, with scale and strength in B.

        Raises:
          ValueError: DoRA, which has no strength but 1.
        """
        if self.magnitudes and strength != 1:
            raise ValueError(f"an adapter of the kind DoRA has no strength but 1, not {strength:g}; leave it out")
        changes: dict[str, Factors | Decomposed] = {}
        for name, (a, b) in self.factors.items():
            b = b * (strength * self.scale(name))
            changes[name] = Decomposed(a, b, self.magnitudes[name]) if name in self.magnitudes else Factors(a, b)
        return changes


class PeftSettings(TypedDict, total=False):
    """The fields of adapter_config.json that say what an adapter computes."""

    peft_type: str
    r: int
    lora_alpha: float
    use_rslora: bool
    use_dora: bool
    bias: str
    rank_pattern: dict[str, int] | None
    alpha_pattern: dict[str, float] | None
    modules_to_save: list[str] | None
    fan_in_fan_out: bool


def is_peft(folder: Path) -> bool:
    """Whether the folder holds an adapter of PEFT."""
    return (folder / CONFIG).is_file()


def read_peft(folder: Path, config: ModelConfig) -> Adapter:
    """Read an adapter for a model of this configuration. Layers without one get zeros.

    Raises:
      ValueError: files are missing or damaged, the adapter is of another kind, rank or model; the message names the
        first tensors that do not fit.
    """
    rules, settings = _rules(config), _settings(folder)
    modules = _modules(folder, TensorFiles(folder / f"{WEIGHTS}.safetensors"))
    names = [name.removesuffix(".weight") for rule in rules for name in rule.their_names(config.layers)]
    ranks = {name: _of_module(settings.get("rank_pattern"), name, settings.get("r", 8)) for name in names}
    alphas = {name: _of_module(settings.get("alpha_pattern"), name, settings.get("lora_alpha", 8)) for name in names}
    if bool(settings.get("use_dora")) != all(MAGNITUDE in module for module in modules.values()):
        raise ValueError(
            f"{folder} must have lora_magnitude_vector of all modules if {CONFIG} has use_dora, else of none"
        )
    adapter = stacked_adapter(folder, modules, rules, config, ranks, alphas)
    return adapter._replace(
        is_rslora=bool(settings.get("use_rslora")), base=base_label(folder / f"{WEIGHTS}.safetensors")
    )


def stacked_adapter(
    origin: Path,
    modules: Mapping[str, Mapping[str, np.ndarray]],
    rules: Sequence[Rule],
    config: ModelConfig,
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
) -> Adapter:
    """An adapter of ours from the tensors "A" [rank, in] and "B" [out, rank] of modules. Layers without get zeros.

    Args:
      origin: for messages.
      rules: of the matrices; modules have the names of their tensors without ".weight".
      ranks, alphas: of each module that has an adapter, and of any others.

    Raises:
      ValueError: the modules are of another model, or the ranks and alphas of layers or the shapes do not fit.
    """
    known = {name.removesuffix(".weight"): rule for rule in rules for name in rule.their_names(config.layers)}
    if unknown := [module for module in modules if module not in known]:
        raise ValueError(
            f"{origin} is an adapter of another model: this one has no {listed(unknown, most=3)}, but modules such as "
            f"{listed(list(known), most=2)}"
        )
    factors: dict[str, Factors] = {}
    found: dict[str, float] = {}
    magnitudes: dict[str, np.ndarray] = {}
    shapes, changed = parameter_shapes(config), {known[module].ours for module in modules}
    for rule in rules:
        if rule.ours not in changed:
            continue
        names = [name.removesuffix(".weight") for name in rule.their_names(config.layers)]
        pairs = {(ranks[name], alphas[name]) for name in names if name in ranks}
        if len(pairs) > 1:
            raise ValueError(f"{origin}: all layers of {rule.theirs} must have one rank and alpha, not {sorted(pairs)}")
        [(rank, alpha)] = pairs
        parts = [_factors(origin, modules.get(name), name, shapes[rule.ours][-2:], rank) for name in names]
        stacked = Factors(*map(np.stack, zip(*parts))) if rule.is_stacked else parts[0]
        _check_shared(origin, rule, stacked, factors)
        factors[rule.ours], found[rule.ours] = stacked, float(alpha)
        lengths = [modules.get(name, {}).get(MAGNITUDE) for name in names]
        if any(length is not None for length in lengths):
            magnitudes[rule.ours] = _magnitudes(
                origin, lengths, names, shapes[rule.ours][-1], is_stacked=rule.is_stacked
            )
    return Adapter(factors, found, is_rslora=False, magnitudes=magnitudes)


def write_peft(adapter: Adapter, config: ModelConfig, folder: Path, *, overwrite: bool = False) -> None:
    """Write an adapter in a folder that PEFT opens for the transformer of diffusers.

    Raises:
      ValueError: diffusers cannot represent the model, or has no name for a matrix; the folder is not empty.
    """
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for module, name, factors in modules_of(adapter, _rules(config), config):
        ranks[module], alphas[module] = len(factors["A"]), adapter.alphas[name]
        tensors |= {f"{PREFIX}{module}.lora_{letter}.weight": factors[letter] for letter in "AB"}
        if MAGNITUDE in factors:
            tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = factors[MAGNITUDE]
    rank, alpha = max(ranks.values()), max(alphas.values())
    settings = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, "inference_mode": True,
        "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "use_rslora": adapter.is_rslora, "use_dora": bool(adapter.magnitudes), "init_lora_weights": True,
        "modules_to_save": None, "target_modules": list(ranks),
        "rank_pattern": {module: value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
    }  # fmt: skip
    texts = {CONFIG: json.dumps(settings, indent=2) + "\n"}
    write_factors(folder, WEIGHTS, tensors, adapter.base, {"format": "pt"}, texts, overwrite=overwrite)


def modules_of(
    adapter: Adapter, rules: Sequence[Rule], config: ModelConfig
) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
    """Each module of theirs, the name of our matrix, and the tensors "A" [rank, in] and "B" [out, rank] of the module.

    Raises:
      ValueError: no rule is for a matrix of the adapter.
    """
    if unknown := sorted(adapter.factors.keys() - {rule.ours for rule in rules}):
        raise ValueError(f"this layout has no matrix for the adapters of {listed(unknown, most=3)}; leave them out")
    for rule in rules:
        if rule.ours not in adapter.factors:
            continue
        names, (a, b) = rule.their_names(config.layers), map(np.asarray, adapter.factors[rule.ours])
        parts = {"A": a, "B": b}
        if rule.ours in adapter.magnitudes:
            parts[MAGNITUDE] = np.asarray(adapter.magnitudes[rule.ours])
        for index, name in enumerate(names[-len(a) :] if rule.is_stacked else names):
            of_layer = {letter: part[index] if rule.is_stacked else part for letter, part in parts.items()}
            tensors = {letter: np.ascontiguousarray(part.T) for letter, part in of_layer.items()}
            yield name.removesuffix(".weight"), rule.ours, tensors


def write_factors(
    folder: Path,
    stem: str,
    tensors: Mapping[str, np.ndarray],
    base: str,
    labels: dict[str, str],
    texts: Mapping[str, str],
    *,
    overwrite: bool,
) -> None:
    """Write a safetensors file with the fingerprint of the base among its labels, and files of text beside it."""
    check_destination(folder, overwrite=overwrite)
    plan = [
        Planned(name, value.shape, value.dtype, functools.partial(iter, [value])) for name, value in tensors.items()
    ]
    with new_folder(folder.resolve(), overwrite=overwrite) as temporary:
        labels = labels | ({BASE_LABEL: base} if base else {})
        written = write_tensors(temporary, stem, plan, shard_bytes=None, metadata=labels)
        for name, text in texts.items():
            write_text(temporary / name, text)
        write_marker(temporary, {file.path: file.sha256 for file in written})


def merged_source(source: WeightSource, adapter: Adapter, strength: float, origin: str) -> WeightSource:
    """Weights with an adapter added in float32; a negative strength takes one out that was merged.

    Raises:
      ValueError: the adapter was trained for other weights.
    """
    ours, changes = source.ours, adapter.scaled(strength)
    if adapter.base and strength > 0:
        check_base(adapter.base, {name: ours[name] for name in ours}, source.origin)

    def read(name: str) -> np.ndarray:
        value = ours[name]
        if name not in changes:
            return value
        change = changes[name]
        changed, layers = value.astype(np.float32), slice(-len(change.a) if change.a.ndim == 3 else 0, None)
        changed[layers] += np.asarray(change.a) @ np.asarray(change.b)
        if isinstance(change, Decomposed):
            changed[layers] *= (change.magnitude / np.linalg.norm(changed[layers], axis=-2))[..., None, :]
        return changed.astype(value.dtype)

    tensors = ComputedTensors({name: (ours.shape(name), ours.dtype(name)) for name in ours}, read)
    return source._replace(ours=tensors, notes=(*source.notes, f"merged: the adapter {origin}, times {strength:g}"))


def _rules(config: ModelConfig) -> list[Rule]:
    """The rules of matrices."""
    if reason := reasons_against(config)["diffusers"]:
        raise ValueError(f"files of PEFT are for models that diffusers has: {reason}")
    return [rule for rule in LAYOUTS["diffusers"].rules(config) if rule.ours.endswith(".kernel")]


def _settings(folder: Path) -> PeftSettings:
    settings = read_json(folder / CONFIG, PeftSettings)
    asked: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "peft_type": (settings.get("peft_type", "LORA"), ("LORA",)),
        "bias": (settings.get("bias", "none"), ("none",)),
        "modules_to_save": (settings.get("modules_to_save"), (None, [])),
        "fan_in_fan_out": (settings.get("fan_in_fan_out", False), (False,)),
    }
    if wrong := [f"{name}={value!r}" for name, (value, allowed) in asked.items() if value not in allowed]:
        raise ValueError(f"{folder / CONFIG} must describe low-rank adapters alone (LoRA), but has {', '.join(wrong)}")
    return settings


def base_label(path: Path) -> str:
    """The fingerprint of the base, if we wrote the file."""
    with safe_open(path, framework="numpy") as file:
        return (file.metadata() or {}).get(BASE_LABEL, "")


def _modules(folder: Path, tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The tensors "A" and "B" of each module."""
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name in tensors:
        match = FACTOR.fullmatch(name.removeprefix(PREFIX))
        if match is None:
            raise ValueError(f"{folder} must hold lora_A and lora_B of modules alone, but has {name}")
        modules.setdefault(match["module"], {})[match["factor"] or MAGNITUDE] = tensors[name]
    if not modules:
        raise ValueError(f"{folder} holds no adapter of any module")
    return modules


def _of_module(patterns: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """The value of the first pattern that fits the end of a module's name, as in PEFT."""
    fitting = [value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)]
    return fitting[0] if fitting else otherwise


def _factors(
    folder: Path, found: Mapping[str, np.ndarray] | None, module: str, shape: tuple[int, ...], rank: int
) -> Factors:
    """A [in, rank] and B [rank, out] of one matrix; zeros where it has no adapter."""
    (inputs, outputs) = shape
    if found is None:
        return Factors(np.zeros((inputs, rank), np.float32), np.zeros((rank, outputs), np.float32))
    wanted = {"A": (rank, inputs), "B": (outputs, rank)}
    wrong = [
        f"{module}.lora_{letter} is {found[letter].shape if letter in found else 'missing'} and should be {size}"
        for letter, size in wanted.items()
        if letter not in found or found[letter].shape != size
    ]
    if wrong:
        raise ValueError(f"{folder} does not fit this model at rank {rank}: {'; '.join(wrong)}")
    return Factors(*(np.asarray(found[letter], np.float32).T for letter in "AB"))


def _magnitudes(
    origin: Path, lengths: Sequence[np.ndarray | None], names: Sequence[str], outputs: int, *, is_stacked: bool
) -> np.ndarray:
    """The lengths of the columns of one matrix, or of those of all layers."""
    if wrong := [name for name, one in zip(names, lengths) if one is None or one.shape != (outputs,)]:
        raise ValueError(
            f"{origin} must have lora_magnitude_vector [{outputs}] for all layers of a matrix, but not for "
            f"{listed(wrong, most=3)}"
        )
    found = np.stack([np.asarray(one, np.float32) for one in lengths])
    return found if is_stacked else found[0]


def _check_shared(folder: Path, rule: Rule, factors: Factors, others: Mapping[str, Factors]) -> None:
    """Two modules may be one matrix of ours: the query of both attentions."""
    other = others.get(rule.ours, factors)
    if not all(np.array_equal(ours, theirs) for ours, theirs in zip(factors, other)):
        raise ValueError(
            f"{folder} changes attn1.to_q and {rule.theirs.removesuffix('.weight')} in different ways, which are one "
            f"matrix of this model, {rule.ours}"
        )
