"""Emoji of several styles as a prepared set: one name for a thing, what is held out, and further captions."""

import hashlib
import importlib
import io
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lumina_jax.commands.data import MODULES, Prepare, main, prepare
from lumina_jax.data.datasets import emoji, emoji_names, icons
from lumina_jax.data.datasets.emoji_names import Emoji, Split, family, has_skin_tone, plain
from lumina_jax.data.emoji_source import EmojiSource, first_names
from lumina_jax.data.prepared import CARD, PreparedSource

LABELS = {
    "2764-FE0F": ("red heart", "rotes Herz"),
    "1F9CF-200D-2642-FE0F": ("deaf man", "gehörloser Mann"),
    "1F44B": ("waving hand", "winkende Hand"),
}
ICONS = {
    "fluent": {"2764": "red-heart", "1f9cf-200d-2642": "man-deaf", "1f44b": "waving-hand"},
    "noto": {"2764": "red-heart", "1f9cf-200d-2642-fe0f": "deaf-man", "1f44b-1f3fb": "waving-hand-light-skin-tone"},
    "twemoji": {"1f6d9": "lighthouse", "e50a": "shibuya", "2605": "red-heart", "20e3": "keycap"},
    "emojione": {},
    "openmoji": {"2764-fe0f": "heavy-heart"},
}
NAMELESS = {"icons": ["deaf-man", "hand-waving", "unknown"], "aliases": {"waving-hand": "hand-waving"}}
"""Of a set that tells no code points."""
COLORS = {
    "fluent": "#ff0000", "noto": "#00ff00", "twemoji": "#0000ff", "emojione": "#00ffff", "openmoji": "#ffff00"
}  # fmt: skip


def drawn_plainly(*, svg_string, width, height, background):
    """What resvg gives for an icon whose body is one rectangle over all of it."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), re.search("#[0-9a-f]{6}", svg_string).group()).save(file, "PNG")
    return list(file.getvalue())


def write_emojibase(folder):
    """Three emoji in two languages; one has a variant in a skin tone."""
    for language, number in (("en", 0), ("de", 1)):
        entries = [
            {"label": labels[number], "hexcode": code_points, "tags": ["one", "two", "three", "four"]}
            for code_points, labels in LABELS.items()
        ]
        entries[-1]["skins"] = [{"label": f"{entries[-1]['label']}: light skin tone", "hexcode": "1F44B-1F3FB"}]
        (folder / language).mkdir(parents=True)
        (folder / language / "data.json").write_text(json.dumps(entries))
    (folder / "LICENSE").write_text("MIT of Emojibase")


def write_icons(folder, style):
    body = f'<rect width="8" height="8" fill="{COLORS[style]}"/>'
    chosen = {name: {"body": body} for name in [*ICONS[style].values()] or NAMELESS["icons"]}
    turned = {"red-heart": {"parent": "hand-waving", "hFlip": True}}
    aliases = turned | {name: {"parent": icon} for name, icon in NAMELESS["aliases"].items()}
    chosen["retired"] = {"body": body, "hidden": True}
    folder.mkdir(parents=True)
    (folder / "icons.json").write_text(json.dumps({"icons": chosen, "aliases": aliases, "width": 8, "height": 8}))
    (folder / "chars.json").write_text(json.dumps(ICONS[style]))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Small packages instead of those of npm, and a plain resvg."""
    write_emojibase(tmp_path / "npm" / emoji.NAMES.name)
    for style in ICONS:
        write_icons(tmp_path / "npm" / emoji.STYLES[style].package.name, style)
    monkeypatch.setattr(emoji, "fetch_npm", lambda package, folder: tmp_path / "npm" / package.name)
    monkeypatch.setitem(sys.modules, "resvg_py", SimpleNamespace(svg_to_bytes=drawn_plainly))


def names_of(source):
    return [source[index].name for index in range(len(source))]


def test_a_thing_has_one_name_in_every_style(tmp_path, packages):
    main(["prepare", "emoji", "--size", "16", "--out", str(tmp_path), "--styles", "openmoji", "fluent", "noto"])
    source = PreparedSource(tmp_path / "emoji", "all")
    things = [name.rsplit(", ", 1) for name in names_of(source)]
    assert things[:3] == [["red heart", "fluent"], ["red heart", "noto"], ["red heart", "openmoji"]]
    assert sorted(things[3:]) == [["deaf man", "fluent"], ["deaf man", "noto"], ["waving hand", "fluent"]]
    for index, (name, style) in enumerate(things):
        assert source[index].caption == f"{name}, {style} style"
        color = "".join(f"{value:02x}" for value in source[index].media[0, 3, 3])
        assert (source[index].media.shape, f"#{color}") == ((1, 16, 16, 3), COLORS[style])


def test_what_has_no_name_in_emojibase_has_that_of_its_icon_if_no_other_emoji_has_it(tmp_path, packages):
    main(["prepare", "emoji", "--size", "16", "--out", str(tmp_path), "--styles", "twemoji"])
    assert names_of(PreparedSource(tmp_path / "emoji", "all")) == [
        "lighthouse, twemoji"
    ]  # no logo, no second heart, no part


def test_icons_without_code_points_are_those_of_the_emoji_of_their_names(tmp_path, packages):
    main(["prepare", "emoji", "--size", "16", "--out", str(tmp_path), "--styles", "emojione"])
    assert sorted(names_of(PreparedSource(tmp_path / "emoji", "all"))) == [
        "deaf man, emojione",
        "waving hand, emojione",
    ]


def test_skin_tones_are_drawn_if_they_are_asked_for(tmp_path, packages):
    main(["prepare", "emoji", "--size", "16", "--out", str(tmp_path), "--styles", "noto", "--skin-tones"])
    assert "waving hand light skin tone, noto" in names_of(PreparedSource(tmp_path / "emoji", "all"))


def test_licences_captions_and_counts_lie_beside_the_samples(tmp_path, packages):
    main(["prepare", "emoji", "--size", "16", "--out", str(tmp_path)])
    folder = tmp_path / "emoji"
    notice = (folder / "NOTICE.md").read_text()
    for phrase in ("Microsoft", "Google", "licence [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/)"):
        assert phrase in notice
    assert (folder / "LICENSE-emojibase-MIT.txt").read_text() == "MIT of Emojibase"
    assert "Apache License" in (folder / "LICENSE-noto-emoji-Apache-2.0.txt").read_text()
    card = json.loads((folder / CARD).read_text())
    assert sum(sum(counts.values()) for counts in card["counts"].values()) == card["samples"] == 8
    assert json.loads((folder / "captions" / "de.json").read_text())["deaf man"] == ["gehörloser Mann"]
    assert (folder / "sheet.png").is_file()


def test_a_share_alike_style_is_left_out_unless_it_is_named_and_then_the_card_says_so():
    assert "openmoji" not in emoji.SETTINGS["styles"]
    assert "share-alike" not in emoji.card(64, emoji.SETTINGS["styles"], False).about
    assert "OpenMoji is under a share-alike licence" in emoji.card(64, ("noto", "openmoji"), False).about


def test_settings_that_emoji_do_not_have_and_sizes_out_of_range_are_refused(tmp_path, packages, capsys):
    for flags, message in (
        (["--frames", "3"], "emoji has no --frames; its settings: --size, --styles, --skin-tones"),
        (["--size", "8"], "must be from 16 to 256"),
        (["--styles", "noto", "noto"], "different ones of fluent, noto, twemoji, emojione, openmoji"),
    ):
        with pytest.raises(SystemExit, match="1"):
            main(["prepare", "emoji", "--out", str(tmp_path), *flags])
        assert message in capsys.readouterr().err.replace("\n", " ")
        assert not (tmp_path / "emoji").exists()


@pytest.mark.parametrize("name", MODULES)
def test_a_set_is_prepared_with_its_own_settings_where_none_are_given(monkeypatch, tmp_path, name):
    module = importlib.import_module(f"lumina_jax.data.datasets.{MODULES[name]}")

    def asked(**settings):
        raise ValueError(f"asked for {settings}")

    monkeypatch.setattr(module, "samples", asked)
    with pytest.raises(ValueError, match=re.escape(f"asked for {module.SETTINGS}")):
        prepare(Prepare(name, tmp_path))


def test_without_resvg_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ValueError, match=r"pip install 'lumina_jax\[icons\]'"):
        next(emoji.samples(64, ("noto",), False))


def test_resvg_draws_an_icon_on_white():
    pytest.importorskip("resvg_py")
    picture = icons.drawn(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><rect width="4" height="8" fill="#ff0000"/></svg>',
        16,
    )
    assert (picture.shape, picture.dtype) == ((16, 16, 3), np.uint8)
    np.testing.assert_array_equal(picture[:, :8], np.broadcast_to([255, 0, 0], (16, 8, 3)))
    assert (picture[:, 8:] == 255).all()


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("piñata", "pinata"),
        ("keycap: *", "keycap asterisk"),
        ("UP! button", "up button"),
        ("flag: Bosnia & Herzegovina", "flag bosnia and herzegovina"),
        ("flag: U.S. Outlying Islands", "flag us outlying islands"),
        ("woman’s hat", "womans hat"),
    ],
)
def test_names_are_plain_words(label, name):
    assert plain(label) == name


# what is held out


@pytest.fixture(scope="module")
def embedded():
    source = EmojiSource(1561, "all")
    return [source[index] for index in range(len(source))]


@pytest.fixture(scope="module")
def named(embedded):
    """Every name that both embedded styles have, at made-up code points; and a thousand that they have not."""
    names = [record.name.rsplit(", ", 1)[0] for record in embedded[::2]] + [f"thing {index}" for index in range(1000)]
    return {f"{0x20000 + index:x}": Emoji(name, f"{0x20000 + index:x}") for index, name in enumerate(names)}


@pytest.fixture(scope="module")
def split(named):
    return Split(named)


@pytest.fixture(scope="module")
def parts(named, split):
    """The part of each style of each name."""
    return {one.name: {style: split(one, style) for style in emoji.STYLES} for one in named.values()}


def test_the_pairs_that_the_embedded_emoji_hold_out_stay_held_out(parts):
    found = {f"{name}, {style}" for name, of in parts.items() for style, part in of.items() if part == "held_out"}
    before = EmojiSource(1561, "held_out")
    assert found == {before[index].name for index in range(len(before))}
    assert len(found) == 390


def test_a_skin_tone_is_held_out_with_its_emoji(named, split, parts):
    base = next(one for one in named.values() if parts[one.name]["noto"] == "held_out")
    toned = base._replace(name=f"{base.name} dark skin tone")
    assert {style: split(toned, style) for style in emoji.STYLES} == parts[base.name]


def test_whole_names_are_unknown_in_every_style_but_none_of_the_first_or_of_those_held_out(parts):
    unknown = {name for name, of in parts.items() if "unknown" in of.values()}
    assert all(set(parts[name].values()) == {"unknown"} for name in unknown)
    assert not unknown & set(first_names()[:40])
    assert not [name for name in unknown if "held_out" in parts[name].values()]
    free = len(parts) - 390 - 30  # of the first 40 names, 10 are among the 390 that have a pair held out
    assert len(unknown) == pytest.approx(emoji_names.UNKNOWN_SHARE * free, rel=0.25)


def test_the_split_of_a_name_depends_on_no_other_name(named, parts):
    some = dict(list(named.items())[1561:])
    half = Split(some)
    assert all(half(one, style) == parts[one.name][style] for one in some.values() for style in emoji.STYLES)


def test_a_family_with_a_name_that_is_held_out_in_one_style_is_not_unknown(named, split):
    shared = {family(code) for code, one in named.items() if split(one, "fluent") == "unknown"}
    held_out = next(one for one in named.values() if split(one, "fluent") == "held_out")
    code = min(shared)
    joined = Split({**named, f"{code}-200d-2640": Emoji(held_out.name, f"{code}-200d-2640")})
    assert joined(named[code], "fluent") == "train"


def test_emoji_that_look_alike_in_some_style_are_one_family():
    runners = ["1f3c3", "1f3c3-200d-2642", "1f3c3-1f3fd-200d-2640", "1f3c3-200d-27a1"]
    astronauts = ["1f9d1-200d-1f680", "1f468-200d-1f680", "1f469-1f3fb-200d-1f680"]
    families = ["1f468-200d-1f469-200d-1f466", "1f46a", "1f469-200d-1f469-200d-1f467"]
    assert [{family(one) for one in group} for group in (runners, astronauts, families)] == [
        {"1f3c3"},
        {"1f9d1-1f680"},
        {"1f9d1-1f9d1-1f9d2"},
    ]
    assert family("1f1f8-1f1ef") == family("1f1f3-1f1f4") == "1f1f3-1f1f4"  # Svalbard has the flag of Norway
    assert has_skin_tone("1f469-1f3fb-200d-1f680")


def test_the_embedded_samples_are_bit_for_bit_those_of_earlier_versions(embedded):
    digest = hashlib.blake2b(digest_size=8)
    for record in embedded:
        digest.update(f"{record.name}|{record.caption}|{record.label}|".encode() + record.media.tobytes())
    assert digest.hexdigest() == "aed32371fd377466"
