"""Record what libtpu schedules for a kernel that can be counted by hand: the golden data of the schedule reader.

    make aot-setup
    python tools/make_schedule_golden.py tests/golden/schedule

Writes the three dumps that the reader takes. The kernel's counts follow from its source: a grid of 2 x 3 steps, in each
a loop of 5 trips with one product of bf16 [16, 128] x [128, 128] for each, a loop whose trips the kernel reads from
memory, with one product too, a set-up at the first step of the last axis and a write-back at its last.
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

GRID, TRIPS = (2, 3), 5


def kernel(trips, x, w, out, total):
    import jax
    import jax.numpy as jnp
    from jax.experimental import pallas as pl

    @pl.when(pl.program_id(1) == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    def step(number, result):
        return result + jnp.dot(x[...], w[number], preferred_element_type=jnp.float32)

    total[...] += jax.lax.fori_loop(0, TRIPS, step, jnp.zeros_like(total))
    total[...] += jax.lax.fori_loop(0, trips[0], step, jnp.zeros_like(total))

    @pl.when(pl.program_id(1) == GRID[1] - 1)
    def _():
        out[...] = total[...].astype(out.dtype)


def compile_kernel() -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import pallas as pl
    from jax.experimental import topologies
    from jax.experimental.pallas import tpu as pltpu
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    described = topologies.get_topology_desc(platform="tpu", topology_name="v6e:2x2")
    sharding = NamedSharding(Mesh(np.array(described.devices[:1]), ("chip",)), PartitionSpec())

    def of(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=GRID,
        in_specs=[
            pl.BlockSpec((16, 128), lambda i, j, trips: (i, j)),
            pl.BlockSpec((8, 128, 128), lambda i, j, trips: (0, j, 0)),
        ],
        out_specs=pl.BlockSpec((16, 128), lambda i, j, trips: (i, 0)),
        scratch_shapes=[pltpu.VMEM((16, 128), jnp.float32)],
    )
    out = jax.ShapeDtypeStruct((32, 128), jnp.bfloat16)
    call = pl.pallas_call(kernel, grid_spec=spec, out_shape=out, name="counted")
    arguments = of((1,), jnp.int32), of((32, 384), jnp.bfloat16), of((8, 384, 128), jnp.bfloat16)
    jax.jit(call).trace(*arguments).lower(lowering_platforms=("tpu",)).compile()


def main(folder: Path) -> None:
    from lumina_jax.kernel_bench.compiler import compiling_environment

    with tempfile.TemporaryDirectory() as dump:
        os.environ |= compiling_environment("v6e:2x2", Path(dump))
        compile_kernel()
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("final_bundles", "final_hlo-static-per-bundle-utilization", "post-delay-converter"):
            pattern = re.compile(rf"\d+-counted\.\d+-\d+-{name}\.txt")
            (file,) = (path for path in Path(dump).iterdir() if pattern.fullmatch(path.name))
            shutil.copy(file, folder / f"{name}.txt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
