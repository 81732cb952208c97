"""The page in a real Chromium: the same logits, the same form, and drawn digits are read."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from classifiers import ALL, every_kind, random_classifier, some_images
from photos_of_digits import strokes
from playwright.sync_api import Browser, Page, sync_playwright

import jaxmnist
from jaxmnist import sources
from jaxmnist.export import page as page_lib
from jaxmnist.photos.form import to_mnist

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

# Strokes of digits, in shares of the sheet.
DRAWN = {
    "0": [
        [(0.5, 0.15), (0.3, 0.3), (0.28, 0.65), (0.5, 0.87), (0.7, 0.68), (0.7, 0.3), (0.5, 0.15)]
    ],
    "1": [[(0.52, 0.1), (0.5, 0.9)]],
    "2": [[(0.3, 0.3), (0.45, 0.13), (0.65, 0.25), (0.62, 0.45), (0.28, 0.85), (0.75, 0.83)]],
    "3": [
        [(0.3, 0.2), (0.5, 0.12), (0.68, 0.22), (0.66, 0.38), (0.45, 0.47)],
        [(0.45, 0.47), (0.68, 0.55), (0.72, 0.75), (0.5, 0.88), (0.28, 0.8)],
    ],
    "4": [[(0.35, 0.12), (0.27, 0.55), (0.75, 0.55)], [(0.65, 0.15), (0.62, 0.9)]],
    "7": [[(0.25, 0.18), (0.72, 0.16), (0.45, 0.88)]],
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
    ):
        yield browser


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "model3.html"
    jaxmnist.save(jaxmnist.load("model3"), file)
    return file


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Page]:
    """Open, without a network; whatever it complains of or asks the network for fails the test."""
    context = browser.new_context(offline=True, has_touch=True)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    page.goto(file.as_uri())
    yield page
    context.close()
    assert [line for line in said if not line.startswith(("file:", "data:"))] == []


def logits(page: Page, images_NHW: np.ndarray) -> np.ndarray:
    pixels = images_NHW.reshape(len(images_NHW), -1).tolist()
    return np.array(page.evaluate("(images) => images.map((image) => logits(image))", pixels))


@needs_chromium
def test_logits(page: Page, mnist):
    images_NHW = mnist[1].images_NHW[:200]
    expected = jaxmnist.load("model3").logits(images_NHW)
    np.testing.assert_allclose(logits(page, images_NHW), expected, rtol=0, atol=1e-4)


@needs_chromium
@pytest.mark.parametrize("name", ALL)
def test_every_network(name: str, browser: Browser, tmp_path: Path, mnist):
    """With weights away from their start."""
    classifier = random_classifier(**ALL[name])
    file = tmp_path / "page.html"
    jaxmnist.save(classifier, file)
    page = browser.new_page()
    page.goto(file.as_uri())
    images_NHW = some_images(mnist[1])
    expected = classifier.logits(images_NHW)
    np.testing.assert_allclose(logits(page, images_NHW), expected, rtol=1e-4, atol=1e-4)
    page.close()


@pytest.mark.long
@needs_chromium
@pytest.mark.parametrize("name", sources.packaged())
def test_a_thousand_images_are_read_alike(name: str, browser: Browser, tmp_path: Path, mnist):
    classifier = jaxmnist.load(name)
    jaxmnist.save(classifier, tmp_path / "page.html")
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    images_NHW = mnist[1].images_NHW[:1000]
    found = logits(page, images_NHW).argmax(1)
    np.testing.assert_array_equal(found, classifier.predict(images_NHW).digits)
    page.close()


@needs_chromium
def test_form_is_that_of_photos(page: Page, mnist):
    """Large strokes give the same 28×28 pixels, but for a level where rounding decides."""
    for digit_HW in mnist[1].images_NHW[:30]:
        ink_HW = strokes(digit_HW, 90)
        script = "([ink, columns]) => Array.from(toMnist(Float32Array.from(ink), columns))"
        found = page.evaluate(script, [ink_HW.ravel().tolist(), ink_HW.shape[1]])
        found_HW = np.array(found).reshape(28, 28)
        np.testing.assert_allclose(found_HW, to_mnist(ink_HW).astype(int), atol=1)


def draw(page: Page, digit: str) -> None:
    """With the mouse."""
    box = page.locator("#pad").bounding_box()
    assert box
    for stroke in DRAWN[digit]:
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=5)
        page.mouse.up()


def answer(page: Page) -> str | None:
    """After what has been drawn is shown."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    return page.locator("#answer").text_content()


@needs_chromium
@pytest.mark.parametrize("digit", DRAWN)
def test_drawn_by_mouse(page: Page, digit: str):
    draw(page, digit)
    assert answer(page) == digit
    shares = page.locator("#bars li > span:last-child").all_text_contents()
    percent = [float(share.removesuffix(" %")) for share in shares]
    assert np.argmax(percent) == int(digit)
    assert sum(percent) == pytest.approx(100, abs=0.6)
    page.get_by_role("button", name="Clear").click()
    assert answer(page) == ""
    assert set(page.locator("#bars li > span:last-child").all_text_contents()) == {""}


@needs_chromium
def test_drawn_by_keys(page: Page):
    """A 1: the pen goes up, is put down, and comes back."""
    page.locator("#pad").focus()
    for key in ("Shift+ArrowUp",) * 3 + ("Space",) + ("Shift+ArrowDown",) * 7:
        page.keyboard.press(key)
    assert answer(page) == "1"
    assert page.locator("#pen").is_visible()
    page.keyboard.press("Escape")
    assert answer(page) == ""


@needs_chromium
def test_the_mouse_takes_the_pen_of_the_keys_up(page: Page):
    page.locator("#pad").focus()
    page.keyboard.press("Space")
    box = page.locator("#pad").bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    before = page.evaluate("pad.toDataURL()")
    page.keyboard.press("Shift+ArrowUp")
    assert page.evaluate("pad.toDataURL()") == before


@needs_chromium
def test_drawn_by_finger(page: Page):
    """A 1, from below to above: the page, which is higher than this screen, stays where it is."""
    page.set_viewport_size({"width": 390, "height": 480})
    box = page.locator("#pad").bounding_box()
    assert box
    session = page.context.new_cdp_session(page)
    for number, y in enumerate(np.linspace(0.75, 0.1, 14)):
        place = {"x": box["x"] + 0.5 * box["width"], "y": box["y"] + y * box["height"]}
        kind = "touchMove" if number else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [place]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert answer(page) == "1"
    assert page.evaluate("scrollY") == 0


@needs_chromium
@pytest.mark.parametrize(("touch", "selected"), [(True, "none"), (False, "auto")])
def test_fingers_select_nothing(browser: Browser, file: Path, touch: bool, selected: str):
    """On iOS they would: resting ones bring up its menu, and a pencil loses strokes."""
    with browser.new_context(offline=True, has_touch=touch) as context:
        page = context.new_page()
        page.goto(file.as_uri())
        for place in ("#pad", "#answer", "#bars", "footer"):
            chosen = f"getComputedStyle(document.querySelector('{place}')).userSelect"
            assert page.evaluate(chosen) == selected
        move = "new Event('touchmove', {cancelable: true, bubbles: true})"
        assert page.evaluate(f"pad.dispatchEvent({move})") is False  # the default is prevented


@needs_chromium
@pytest.mark.parametrize("width", [320, 390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_and_can_be_read(page: Page, width: int, scheme):
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator("#pad").bounding_box()
    assert box
    assert box["width"] >= 280
    style = "getComputedStyle(document.body)"
    colours = page.evaluate(f"[{style}.color, {style}.backgroundColor]")
    text, back = (np.mean([int(n) for n in re.findall(r"\d+", colour)]) for colour in colours)
    assert (text > back + 150) if scheme == "dark" else (back > text + 150)


@pytest.mark.parametrize("name", sources.packaged())
def test_the_largest_has_230_kb(name: str):
    """Of depthwise-separable convolutions, too, it holds no more numbers than the network."""
    assert len(page_lib.content(jaxmnist.load(name))) < 240_000


def test_the_page_names_the_recipe():
    """Networks that a recipe describes are all called blocks."""
    assert b"under_500, 488 parameters, 98.64 % of test" in page_lib.content(
        jaxmnist.load("under_500")
    )


def test_every_layer_is_there():
    assert set(page_lib._KINDS) == set(every_kind())


def test_the_page_asks_for_nothing(file: Path):
    text = file.read_text()
    assert file.stat().st_size < 150_000
    assert not re.search(r"https?:|src=|@import|url\(|fetch\(|XMLHttp", text)
    assert "model3, 7,784 parameters, 99.55 % of test images right" in text


@pytest.mark.parametrize("accuracy", ["n/a", "", "nan", "99"])
def test_any_metadata_will_do(accuracy: str):
    classifier = jaxmnist.load("model3")
    classifier.metadata |= {"final_accuracy": accuracy, "version": "x"}
    about = "model3, 7,784 parameters" + (", 99.00 % of test" if accuracy == "99" else ". Made")
    assert about.encode() in page_lib.content(classifier)


def test_no_text_of_a_network_ends_the_script():
    classifier = jaxmnist.load("model3")
    classifier.metadata["recipe"] = "</script><script>alert(1)</script>"
    text = page_lib.content(classifier).decode()
    assert text.count("</script>") == 1
