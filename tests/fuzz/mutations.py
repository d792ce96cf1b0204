"""What hypothesis changes in a good input: words of a command, a JSON document, the bytes of a file."""

import copy
import json
import os
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("LUMINA_FUZZ_CASES", "2000"))
"""Of all fuzz tests together."""
AWKWARD_TEXTS = (
    "", " ", "\x00", "\n", "..", ".", "/", "//", "../../x", "/etc/passwd", "~", "-1", "--", "nan", "inf", "1e999",
    "None", "true", "cat \ud83d", "\u2028", "\ufeff", "日本語", "🐈" * 100, "a" * 300, "a" * 20_000, "9" * 5000,
    "[180Hz] x", "[", "%s", "{}", "*", "gs://bucket/x", "foo://x", "C:\\x", "con", "x.png",
)  # fmt: skip
AWKWARD_NUMBERS = (
    0, -1, 1, 2, 3, 2**31, 2**32, 2**40, 2**63, 2**64, -(2**63), 10**20, 10**400, 0.0, -0.0, 1e-300, 1e300, 1e-9, 0.5,
    float("nan"), float("inf"), float("-inf"),
)  # fmt: skip

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(AWKWARD_NUMBERS), st.text(max_size=20),
    st.sampled_from(AWKWARD_TEXTS),
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
words = st.one_of(
    st.sampled_from(AWKWARD_NUMBERS).map(str),
    st.sampled_from(AWKWARD_TEXTS),
    st.text(max_size=20),
    st.integers().map(str),
)


def fuzzed(share):
    """Settings of a test that runs this share of all cases."""
    return settings(
        max_examples=max(1, round(CASES * share)), deadline=None, database=None, print_blob=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@st.composite
def documents(draw, document):
    """The document with one to three values replaced, removed or added, at any depth."""
    document = {"": copy.deepcopy(document)}
    for _ in range(draw(st.integers(1, 3))):
        holders = list(_holders(document))
        holder, key = holders[draw(st.integers(0, len(holders) - 1))]
        what = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if what == "replace" or holder is document:
            holder[key] = draw(values)
        elif what == "remove":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=12))] = draw(values)
        else:
            holder.append(draw(values))
    return document[""]


def _holders(value):
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(pairs):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _holders(inner)


@st.composite
def texts_of(draw, document):
    """A changed document as a file has it: whole, cut, nested too deep, or in another encoding."""
    text = json.dumps(draw(documents(document)), ensure_ascii=draw(st.booleans()))
    data, wide = (text.encode(encoding, "surrogatepass") for encoding in ("utf-8", "utf-16"))
    spoiled = [data[: len(data) // 2], b"[" * 5000, b"", b"\xef\xbb\xbf" + data, wide]
    return draw(st.sampled_from([data] * 8 + spoiled))


@st.composite
def bytes_of(draw, data, header=200):
    """The bytes with some changed, most of them in the header, and perhaps without their end."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        index = draw(st.integers(0, min(header, len(changed)) - 1) | st.integers(0, len(changed) - 1))
        changed[index] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    if draw(st.integers(0, 3)) == 0:
        del changed[draw(st.integers(0, len(changed))) :]
    return bytes(changed)


def expect_no_traceback(main, capsys):
    """Run a command; it ends well or with a line for the user, whatever it is given."""
    try:
        status = main()
    except SystemExit as end:
        status = end.code
    shown = capsys.readouterr()
    said = f"{shown.err}{status}"
    assert "Traceback" not in said, said
    assert "bug in lumina_jax" not in said, said
    return status


def snapshot(folder):
    """Every file below a folder, with its content."""
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}
