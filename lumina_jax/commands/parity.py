"""lumina parity FILE...: compare lumina_jax with recorded runs of the released models, one row for each case.

Each row is about the number that is closest to its tolerance: the difference, the tolerance, and the former in percent
of the latter. A case passes if this is at most 100 %.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lumina_jax.failures import message, reported
from lumina_jax.launch import keep_memory_on_cpu
from lumina_jax.parity.golden import Comparison, Golden


@dataclass(frozen=True)
class Arguments:
    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Recorded files: .safetensors, or the .json of recorded crops."""


def main(words: Sequence[str]) -> int:
    """Return 0 if all cases of all files pass, otherwise 1."""
    arguments = tyro.cli(Arguments, args=words, prog="lumina parity", description=__doc__)
    if not arguments.files:
        print("name at least one recorded file")
        return 2
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    keep_memory_on_cpu()
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")
    with reported():
        failures = failed_cases(arguments.files)
    return min(failures, 1)


def failed_cases(files: Sequence[Path]) -> int:
    """Print a table of all cases, and return the number of failed ones."""
    failures = count = 0
    for file in files:
        print(f"{file}\n  {'case':<38} {'difference':>10} {'allowed':>10} {'used':>8}", flush=True)
        for row in comparisons(file):
            failures, count = failures + (not row.passed), count + 1
            print(f"  {line(row)}", flush=True)
    print(f"all {count} cases pass" if not failures else f"{failures} of {count} cases FAIL")
    return failures


def line(row: Comparison) -> str:
    """Format a row of the table."""
    used = row.difference / row.tolerance if row.tolerance else math.inf
    share = f"{used:8.1%}" if math.isfinite(used) else f"{'-':>8}"
    verdict = "PASS" if row.passed else "FAIL"
    return f"{row.case:<38} {row.difference:10.2e} {row.tolerance:10.2e} {share}  {verdict}  {row.note}".rstrip()


def comparisons(file: Path) -> Iterator[Comparison]:
    """Yield a comparison for each case of a file, or a failed one if the file is damaged or has an unknown class."""
    try:
        run = _runner(file)
        yield from run()
    except Exception as error:  # a damaged file can raise anything; the other files are still compared
        yield Comparison("-", float("nan"), float("nan"), False, message(error))


def _runner(file: Path) -> Callable[[], Iterator[Comparison]]:
    from lumina_jax.parity import crops, models, training, transport

    if crops.is_crops(file):
        return lambda: crops.run(file)
    golden = Golden(file)
    known: dict[str, Callable[[Golden], Iterator[Comparison]]] = {
        "lumina_t2i DiT_Llama + linear flow matching loss": training.run,
        "Flag-DiT-ImageNet/transport/path.py": transport.run,
        "transport Sampler.sample_ode": transport.run,
        **dict.fromkeys(models.CLASSES, models.run),
    }
    for prefix, run in known.items():
        if golden.cls.startswith(prefix):
            return lambda: run(golden)
    raise ValueError(f"cls={golden.cls!r} must begin with one of {', '.join(known)}; name another file")
