"""Our contestant: `attend(implementation="pallas")`, heads side by side as projections leave them, with the text in the
same kernel.

Block sizes are rows of the table that the kernels read (kernels/flash/tuned.py), which holds sizes that differ from the
rule. A row is tried by putting it into the table while the call is traced, and kept by writing it into the file.
"""

import ast
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lumina_jax.chips import LANES
from lumina_jax.kernel_bench.contestants import Blocks, Case, Contestant, with_gradients
from lumina_jax.kernel_bench.measurements import Measurement
from lumina_jax.kernel_bench.problems import Problem
from lumina_jax.kernels.arguments import GatedText
from lumina_jax.kernels.attention import attend
from lumina_jax.kernels.flash import tuned
from lumina_jax.kernels.flash.blocks import UNKNOWN, divisors, known_chip, padded_length

QUERIES, KEYS = (384, 704, 1408, 2112), (384, 704, 1408)
RUNS, WINDOWS = (144, 288, 576), (384, 1152, 2304)
LINE = 121


def row_of(problem: Problem, chip: str) -> tuple[str, int, int]:
    """The key of a problem's row in the table."""
    return chip, padded_length(problem.tokens), -(-problem.width // LANES) * LANES


def _case(problem: Problem, blocks: Blocks) -> Case:
    def heads(x: Float[Array, "1 n hd"]) -> Float[Array, "1 n h d"]:
        return x.reshape(1, -1, problem.heads, problem.width)

    def attention(
        ids: Int[Array, "1 l"], text_ids: Int[Array, "1 t"], q: Array, k: Array, v: Array, *text: Array
    ) -> Float[Array, "1 l hd"]:
        gated, some = None, slice(problem.text_heads or None)
        if text:
            gated = GatedText(heads(text[0])[:, :, some], heads(text[1])[:, :, some], text[2][some], text_ids)
        key = row_of(problem, (known_chip() or UNKNOWN).name)
        q, k, v = map(heads, (q, k, v))
        with mock.patch.dict(tuned.TUNED, {key: {**tuned.TUNED.get(key, {}), **blocks}}):
            out = attend(q, k, v, segment_ids=ids, scale=problem.width**-0.5, text=gated, implementation="pallas")
        return out.reshape(1, problem.tokens, -1)

    of = jax.ShapeDtypeStruct
    tokens = of((1, problem.tokens, problem.heads * problem.width), jnp.bfloat16)
    inputs: tuple[jax.ShapeDtypeStruct, ...] = (tokens, tokens, tokens)
    if problem.text:
        text = of((1, problem.text_tokens, problem.heads * problem.width), jnp.bfloat16)
        inputs += (text, text, of((problem.heads,), jnp.float32))
    ids = problem.segment_ids()[None], problem.text_segment_ids()[None]
    return with_gradients(attention, ids, inputs, tokens, backward=problem.backward)


def _near(tokens: int, targets: tuple[int, ...]) -> list[int]:
    """The divisors of a padded row nearest to the targets, none twice."""
    parts = divisors(tokens // LANES)
    near = [min(parts, key=lambda part: max(part * LANES / target, target / (part * LANES))) for target in targets]
    return list(dict.fromkeys(LANES * part for part in near))


def _forward(problem: Problem) -> Iterator[Blocks]:
    """The table as it is; then sizes of products, or for packed rows sizes of the pieces of a sample."""
    yield {}
    length = padded_length(problem.tokens)
    if problem.is_packed:
        yield from ({"run_q": q, "run_kv": keys} for q in RUNS for keys in WINDOWS)
    else:
        products = itertools.product(_near(length, QUERIES), _near(length, KEYS))
        yield from ({"q_compute": q, "kv_compute": keys} for q, keys in products)


def _backward(problem: Problem) -> Iterator[Blocks]:
    yield {}
    length = padded_length(problem.tokens)
    for q in _near(length, QUERIES) if not problem.is_packed else ():
        for keys in _near(length, KEYS):
            yield {"q_compute_backward": q, "kv_compute_backward": keys}


def keep(best: Sequence[Measurement], file: Path = Path(tuned.__file__)) -> None:
    """Rewrite the table that the kernels read, with the rows that were tuned; others stay."""
    rows = dict(tuned.TUNED)
    for measured in best:
        if measured.error is None and measured.trial.blocks:
            key = row_of(measured.trial.problem, measured.topology.split(":")[0])
            rows[key] = {**rows.get(key, {}), **measured.trial.blocks}
    source = file.read_text()
    (table,) = (node for node in ast.parse(source).body if isinstance(node, ast.AnnAssign))
    lines = source.splitlines(keepends=True)
    head, tail = lines[: table.lineno - 1], lines[table.end_lineno :]
    declared = f"TUNED: {ast.unparse(table.annotation)} = {{"
    body = "".join(_row(key, rows[key]) for key in sorted(rows))
    file.write_text("".join([*head, f"{declared}\n{body}}}\n", *tail]))


def _row(key: tuple[str, int, int], sizes: Blocks) -> str:
    """As the formatter would have it."""
    generation, length, width = key
    items = [f'"{name}": {size}' for name, size in sizes.items()]
    line = f'    ("{generation}", {length}, {width}): {{{", ".join(items)}}},\n'
    if len(line) <= LINE:
        return line
    return (
        f'    ("{generation}", {length}, {width}): {{\n' + "".join(f"        {item},\n" for item in items) + "    },\n"
    )


OURS = Contestant("ours", "lumina_jax", _case, _forward, _backward, keep=keep)
