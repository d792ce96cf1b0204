"""The tabs of the page of `lumina demo` in a browser: editing, regions, sets, comparisons, and runs of other kinds."""

import numpy as np
import pytest
from PIL import Image

from lumina_jax.modalities.files.png import read_png_metadata
from tests.demo.test_page import browser as browser
from tests.demo.test_page import draw
from tests.demo.test_page import page as page
from tests.demo.test_page import pytestmark as pytestmark


@pytest.fixture
def red(tmp_path):
    """A picture of the size that is drawn."""
    Image.new("RGB", (32, 32), (200, 0, 0)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def titles(page):
    found = page.driver.find_elements("css selector", "button[role=tab]")
    return [tab.text for tab in found if tab.is_displayed() and tab.text]


def newest(folder):
    return max(folder.glob("samples/2/demo/*.png"), key=lambda file: file.stat().st_mtime_ns)


def paint(page):
    """A stroke with the mouse across the middle of the editor."""
    from selenium.webdriver import ActionChains

    canvas = page.until(lambda: page.find("#edit-mask canvas"), "there is a picture to paint on")
    page.script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    page.driver.implicitly_wait(1)
    mouse = ActionChains(page.driver).move_to_element_with_offset(canvas, -30, 0).click_and_hold()
    for _ in range(6):
        mouse = mouse.move_by_offset(10, 0)
    mouse.release().pause(1).perform()


def test_what_is_painted_is_drawn_anew_and_the_rest_stays(page, red, run_folder):
    page.choose_tab("Edit")
    page.upload("edit-source", red)
    page.until_state("the picture is here")
    paint(page)
    page.fill("prompt", "3")
    page.press("draw-edit")
    page.until_state("done")
    file = newest(run_folder)
    about = read_png_metadata(file)
    mask = np.asarray(Image.open(about["mask"])) > 0
    assert 0 < mask.mean() < 0.3, "the stroke is a part of the picture"
    assert mask[14:18].any(), "it is in the middle"
    changed = (np.asarray(Image.open(file)) != np.asarray(Image.open(red))).any(axis=2)
    assert changed[mask].any()
    assert not changed[:, :2].any()
    page.upload("dropped", file)
    page.until_state("its settings are restored")
    page.fill("seed", "4")
    page.press("draw-edit")
    page.until_state("done")
    again = read_png_metadata(newest(run_folder))
    assert (again["seed"], again["source"], again["mask"]) == (4, about["source"], about["mask"])


def test_a_picture_is_changed_by_strength_or_surrounded(page, red, tmp_path, run_folder):
    page.choose_tab("Edit")
    page.upload("edit-source", red)
    page.until_state("the picture is here")
    page.fill("prompt", "3")
    page.press("draw-edit")
    page.until(lambda: "at strength 1 nothing of the source is left" in page.state(), "the remedy is named")
    field = page.find("#strength input[type=number]")
    field.clear()
    field.send_keys("0.5\t")
    page.press("draw-edit")
    page.until_state("done")
    assert read_png_metadata(newest(run_folder))["strength"] == 0.5
    field.clear()
    field.send_keys("1\t")
    Image.new("RGB", (16, 16), (0, 0, 200)).save(tmp_path / "blue.png")
    page.find("#edit-source button[aria-label='Clear'], #edit-source button[aria-label='clear']").click()
    page.until(lambda: page.driver.find_elements("css selector", "#edit-source input[type=file]"), "it can be replaced")
    page.upload("edit-source", tmp_path / "blue.png")
    page.until_state("the picture is here")
    page.fill("outpaint", "8,8")
    page.press("draw-edit")
    page.until_state("done")
    surrounded = np.asarray(Image.open(newest(run_folder)))
    assert (surrounded[8:24, 8:24] == (0, 0, 200)).all()
    assert (surrounded[:8] != (0, 0, 200)).any()


def test_the_noise_of_a_picture_is_drawn_with_another_caption_and_comes_back(page, red, run_folder):
    page.choose_tab("Edit")
    page.upload("edit-source", red)
    page.until_state("the picture is here")
    page.fill("prompt", "3")
    assert not page.find("#invert")
    page.find("#is-inverted input").click()
    page.until(lambda: page.find("#invert"), "its caption has a field")
    page.fill("invert", "5")
    page.find("#normalize input").click()
    page.press("draw-edit")
    page.until_state("done")
    about = read_png_metadata(newest(run_folder))
    assert (about["invert"], about["normalize_source"], about["resamplings"]) == ("5", True, 1)
    page.driver.refresh()
    page.until(lambda: page.find("#draw"), "the page is loaded again")
    page.upload("dropped", newest(run_folder))
    page.until_state("its settings are restored")
    page.until(lambda: page.find("#invert"), "the caption is shown")
    assert page.value("invert") == "5"
    assert page.find("#normalize input").is_selected()


def test_steps_are_taken_again_where_a_part_is_kept(page, red, run_folder):
    page.choose_tab("Edit")
    page.upload("edit-source", red)
    page.until_state("the picture is here")
    paint(page)
    page.fill("prompt", "3")
    page.fill("resamplings", "2")
    page.press("draw-edit")
    page.until_state("done")
    assert read_png_metadata(newest(run_folder))["resamplings"] == 2


def test_rare_settings_are_in_a_fold_which_a_picture_that_has_them_opens(page, run_folder):
    page.find("#more-settings button").click()
    page.until(lambda: page.find("#also"), "the fold is open")
    assert not page.find("#rtol")
    page.choose("solver", "bosh3")
    page.until(lambda: page.find("#rtol"), "an adaptive solver has tolerances")
    page.fill("rtol", "0.1")
    page.fill("also", "0.5: 6\n2: 7")
    page.find("#proportional-attention input").click()
    draw(page, "3")
    page.until_state("done")
    about = read_png_metadata(newest(run_folder))
    assert (about["also"], about["rtol"], about["proportional_attention"]) == (["0.5: 6", "2: 7"], 0.1, False)
    page.driver.refresh()
    page.until(lambda: page.find("#draw"), "the page is loaded again")
    assert not page.find("#also")
    page.upload("dropped", newest(run_folder))
    page.until_state("its settings are restored")
    page.until(lambda: page.find("#rtol"), "the fold is open")
    assert page.value("also") == "0.5: 6\n2: 7"
    assert page.value("rtol") == "0.1"


def test_a_set_shares_the_style_of_its_first(page, run_folder):
    page.choose_tab("One style")
    page.fill("seed", "7")
    page.fill("style-prompts", "3\n4\n5")
    page.press("draw-style")
    page.until_state("done")
    assert len(page.driver.find_elements("css selector", "#picture figure")) == 3
    assert len(page.driver.find_elements("css selector", "#history img")) == 3
    about = [read_png_metadata(file) for file in sorted((run_folder / "samples" / "2" / "demo").glob("00[12]-*.png"))]
    assert all(one["style_of"] == "0" for one in about)
    assert sorted(one["seeds"][0] for one in about) == [8, 9]


def test_two_checkpoints_are_compared_side_by_side(page):
    page.choose_tab("Compare")
    page.fill("prompt", "3")
    page.choose("other-run", "pictures")
    page.until(lambda: page.value("other-step") == "2", "its newest step is chosen")
    page.press("draw-both")
    page.until(lambda: "both are the same" in page.state(), "it is refused")
    page.choose("other-step", "1")
    page.press("draw-both")
    page.until_state("done")
    captions = [one.text for one in page.driver.find_elements("css selector", "#picture figcaption")]
    assert captions == ["pictures, step 2: 3", "pictures, step 1: 3"]
    shown = [one.get_attribute("src") for one in page.driver.find_elements("css selector", "#picture img")]
    assert shown[0] != shown[1]


@pytest.mark.parametrize(("kind", "tab", "player"), [("clips", "Clips", "video"), ("views", "Views", "video")])
def test_another_run_brings_its_own_fields_and_player(page, kind, tab, player):
    page.choose("run", kind)
    page.until(lambda: page.find("#frames"), "there are frames")
    page.until(lambda: titles(page)[0] == tab, "the tab is called after what is drawn")
    draw(page)
    page.until_state("done")
    assert page.find(f"#picture {player}")
    assert bool(page.find("#scenes")) == (kind == "clips")


def test_scenes_follow_each_other_in_a_clip(page):
    page.choose("run", "clips")
    page.until(lambda: page.find("#scenes"), "there are scenes")
    page.fill("scenes", "3 @ 0.5\n4 @ 0.25")
    page.press("draw")
    page.until_state("done")
    assert page.find("#picture video")
    assert len(page.driver.find_elements("css selector", "#files a")) == 3


def test_a_sound_has_its_player_and_spectrogram(page):
    page.choose("run", "sounds")
    page.until(lambda: page.find("#seconds"), "it has seconds")
    assert not page.find("#width")
    draw(page, "seven")
    page.until_state("done")
    assert page.find("#picture audio")
    assert page.find("#picture img")
    assert titles(page) == ["Sounds", "One style", "Compare"]


def test_a_run_of_several_modalities_draws_the_chosen_one_and_it_comes_back_from_the_history(page):
    assert not page.find("#modality"), "a run of one has nothing to choose"
    page.choose("run", "several")
    page.until(lambda: page.find("#modality"), "there is a choice")
    page.choose("modality", "video")
    page.until(lambda: titles(page)[0] == "Clips", "the tab is called after what is drawn")
    draw(page, "4")
    page.until_state("done")
    assert page.find("#picture video")
    page.choose_tab("Compare")
    page.choose("other-run", "several")
    page.choose("other-step", "1")
    page.press("draw-both")
    page.until(lambda: len(page.driver.find_elements("css selector", "#picture video")) == 2, "clips are compared")
    page.until_state("done")
    page.choose("modality", "speech")
    page.until(lambda: page.find("#seconds"), "it has seconds")
    page.choose_tab("Sounds")
    assert page.value("prompt") == "4"
    draw(page, "5")
    page.until_state("done")
    assert page.find("#picture audio")
    page.choose("run", "pictures")
    page.until(lambda: not page.find("#modality"), "there is no choice any more")
    page.until(lambda: len(page.driver.find_elements("css selector", "#history img")) == 3, "all are in the history")
    page.driver.find_elements("css selector", "#history .thumbnail-item, #history button img")[-1].click()
    page.until(lambda: page.find("#modality"), "the run is chosen again")
    page.until(lambda: page.value("modality") == "video", "its modality is chosen again")
    page.until(lambda: page.find("#frames"), "its fields are shown")
    assert titles(page)[0] == "Clips"


def test_the_picture_to_edit_is_one_of_the_chosen_modality(page, red, folders):
    several = folders[-2]
    page.choose("run", "several")
    page.until(lambda: page.find("#modality"), "there is a choice")
    page.choose("modality", "video")
    page.until(lambda: titles(page)[0] == "Clips", "clips are drawn")
    page.choose_tab("Edit")
    page.upload("edit-source", red)
    page.until_state("the picture is here")
    field = page.find("#strength input[type=number]")
    field.clear()
    field.send_keys("0.5\t")
    page.fill("prompt", "3")
    page.press("draw-edit")
    page.until_state("done")
    about = read_png_metadata(newest(several))
    assert (about["modality"], about["strength"]) == ("video", 0.5)
    page.choose("modality", "speech")
    page.until(lambda: titles(page) == ["Sounds", "One style", "Compare"], "sounds are not painted on")


def test_adapters_have_strengths_are_drawn_together_and_come_back(page, run_folder, adapters):
    assert not page.find("#strength-of-0")
    page.choose("adapters", "bold")
    page.until(lambda: page.find("#strength-of-0"), "it has a strength")
    assert not page.find("#strength-of-1")
    page.choose("adapters", "pale")
    page.until(lambda: page.find("#strength-of-1"), "it has one, too")
    assert (page.value("strength-of-0"), page.value("strength-of-1")) == ("1", "0.5")
    page.fill("strength-of-0", "0.8")
    draw(page, "3")
    page.until_state("done")
    file = newest(run_folder)
    assert read_png_metadata(file)["adapter"] == [f"{adapters[0]}:0.8", adapters[1]]
    page.driver.refresh()
    page.until(lambda: page.find("#draw"), "the page is loaded again")
    assert not page.find("#strength-of-0")
    page.upload("dropped", file)
    page.until_state("its settings are restored")
    page.until(lambda: page.find("#strength-of-1"), "both are chosen")
    assert (page.value("strength-of-0"), page.value("strength-of-1")) == ("0.8", "0.5")
    page.find("#adapters button.token-remove, #adapters .token-remove").click()
    page.until(lambda: not page.find("#strength-of-0"), "the first is not chosen any more")
    page.press("draw")
    page.until_state("done")
    assert read_png_metadata(newest(run_folder))["adapter"] == [adapters[1]]
