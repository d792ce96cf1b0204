"""Adapters on the page of `lumina demo`, without a browser: several at once, and switched."""

import numpy as np
import pytest

from lumina_jax.commands import sample
from lumina_jax.demo.picture_settings import PictureSettings, restored
from lumina_jax.demo.runs import shown_adapters, shown_runs
from lumina_jax.demo.studio import Studio
from lumina_jax.demo.uploads import settings_in
from lumina_jax.modalities.files.png import read_png_metadata
from tests.compiled import compiled
from tests.demo.conftest import drawn, new_form
from tests.demo.saved_runs import saved_adapter
from tests.demo.test_studio import pixels


@pytest.fixture
def offered(studio):
    """The folders of the two adapters."""
    return list(studio.adapters)


def drawn_with(studio, adapters, **changes):
    """The file of a picture that is drawn with adapters at these strengths."""
    view = drawn(studio, "adapted", new_form(seed="21", adapters=adapters, **changes))
    assert "done" in view.state, view.state
    return view.files[0]


def test_adapters_change_what_is_drawn_together_and_leave_it_again(studio, offered):
    one, other = offered
    found = [{}, {one: 2.5}, {other: 2.5}, {one: 2.5, other: 2.5}, {one: 2.5, other: -1}]
    shown = [pixels(drawn_with(studio, adapters)) for adapters in found]
    assert len({picture.tobytes() for picture in shown}) == len(found)
    np.testing.assert_array_equal(pixels(drawn_with(studio, {})), shown[0])


@pytest.mark.parametrize("strengths", [(2.5, None), (None, 1.5), (0.8, 0.3)])
def test_adapters_draw_as_those_of_lumina_sample(studio, offered, strengths, tmp_path, run_folder, monkeypatch):
    monkeypatch.setenv("LUMINA_ALLOCATOR", "system")
    chosen = {folder: strength for folder, strength in zip(offered, strengths) if strength is not None}
    file = drawn_with(studio, chosen)
    words = [word for folder, strength in chosen.items() for word in ("--adapter", f"{folder}:{strength}")]
    assert sample.main([str(run_folder), "3", "--seed", "21", *words, "--out", str(tmp_path)]) == 0
    np.testing.assert_array_equal(pixels(file), pixels(tmp_path / "000-3.png"))
    assert read_png_metadata(file) == read_png_metadata(tmp_path / "000-3.png")


def test_adapters_are_switched_without_another_program(studio, offered, caplog):
    one, other = offered
    drawn_with(studio, {})
    drawn_with(studio, {other: 1.0})
    with compiled(caplog) as names:
        for adapters in ({one: 0.5}, {one: 0.8, other: 0.3}, {other: 2.0}, {}):
            drawn_with(studio, adapters)
    assert "draw" not in names


def test_adapters_and_strengths_come_back_from_a_picture_and_those_that_are_missing_are_said(studio, offered):
    one, other = offered
    both = settings_in(drawn_with(studio, {one: 0.8, other: 0.25}))
    form, missing = restored(both, studio.runs, studio.adapters, new_form())
    assert (form.adapters, missing) == ({one: 0.8, other: 0.25}, [])
    form, missing = restored(both, studio.runs, [other], new_form())
    assert form.adapters == {other: 0.25}
    assert missing == ["it was drawn with adapters that this page does not have: 'bold'"]
    plain = settings_in(drawn_with(studio, {}))
    assert restored(plain, studio.runs, studio.adapters, form)[0].adapters == {}
    odd = PictureSettings(adapter=[f"{one}/../bold:nan", "\0:1"])
    form, missing = restored(odd, studio.runs, studio.adapters, new_form())
    assert form.adapters == {one: 1.0}
    assert len(missing) == 1
    many = PictureSettings(adapter=[f"a{index}" for index in range(100)])
    assert restored(many, studio.runs, studio.adapters, new_form())[1][0].endswith("'a4', ...")


def test_an_adapter_of_other_weights_is_refused_and_another_one_is_not(studio, offered):
    one = offered[0]
    drawn_with(studio, {one: 1.0})
    view = drawn(studio, "refused", new_form(step=1, adapters={one: 1.0}))
    assert "weights they were trained for" in view.state
    view = drawn(studio, "refused", new_form(run="several", adapters={one: 1.0}))
    assert "must be of this model" in view.state
    assert "done" in drawn(studio, "refused", new_form(adapters={one: 1.0})).state


def test_a_strength_must_be_a_number(studio, offered):
    with pytest.raises(ValueError, match="the strength of bold must be a number, but is empty"):
        drawn_with(studio, {offered[0]: None})


def test_a_page_offers_adapters_with_strengths_and_refuses_what_is_none(adapters, tmp_path):
    assert list(shown_adapters([*adapters, adapters[0]]).values()) == [1.0, 0.5]
    with pytest.raises(ValueError, match=r"nowhere holds no adapter; name a run that trained one"):
        shown_adapters([str(tmp_path / "nowhere")])


def test_an_adapter_of_the_kind_dora_draws_alone_and_keeps_no_other_from_drawing(run_folder, adapters, tmp_path):
    direction = str(saved_adapter(run_folder, tmp_path, "direction", 2, dora=True))
    plain = adapters[0]
    studio = Studio(shown_runs([str(run_folder)]), {plain: 1.0, direction: 1.0}, tmp_path)
    drawn_with(studio, {plain: 1.0})
    drawn_with(studio, {direction: 1.0})
    view = drawn(studio, "adapted", new_form(adapters={plain: 1.0, direction: 1.0}))
    assert "adapter of the kind DoRA cannot have another one" in view.state
    assert "has no strength but 1" in drawn(studio, "adapted", new_form(adapters={direction: 0.5})).state


def test_a_run_that_trained_adapters_of_quantised_weights_takes_no_others(run_folder, adapters, tmp_path):
    folder = saved_adapter(run_folder, tmp_path, "quantised", 2, base="int8", sample={"weights": "int8"})
    studio = Studio(shown_runs([str(folder)]), {adapters[0]: 1.0}, tmp_path)
    form = new_form(run="quantised", step=1)
    assert "done" in drawn(studio, "quantised", form).state
    view = drawn(studio, "quantised", form._replace(adapters={adapters[0]: 1.0}))
    assert "trained adapters of quantised weights, to which others cannot be added" in view.state
