"""The picture of a coordinate check: the size of each kind of layer over the width, on logarithmic axes.

In: a check. Out: the bytes of a PNG. Layers that are not flat have colours and names; the others are grey.
"""

import importlib.util
import io

from lumina_jax.scaling.coordinates import CoordinateCheck

FLAT = "0.7"
"""The grey of the layers that are flat."""


def check_plots() -> None:
    """Raises:
    ValueError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib; pip install 'lumina_jax[scaling]', or leave --plot out")


def drawn(found: CoordinateCheck, tolerance: float) -> bytes:
    """Outputs on the left, and their changes on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    steep = found.not_flat(tolerance)
    for axes, field, title in zip(figure.subplots(1, 2), ("output", "change"), ("output", "change since step 0")):
        for name, sizes in sorted(found.sizes.items(), key=lambda item: item[0] in steep):
            slope = getattr(found.slopes[name], field)
            if slope is None:
                continue
            is_steep = abs(slope) > tolerance
            label = f"{name} ({slope:+.2f})" if is_steep else None
            values = [getattr(size, field) for size in sizes]
            axes.plot(found.widths, values, marker="o", color=None if is_steep else FLAT, label=label)
        axes.set(xscale="log", yscale="log", xlabel="width", ylabel="root mean square", title=title)
        axes.set_xticks(found.widths, [str(width) for width in found.widths])
        axes.minorticks_off()
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="x-small", title="not flat (power of the width)")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
