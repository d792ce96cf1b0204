"""lumina bench sample CONFIG: how fast the devices that are here draw.

Compiles the drawing of data.batch_rows samples with the settings of `sample`, and times it with random parameters:
samples a second, utilisation of the peak, memory, and where the time goes. Any setting of the configuration is a flag,
as for `lumina train`: --sample.steps 10.
"""

from collections.abc import Sequence

from lumina_jax.commands.bench.measured import bench


def main(words: Sequence[str]) -> int:
    return bench("sample", words, __doc__ or "")
