"""lumina bench train CONFIG: how fast the devices that are here train.

Compiles the training step of a configuration, and times it on random samples: tokens and samples a second, utilisation
of the peak (published for TPUs, measured with a matrix product for others), memory, and where the time goes. Any
setting of the configuration is a flag, as for `lumina train`: --data.batch-rows 64.
"""

from collections.abc import Sequence

from lumina_jax.commands.bench.measured import bench


def main(words: Sequence[str]) -> int:
    return bench("train", words, __doc__ or "")
