"""Views of 3-D models: the right side at the right azimuth, and what is said of files that show nothing."""

import numpy as np
import pytest
from PIL import Image

from lumina_jax.data.datasets.furniture import models
from lumina_jax.data.objects import render_views

COLORS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "gray": (0.5, 0.5, 0.5)}
CUBE = """
mtllib cube.mtl
v -1 -1 1
v 1 -1 1
v 1 1 1
v -1 1 1
v -1 -1 -1
v 1 -1 -1
v 1 1 -1
v -1 1 -1
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl red
f 1/1 2/2 3/3 4/4
usemtl green
f 2/1 6/2 7/3 3/4
usemtl blue
f 6/1 5/2 8/3 7/4
usemtl gray
f 5/1 1/2 4/3 8/4
f 4/1 3/2 7/3 8/4
f 5/1 6/2 2/3 1/4
"""


@pytest.fixture
def cube(tmp_path):
    """A cube whose front (z) is red, right side (x) green, back blue, all else gray."""
    (tmp_path / "cube.obj").write_text(CUBE)
    (tmp_path / "cube.mtl").write_text(
        "".join(f"newmtl {name}\nKd {r} {g} {b}\nKa {r} {g} {b}\n" for name, (r, g, b) in COLORS.items())
    )
    return tmp_path / "cube.obj"


def middle(view):
    """The mean color in the middle of a picture."""
    height, width = view.shape[:2]
    part = view[height // 2 : height // 2 + height // 8, width // 2 - width // 16 : width // 2 + width // 16]
    return part.reshape(-1, 3).mean(0)


def test_the_camera_goes_around_counter_clockwise_from_the_front(cube):
    views = render_views(cube, views=4, size=64, elevation=10.0)
    assert views.shape == (4, 64, 64, 3)
    assert [int(np.argmax(middle(view))) for view in views[:3]] == [0, 1, 2]  # red, green, blue
    assert np.ptp(middle(views[3])) < 10  # gray
    assert (views[:, 0] == 255).all()  # on white, and nothing is cut off
    assert (views[:, :, [0, -1]] == 255).all()


def test_from_above_the_top_is_seen_and_the_object_stands_upright(cube):
    [high] = render_views(cube, views=1, size=64, elevation=60.0)
    upper, lower = high[22], high[44]
    gray = upper[(upper < 250).any(-1)].mean(0)
    red = lower[(lower < 250).any(-1)].mean(0)
    assert np.ptp(gray) < 10
    assert red[0] - red[1] > 50


def test_textures_are_drawn_and_a_missing_one_is_not_missed(cube):
    plain = render_views(cube, views=1, size=64, elevation=10.0)
    materials = cube.with_suffix(".mtl")
    materials.write_text(materials.read_text().replace("Ka 1 0 0\n", "Ka 1 0 0\nmap_Kd skin.png\n"))
    without = render_views(cube, views=1, size=64, elevation=10.0)
    np.testing.assert_array_equal(middle(without[0]), middle(plain[0]))
    halves = Image.new("RGB", (8, 8), (255, 255, 255))
    halves.paste((0, 0, 0), (0, 0, 4, 8))
    halves.save(cube.parent / "skin.png")
    [view] = render_views(cube, views=1, size=64, elevation=10.0)
    left, right = view[30:40, 24:28].mean(), view[30:40, 36:40].mean()
    assert right - left > 40


def test_a_model_without_materials_is_gray(cube):
    cube.with_suffix(".mtl").unlink()
    [view] = render_views(cube, views=1, size=64)
    assert np.ptp(middle(view)) < 5
    assert middle(view).mean() < 250


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("chair.obj", "", "no surface to see"),
        ("chair.obj", None, "there is no file"),
        ("chair.fbx", "", "must end in .obj"),
        ("chair.stl", "solid nothing\nendsolid nothing\n", "no surface to see"),
    ],
)
def test_what_shows_nothing_is_refused(tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=reason):
        render_views(tmp_path / name, views=2, size=16)


def test_of_models_with_one_name_the_first_counts():
    properties = (
        "# comment\nname#1=Bed\nmodel#1=/a/bed.obj\nname#2=Chair\nname#3=Bed\nmodel#3=/b/bed.obj\nmodel#4=/c.obj\n"
    )
    assert models(properties) == {"bed": "a/bed.obj"}
