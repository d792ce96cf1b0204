"""The picture of the gates of a model: |tanh(gate)| of each head, layers from top to bottom.

In: the gates, and which heads would be kept. Out: the bytes of a PNG.
"""

import importlib.util
import io

import numpy as np
from jaxtyping import Float, Int

CELL = 0.32
"""Inches along a side of the square of a head."""


def check_figures() -> None:
    """Raises:
    ValueError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib; pip install 'lumina_jax[scaling]', or leave --plot out")


def gates_figure(gates: Float[np.ndarray, "n h"], kept: Int[np.ndarray, "n g"] | None) -> bytes:
    """A square for each head, the brighter the more open its gate is.

    Args:
      kept: the heads of each layer; the others have a cross. None: no crosses.
    """
    from matplotlib.figure import Figure

    layers, heads = gates.shape
    figure = Figure(figsize=(max(2.0, CELL * heads) + 1.6, max(1.6, CELL * layers) + 0.8), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(np.abs(gates), cmap="viridis", vmin=0)
    if kept is not None:
        is_left_out = np.ones(gates.shape, bool)
        np.put_along_axis(is_left_out, kept, False, axis=1)
        axes.plot(*np.nonzero(is_left_out)[::-1], "x", color="white")
    axes.set(xlabel="head", ylabel="layer", title="" if kept is None else "x: left out")
    axes.set_xticks(range(0, heads, max(1, heads // 16)))
    axes.set_yticks(range(0, layers, max(1, layers // 16)))
    figure.colorbar(image, ax=axes, label="|tanh(gate)|")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
