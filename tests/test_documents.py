"""Documents of JSON and YAML are read as typed values, or refused by file and key."""

import itertools
import json
from dataclasses import dataclass
from typing import Any

import pytest

from lumina_jax.documents import json_text, parse_json, read_json, read_yaml

BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefghijkl")
)
"""Some lines that stand for billions of values."""


@dataclass(frozen=True)
class Layers:
    count: int
    name: str = "plain"
    rate: float = 1.0


def test_a_document_becomes_a_value_of_its_type(tmp_path):
    file = tmp_path / "layers.json"
    file.write_bytes(b'\xef\xbb\xbf{"count": 3, "rate": 2, "unknown": []}')
    assert read_json(file, Layers) == Layers(3, rate=2.0)
    file.write_text("count: 4\nname: 2024-05-01\n")
    assert read_yaml(file, Layers) == Layers(4, "2024-05-01")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"count": 2.0}', ["count", "integer", "2.0"]),
        ('{"count": "2"}', ["count", "integer", "'2'"]),
        ('{"count": true}', ["count", "integer", "True"]),
        ('{"count": 1, "name": ["a"]}', ["name", "string", "['a']"]),
        ("{}", ["count", "required"]),
        ("[1]", ["content"]),
        ("", ["must be JSON"]),
        ('{"count": 1', ["must be JSON"]),
        ('{"count": 1, "name": "\\ud83d"}', ["must be JSON"]),
        ("[" * 5000, ["must be JSON"]),
    ],
)
def test_a_wrong_document_is_refused_by_origin_and_key(text, words):
    with pytest.raises(ValueError, match=r"^model\.json ") as error:
        parse_json(text, Layers, "model.json")
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("text", ["a: [", "a: &x [*x]", "\x00", "[" * 5000, "? [1]\n: 2", BOMB])
def test_what_is_no_yaml_is_refused(tmp_path, text):
    file = tmp_path / "list.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match="must be a YAML file"):
        read_yaml(file, dict[str, Any])


def test_a_git_lfs_pointer_is_recognised(tmp_path):
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match=r"tokenizer\.json is a git-LFS pointer instead of the file itself"):
        read_json(tmp_path / "tokenizer.json", dict)


def test_numbers_that_json_lacks_are_written_as_null():
    text = json_text({"a": (1.5, float("nan")), "b": {"c": float("-inf"), "d": [None, "x", True, 2]}})
    assert json.loads(text) == {"a": [1.5, None], "b": {"c": None, "d": [None, "x", True, 2]}}
    assert text.endswith("}\n")
