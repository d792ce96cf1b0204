"""Regions on the page of `lumina demo` in a browser: dragged, moved, typed and restored."""

import pytest

from lumina_jax.modalities.files.png import read_png_metadata
from tests.demo.conftest import SIDE
from tests.demo.test_page import browser as browser
from tests.demo.test_page import page as page
from tests.demo.test_page import pytestmark as pytestmark
from tests.demo.test_tabs import newest

webdriver = pytest.importorskip("selenium.webdriver")
ActionChains, Keys = webdriver.ActionChains, webdriver.Keys


@pytest.fixture
def regions(page):
    """The page with its tab of regions."""
    page.choose_tab("Regions")
    page.until(lambda: page.find("#regions svg"), "there is a canvas")
    return page


def offset(page, x, y):
    """The middle of the canvas to a point between its pixels, in pixels of the screen."""
    canvas = page.find("#regions svg")
    page.script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    scale = canvas.size["width"] / SIDE
    return canvas, round((x - SIDE / 2) * scale), round((y - SIDE / 2) * scale)


def drag(page, start, end):
    """From one point of the picture to another, with a point between them."""
    middle = [(a + b) / 2 for a, b in zip(start, end)]
    mouse = ActionChains(page.driver).move_to_element_with_offset(*offset(page, *start)).click_and_hold()
    mouse = mouse.move_to_element_with_offset(*offset(page, *middle))
    mouse.move_to_element_with_offset(*offset(page, *end)).release().perform()


def click(page, *point):
    ActionChains(page.driver).move_to_element_with_offset(*offset(page, *point)).click().perform()


def typed(page, *keys):
    ActionChains(page.driver).send_keys(*keys).perform()


def text(page):
    return page.script("return document.querySelector('#regions textarea').value").splitlines()


def rectangles(page):
    """Left, top, width and height of each."""
    names = "['x', 'y', 'width', 'height'].map(name => Number(one.getAttribute(name)))"
    return page.script(f"return Array.from(document.querySelectorAll('#regions rect'), one => {names})")


def test_dragged_rectangles_with_captions_are_drawn_and_come_back_from_the_picture(regions, run_folder):
    regions.fill("prompt", "3")
    drag(regions, (1, 2), (15, 30))
    typed(regions, "5")
    drag(regions, (31, 16), (12, 0))
    typed(regions, "7")
    regions.fill("region-blend", "4")
    regions.press("draw-regions")
    regions.until_state("done")
    file = newest(run_folder)
    about = read_png_metadata(file)
    assert (about["region"], about["region_blend"]) == (["1,2,15,30: 5", "12,0,31,16: 7"], 4)
    regions.driver.refresh()
    regions.until(lambda: regions.find("#draw"), "the page is loaded again")
    regions.upload("dropped", file)
    regions.until_state("its settings are restored")
    regions.until(lambda: regions.find("#regions svg"), "the tab of the picture is chosen")
    assert text(regions) == about["region"]
    assert rectangles(regions) == [[1, 2, 14, 28], [12, 0, 19, 16]]
    captions = regions.driver.find_elements("css selector", "#regions li input")
    assert [one.get_attribute("value") for one in captions] == ["5", "7"]


def test_the_chosen_rectangle_is_moved_within_the_picture_and_resized_at_its_corners(regions):
    drag(regions, (4, 4), (12, 12))
    drag(regions, (8, 8), (14, 9))
    assert text(regions) == ["10,5,18,13: "]
    drag(regions, (8 + 6, 8 + 1), (31, 31))
    assert text(regions) == ["24,24,32,32: "], "it stays in the picture"
    drag(regions, (24, 24), (2, 20))
    assert text(regions) == ["2,20,32,32: "]
    drag(regions, (31.7, 20.2), (10, 31))
    assert text(regions) == ["2,31,10,32: "]
    click(regions, 20, 10)
    drag(regions, (5, 31), (20, 2))
    assert text(regions) == ["2,31,10,32: ", "5,2,20,31: "], "what is not chosen is drawn over"


def test_regions_change_their_order_and_are_deleted(regions):
    for left, caption in ((0, "1"), (10, "2"), (20, "3")):
        drag(regions, (left, 5), (left + 8, 25))
        typed(regions, caption)
    regions.find("#regions li[data-index='2'] .up").click()
    assert text(regions) == ["0,5,8,25: 1", "20,5,28,25: 3", "10,5,18,25: 2"]
    regions.find("#regions li[data-index='0'] .delete").click()
    assert text(regions) == ["20,5,28,25: 3", "10,5,18,25: 2"]
    assert not regions.find("#regions li[data-index='0'] .up").is_enabled()
    regions.find("#regions li[data-index='0'] .down").click()
    assert text(regions) == ["10,5,18,25: 2", "20,5,28,25: 3"]


def test_the_keyboard_adds_moves_resizes_and_deletes_a_rectangle(regions):
    regions.script("document.querySelector('#regions .add').focus()")
    typed(regions, Keys.ENTER)
    typed(regions, "6")
    assert text(regions) == ["8,8,24,24: 6"]
    ActionChains(regions.driver).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
    typed(regions, Keys.ARROW_LEFT, Keys.ARROW_UP, Keys.ARROW_UP)
    assert text(regions) == ["7,6,23,22: 6"]
    ActionChains(regions.driver).key_down(Keys.SHIFT).send_keys(Keys.ARROW_RIGHT).key_up(Keys.SHIFT).perform()
    assert text(regions) == ["7,6,24,22: 6"]
    typed(regions, Keys.DELETE)
    assert text(regions) == []


def test_a_finger_drags_a_rectangle(regions):
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    finger = ActionBuilder(regions.driver, mouse=PointerInput("touch", "finger"))
    finger.pointer_action.move_to(*offset(regions, 3, 4)).pointer_down()
    for end in ((10, 12), (20, 28)):
        finger.pointer_action.move_to(*offset(regions, *end))
    finger.pointer_action.pointer_up()
    finger.perform()
    typed(regions, "9")
    assert text(regions) == ["3,4,20,28: 9"]


def test_regions_are_typed_too_and_files_of_the_server_are_none(regions, run_folder):
    regions.fill("prompt", "3")
    regions.find("#regions summary").click()
    regions.fill("regions", "/etc/passwd: 5")
    assert "/etc/passwd" in regions.find("#regions [role=status]").text
    assert rectangles(regions) == []
    regions.press("draw-regions")
    regions.until(lambda: "must begin with the left, top, right and bottom pixel" in regions.state(), "it is refused")
    regions.fill("regions", "0,0,16,32: 5")
    assert rectangles(regions) == [[0, 0, 16, 32]]
    typed(regions, Keys.TAB)
    regions.press("draw-regions")
    regions.until_state("done")
    assert read_png_metadata(newest(run_folder))["region"] == ["0,0,16,32: 5"]


def test_captions_are_text_and_the_canvas_has_the_size_of_the_picture(regions):
    drag(regions, (0, 0), (30, 30))
    typed(regions, "<img src=x onerror=document.title='gone'>${1+1}{{1}}")
    assert text(regions) == ["0,0,30,30: <img src=x onerror=document.title='gone'>${1+1}{{1}}"]
    assert regions.script("return document.title") != "gone"
    field = regions.fill("width", "64")
    field.send_keys(Keys.TAB)
    shown = "return document.querySelector('#regions svg').getAttribute('viewBox')"
    regions.until(lambda: regions.script(shown) == f"0 0 64 {SIDE}", "the canvas is as wide")
    assert rectangles(regions) == [[0, 0, 30, 30]]
