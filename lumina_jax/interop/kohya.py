"""Adapters in files with the names of kohya's sd-scripts, for the authors' models.

In: such a .safetensors file and the configuration of a model, or an adapter of ours. Out: the other. A linear layer of
the authors' code, such as layers.0.attention.wq, has three tensors:

    lora_unet_layers_0_attention_wq.lora_down.weight    A, [rank, in]
    lora_unet_layers_0_attention_wq.lora_up.weight      B, [out, rank]
    lora_unet_layers_0_attention_wq.alpha               a number; the change is B A alpha / rank. Missing: rank

Matrices are only transposed and layers stacked, so that a round trip is exact.
"""

import re
from pathlib import Path

import numpy as np

from lumina_jax.config import ModelConfig
from lumina_jax.interop.fitting import reasons_against
from lumina_jax.interop.layouts import LAYOUTS
from lumina_jax.interop.peft import Adapter, base_label, modules_of, stacked_adapter, write_factors
from lumina_jax.weights.files import TensorFiles
from lumina_jax.weights.rules import Rule, listed

NAME = "lora"
"""The name of the file that we write, without its ending."""
PREFIX = "lora_unet_"
TENSOR = re.compile(r"(?P<module>[^.]+)\.(?:lora_(?P<part>down|up)\.weight|(?P<alpha>alpha))")
LETTERS = {"down": "A", "up": "B"}


def kohya_file(path: Path) -> Path | None:
    """The file with the adapter at this path: the path itself, or the file that we wrote into this folder."""
    file = path if path.suffix == ".safetensors" else path / f"{NAME}.safetensors"
    return file if file.is_file() else None


def read_kohya(file: Path, config: ModelConfig) -> Adapter:
    """Read an adapter for a model of this configuration. Layers without one get zeros.

    Raises:
      ValueError: the file is damaged, or holds other tensors, or the adapter is of another rank or model; the message
        names the first tensors that do not fit.
    """
    rules, tensors = _rules(config), TensorFiles(file)
    modules: dict[str, dict[str, np.ndarray]] = {}
    alphas: dict[str, float] = {}
    known = {_flat(name): name.removesuffix(".weight") for rule in rules for name in rule.their_names(config.layers)}
    matches = {name: TENSOR.fullmatch(name) for name in tensors}
    if wrong := [name for name, match in matches.items() if match is None or match["module"] not in known]:
        raise ValueError(
            f"{file} is no adapter of this model in kohya's names: it has {listed(wrong, most=3)}, but the modules of "
            f"this model are such as {listed(list(known), most=2)}"
        )
    for name, match in matches.items():
        assert match is not None
        module = known[match["module"]]
        if match["alpha"]:
            alphas[module] = float(np.asarray(tensors[name], np.float32).reshape(()))
        else:
            modules.setdefault(module, {})[LETTERS[match["part"]]] = np.asarray(tensors[name])
    if not modules:
        raise ValueError(f"{file} holds no adapter of any module")
    ranks = {module: max(1, len(found["A"]) if "A" in found else 1) for module, found in modules.items()}
    alphas = {module: alphas.get(module, float(rank)) for module, rank in ranks.items()}
    return stacked_adapter(file, modules, rules, config, ranks, alphas)._replace(base=base_label(file))


def write_kohya(adapter: Adapter, config: ModelConfig, folder: Path, *, overwrite: bool = False) -> None:
    """Write an adapter as lora.safetensors in a folder. The alpha of rslora becomes one that gives the same scale.

    Raises:
      ValueError: the authors' code has no such model, or no name for a matrix; the folder is not empty.
    """
    if adapter.magnitudes:
        raise ValueError(
            "adapters of the kind DoRA have no form with kohya's names here; write them for PEFT: --to peft"
        )
    tensors: dict[str, np.ndarray] = {}
    for module, name, factors in modules_of(adapter, _rules(config), config):
        rank, flat = len(factors["A"]), _flat(module)
        alpha = adapter.scale(name) * rank if adapter.is_rslora else adapter.alphas[name]
        tensors |= {f"{flat}.lora_{part}.weight": factors[letter] for part, letter in LETTERS.items()}
        tensors[f"{flat}.alpha"] = np.asarray(alpha, np.float32)
    largest = max(factors.a.shape[-1] for factors in adapter.factors.values())
    labels = {"format": "pt", "ss_network_module": "networks.lora_lumina", "ss_network_dim": f"{largest}"}
    write_factors(folder, NAME, tensors, adapter.base, labels, {}, overwrite=overwrite)


def _flat(name: str) -> str:
    """The name of a module in these files."""
    return PREFIX + name.removesuffix(".weight").replace(".", "_")


def _rules(config: ModelConfig) -> list[Rule]:
    """The rules of matrices."""
    if reason := reasons_against(config)["lumina"]:
        raise ValueError(f"files with kohya's names are for models of the authors' code: {reason}")
    return [rule for rule in LAYOUTS["lumina"].rules(config) if rule.ours.endswith(".kernel")]
