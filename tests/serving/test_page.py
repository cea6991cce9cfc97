"""The page in headless Chromium, against the real server with the bundled model; no other address may be asked."""

import csv
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from sotr.results.instances import Instances
from tests.serving.conftest import Server, running

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")

PATIENCE = 120_000
"""Milliseconds until a step has failed; machines may be busy."""


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Page:
    """The page freshly opened, and what it asked for."""

    def __init__(self, browser: "playwright.Browser", server: Server, **options: object) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(server.url)
        # The page's policy forbids evaluated code, and with it Playwright's wait_for_function.
        self.wait_for("#model", "nuclei · finds nucleus")

    def try_sample(self) -> None:
        self.page.get_by_role("button", name="Try this sample").click()
        self.page.wait_for_selector("#panel:not([hidden])")

    def choose(self, name: str, content: bytes, kind: str = "") -> None:
        self.page.set_input_files("#file", files=[{"name": name, "mimeType": kind, "buffer": content}])

    def choose_all(self, files: dict[str, bytes]) -> None:
        self.page.set_input_files(
            "#file", files=[{"name": name, "mimeType": "", "buffer": content} for name, content in files.items()]
        )

    def bring(self, event: str, name: str, content: str) -> None:
        """Drop or paste a file, whose content is a JavaScript expression."""
        kind, field = {"drop": ("DragEvent", "dataTransfer"), "paste": ("ClipboardEvent", "clipboardData")}[event]
        self.page.evaluate(
            f"""async () => {{
                const data = new DataTransfer();
                data.items.add(new File([{content}], "{name}", {{ type: "image/png" }}));
                const options = {{ {field}: data, bubbles: true, cancelable: true }};
                document.body.dispatchEvent(new {kind}("{event}", options));
            }}"""
        )

    def wait_for(self, selector: str, text: str) -> None:
        playwright.expect(self.page.locator(selector)).to_have_text(text, timeout=PATIENCE)

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def predictions(self) -> int:
        return sum("/predict" in url for url in self.requests)

    def download(self, button: str) -> tuple[str, bytes]:
        with self.page.expect_download() as started:
            self.page.get_by_role("button", name=button).click()
        return started.value.suggested_filename, Path(started.value.path()).read_bytes()


@pytest.fixture
def page(browser: "playwright.Browser", server: Server) -> Iterator[Page]:
    opened = Page(browser, server)
    yield opened
    assert opened.errors == []
    assert all(url.startswith((server.url, "blob:")) for url in opened.requests)
    opened.context.close()


def test_choosing_by_score_and_class_asks_the_server_once(page: Page, expected: Instances) -> None:
    page.try_sample()
    assert page.text("#count") == f"{(expected.scores_I >= 0.3).sum()} objects"
    slider = page.page.locator("#score")
    for score in ("0.6", "0.05", "1"):
        slider.fill(score)
        count = int((expected.scores_I.round(6) >= float(score)).sum())
        assert page.text("#count") == f"{count} object{'s' * (count != 1)}"
        assert page.page.locator("#objects [role=option]").count() == count
    slider.fill("0.5")
    page.page.get_by_role("checkbox", name="nucleus").uncheck()
    assert page.text("#count") == "0 objects"
    assert page.text("#none") == "None at this score"
    assert page.predictions() == 1


def test_the_pointer_finds_objects(page: Page, expected: Instances) -> None:
    page.try_sample()
    page.page.locator("#score").fill("0.5")
    bounds = page.page.locator("#picture").bounding_box()
    assert bounds is not None
    for i in (0, 1, 4):
        mask_hw, x, y = expected.mask_crop(i)
        # The pixel of the mask that lies deepest inside it.
        rows, columns = np.nonzero(mask_hw)
        middle = np.argmin(np.hypot(rows - rows.mean(), columns - columns.mean()))
        place = (x + columns[middle] + 0.5, y + rows[middle] + 0.5)
        page.page.mouse.move(
            bounds["x"] + place[0] * bounds["width"] / 512, bounds["y"] + place[1] * bounds["height"] / 384
        )
        area = f"{expected.areas_I[i]:,}"
        assert page.text("#tip") == f"nucleus, score {expected.scores_I[i]:.2f}, area {area} px"
    page.page.mouse.move(2, 2)
    assert page.page.locator("#tip").is_hidden()


def test_everything_works_by_keyboard(page: Page, expected: Instances) -> None:
    keys = page.page.keyboard
    page.page.get_by_role("button", name="Try this sample").focus()
    keys.press("Enter")
    page.page.wait_for_selector("#panel:not([hidden])")
    assert page.page.evaluate("document.activeElement.id") == "view"
    keys.press("ArrowRight")
    assert page.text("#announcement").startswith(f"nucleus, score {expected.scores_I[0]:.2f}")
    first = page.page.get_attribute("#objects", "aria-activedescendant")
    keys.press("ArrowLeft")
    keys.press("ArrowRight")
    assert page.page.locator("#objects [aria-selected=true]").count() == 1
    keys.press("Escape")
    assert page.page.get_attribute("#objects", "aria-activedescendant") == ""

    keys.press("Tab")  # the slider
    assert page.page.evaluate("document.activeElement.id") == "score"
    keys.press("End")
    assert page.text("#score-value") == "1.00"
    keys.press("Home")
    keys.press("Tab")  # the class
    keys.press("Space")
    assert page.text("#count") == "0 objects"
    keys.press("Space")
    keys.press("Tab")  # the list
    assert page.page.evaluate("document.activeElement.id") == "objects"
    keys.press("Home")
    assert page.page.get_attribute("#objects", "aria-activedescendant") == first == "object-0"
    keys.press("End")
    assert page.page.get_attribute("#objects", "aria-activedescendant") == f"object-{len(expected) - 1}"
    reached = []
    for _ in range(4):
        keys.press("Tab")
        reached.append(page.page.evaluate("document.activeElement.id"))
    assert reached == ["save-overlay", "save-coco", "save-csv", "another"]


def test_downloads_hold_what_is_shown(page: Page, expected: Instances) -> None:
    page.try_sample()
    page.page.locator("#score").fill("0.5")
    shown = expected[expected.scores_I.round(6) >= 0.5]

    name, content = page.download("COCO JSON")
    coco = json.loads(content)
    assert name == "sample.json"
    assert coco["images"] == [{"id": 1, "file_name": "sample.png", "width": 512, "height": 384}]
    assert coco["categories"] == [{"id": 1, "name": "nucleus"}]
    assert len(coco["annotations"]) == len(shown)
    for annotation, result in zip(coco["annotations"], shown.to_coco(1), strict=True):
        assert coco_mask.iou([annotation["segmentation"]], [result["segmentation"]], [0])[0, 0] > 0.99
        assert np.allclose(annotation["bbox"], result["bbox"], atol=1)

    name, content = page.download("CSV")
    assert name == "sample.csv"
    table = list(csv.DictReader(io.StringIO(content.decode())))
    assert list(table[0]) == ["picture", *Instances.ROW_COLUMNS]
    for line, row in zip(table, shown.to_rows(), strict=True):
        assert float(line["score"]) == pytest.approx(row["score"], abs=1e-5)
        # The page counts these from the masks that it has decoded itself.
        for column in ("x_center", "y_center"):
            assert float(line[column]) == pytest.approx(row[column], abs=0.1)

    name, content = page.download("Overlay PNG")
    assert name == "sample.overlay.png"
    overlay = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert overlay.shape == (768, 1024, 3)
    coloured = np.ptp(overlay, axis=2) > 20
    inside = shown.masks_IHW.any(0).repeat(2, 0).repeat(2, 1)
    assert coloured[inside].mean() > 0.9
    assert coloured[~inside].mean() < 0.1


def test_errors_are_said_in_plain_words_and_leave_the_result(page: Page, server: Server) -> None:
    page.try_sample()
    count = page.text("#count")
    alert = page.page.get_by_role("alert")
    page.choose("notes.txt", b"not a picture", "text/plain")
    page.wait_for(
        "#problem-text", "“notes.txt” cannot be read as an image. Save it as PNG, JPEG or TIFF and try again."
    )
    assert alert.is_visible()
    assert page.text("#count") == count
    page.page.get_by_role("button", name="Dismiss this message").click()
    assert alert.is_hidden()

    asked = page.predictions()
    page.choose("empty.png", b"", "image/png")
    page.wait_for("#problem-text", "“empty.png” is empty.")
    page.bring("drop", "large.png", "new Uint8Array(33e6)")
    page.wait_for("#problem-text", "“large.png” has 33.0 MB; this server takes up to 32 MB.")
    assert page.predictions() == asked

    # What comes of a request that was given up does not overwrite what is said of the next file.
    page.page.route("**/predict*", lambda route: None)
    page.choose("slow.png", b"never answered", "image/png")
    page.choose("empty.png", b"", "image/png")
    page.wait_for("#problem-text", "“empty.png” is empty.")
    page.page.wait_for_timeout(300)
    assert page.text("#problem-text") == "“empty.png” is empty."
    assert page.page.locator("#busy").is_hidden()
    page.page.unroute("**/predict*")

    page.page.route("**/predict*", lambda route: route.abort())
    page.choose("notes.txt", b"not a picture", "text/plain")
    page.wait_for("#problem-text", "The server cannot be reached. Check that it is still running, then try again.")
    page.page.unroute("**/predict*")
    busy = json.dumps({"error": {"code": "busy", "message": "the server is busy"}})
    page.page.route("**/predict*", lambda route: route.fulfill(status=503, headers={"Retry-After": "4"}, body=busy))
    page.choose("notes.txt", b"not a picture", "text/plain")
    page.wait_for("#problem-text", "The server is busy. Try again in 4 seconds.")
    assert server.alive()


def test_pictures_that_browsers_do_not_show_are_dropped_and_pasted(
    page: Page, sample: bytes, expected: Instances
) -> None:
    """A 16-bit TIFF, whose image comes from the server; and a file by drop and by the clipboard."""
    grey = np.asarray(Image.open(io.BytesIO(sample)).convert("L")).astype(np.uint16) * 16
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "TIFF")
    page.choose("cells.tif", buffer.getvalue(), "image/tiff")
    page.page.wait_for_selector("#panel:not([hidden])")
    assert any(url.endswith("/upright") for url in page.requests)
    assert "cells.tif" in (page.page.get_attribute("#view", "aria-label") or "")
    certain = int((expected.scores_I > 0.5).sum())
    page.page.locator("#score").fill("0.5")
    assert abs(int(page.text("#count").split()[0]) - certain) <= 0.1 * certain

    for event in ("drop", "paste"):
        page.bring(event, f"{event}.png", "await (await fetch('sample')).blob()")
        page.page.wait_for_selector(f"#view[aria-label^='{event}.png']")


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_odd_pictures_are_shown_or_said(page: Page, sample: bytes) -> None:
    """A PNG of a 12-bit camera as the model sees it, a turned JPEG, CMYK, an animation, and one pixel by 20,000."""
    grey = np.asarray(Image.open(io.BytesIO(sample)).convert("L"))
    colours = Image.open(io.BytesIO(sample)).convert("RGB")
    small = colours.resize((90, 60))
    kinds: list[tuple[str, Image.Image, dict[str, object]]] = [
        ("deep.png", Image.fromarray(grey.astype(np.uint16) * 16), {}),
        *((f"turned{number}.jpg", small, {"exif": _turned(number), "quality": 95}) for number in (1, 2, 6, 7)),
        ("cmyk.jpg", colours.convert("CMYK"), {}),
        ("moving.gif", colours.convert("P"), {"save_all": True, "append_images": [colours.convert("P")]}),
        ("line.png", Image.new("L", (1, 20_000), 90), {}),
    ]
    for name, picture, options in kinds:
        buffer = io.BytesIO()
        picture.save(buffer, name.rsplit(".")[1].replace("jpg", "jpeg"), **options)
        page.choose(name, buffer.getvalue(), "image/png")
        page.page.wait_for_selector(f"#view[aria-label^='{name}']")
        assert page.page.get_by_role("alert").is_hidden()
        # The browser's own reading of 12 bits in 16 is nearly black.
        assert any(url.endswith("/upright") for url in page.requests)
    with page.page.expect_download() as download:
        page.page.locator("#save-overlay").click()
    assert Image.open(download.value.path()).height <= 60_000


def test_a_phone_shows_all_without_scrolling_sideways(browser: "playwright.Browser", server: Server) -> None:
    phone = Page(browser, server, viewport={"width": 360, "height": 740}, color_scheme="dark", has_touch=True)
    fits = "document.documentElement.scrollWidth <= 360"
    assert phone.page.evaluate(fits)
    phone.try_sample()
    assert phone.page.evaluate(fits)
    for selector in ("#picture", "#score", "#objects", "#save-csv", "#another"):
        box = phone.page.locator(selector).bounding_box()
        assert box is not None
        assert 0 <= box["x"] < box["x"] + box["width"] <= 360
    phone.choose("x" * 120 + ".txt", b"text", "text/plain")
    phone.page.get_by_role("alert").wait_for()
    assert phone.page.evaluate(fits)
    box = phone.page.get_by_role("alert").bounding_box()
    assert box is not None
    assert 0 <= box["y"] < 740
    assert phone.errors == []
    phone.context.close()


def axe(page: Page) -> list[str]:
    """What axe-core finds wrong with the page as it is."""
    package = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    page.page.evaluate((Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.page.evaluate("axe.run()")["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found]


@pytest.mark.parametrize(
    ("options", "width"),
    [({"color_scheme": "light"}, 1920), ({"color_scheme": "dark"}, 320), ({"forced_colors": "active"}, 800)],
)
def test_every_state_is_accessible_and_fits_the_window(
    browser: "playwright.Browser", server: Server, sample: bytes, options: dict[str, object], width: int
) -> None:
    page = Page(browser, server, viewport={"width": width, "height": 800}, **options)
    fits = f"document.documentElement.scrollWidth <= {width}"
    assert axe(page) == []
    assert page.page.evaluate(fits)
    held: list[playwright.Route] = []
    page.page.route("**/predict*", lambda route: held.append(route))
    for _ in range(2):  # the first image, and one while another is shown
        page.choose("cells.png", sample, "image/png")
        page.page.wait_for_selector("#busy:not([hidden])")
        assert axe(page) == []
        while not held:
            page.page.wait_for_timeout(20)
        held.pop().continue_()
        page.page.wait_for_selector("#busy", state="hidden")
        assert axe(page) == []
    page.page.locator("#score").fill("1")
    assert axe(page) == []
    page.page.unroute("**/predict*")
    page.choose("notes.txt", b"not a picture", "text/plain")
    page.page.get_by_role("alert").wait_for()
    assert axe(page) == []
    go: list[bool] = []
    page.page.route("**/predict*", lambda route: route.continue_() if go else held.append(route))
    page.choose_all({f"{'long' * 20}-{number}.png": sample for number in range(5)})
    assert axe(page) == []
    while not held:
        page.page.wait_for_timeout(20)
    go.append(True)
    held.pop().continue_()
    page.page.wait_for_selector("#strip-stop", state="hidden")
    page.page.get_by_role("checkbox", name="Labels").check()
    assert axe(page) == []
    assert page.page.evaluate(fits)
    page.context.close()


def test_several_pictures_are_looked_at_in_turn(page: Page, sample: bytes, expected: Instances) -> None:
    turned = io.BytesIO()
    Image.open(io.BytesIO(sample)).rotate(90, expand=True).save(turned, "PNG")
    tiff = io.BytesIO()
    Image.open(io.BytesIO(sample)).save(tiff, "TIFF")
    busy = json.dumps({"error": {"code": "busy", "message": "the server is busy"}})
    refusals = [1]

    def refuse_once(route: "playwright.Route") -> None:
        if refusals:
            refusals.pop()
            route.fulfill(status=503, headers={"Retry-After": "1"}, body=busy)
        else:
            route.continue_()

    page.page.route("**/predict*", refuse_once)
    page.choose_all({"a.png": sample, "notes.txt": b"no picture", "b.png": turned.getvalue(), "c.tif": tiff.getvalue()})
    page.page.wait_for_selector("#panel:not([hidden])")
    assert page.text("#about").startswith("a.png")  # while the others are looked at
    page.wait_for("#strip-state", "3 of 4 images, 1 cannot be used")
    assert page.predictions() == 5
    frames = page.page.locator("#frames button")
    count = int((expected.scores_I >= 0.3).sum())
    assert frames.nth(0).inner_text().split() == ["a.png", str(count), "objects"]
    assert frames.nth(1).inner_text().split()[1:] == ["cannot", "be", "used"]
    assert frames.nth(0).get_attribute("aria-current") == "true"
    for number, name, size in ((2, "b.png", "384 × 512"), (3, "c.tif", "512 × 384"), (0, "a.png", "512 × 384")):
        frames.nth(number).click()
        playwright.expect(page.page.locator("#about")).to_contain_text(f"{name} · {size} px")
        assert page.page.locator("#frames [aria-current]").inner_text().split()[0] == name
        assert page.page.locator("#objects li").count() == int(page.text("#count").split()[0])
    assert page.predictions() == 5
    page.page.locator("#score").fill("0.6")
    assert frames.nth(0).inner_text().split()[1] == page.text("#count").split()[0]
    frames.nth(1).click()
    assert "“notes.txt” cannot be read" in page.text("#problem-text")
    page.choose("d.png", sample, "image/png")
    page.page.wait_for_selector("#view[aria-label^='d.png']")
    assert page.page.locator("#strip").is_hidden()


def test_a_strip_can_be_stopped(page: Page, sample: bytes) -> None:
    held: list[playwright.Route] = []
    page.page.route("**/predict*", lambda route: held.append(route))
    page.choose_all({f"{number}.png": sample for number in range(30)})
    page.wait_for("#problem-text", "24 images at a time: 6 were left out.")
    while not held:
        page.page.wait_for_timeout(20)
    held.pop().continue_()
    page.page.wait_for_selector("#panel:not([hidden])")
    page.page.get_by_role("button", name="Stop").click()
    page.wait_for("#strip-state", "1 of 24 images")
    assert page.page.locator("#frames button:enabled").count() == 1


def test_labels_are_written_on_objects(page: Page) -> None:
    page.try_sample()
    pixels = "document.getElementById('picture').toDataURL()"
    plain = page.page.evaluate(pixels)
    page.page.get_by_role("checkbox", name="Labels").check()
    labeled = page.page.evaluate(pixels)
    assert labeled != plain
    name, content = page.download("Overlay PNG")
    assert name == "sample.overlay.png"
    page.page.get_by_role("checkbox", name="Labels").uncheck()
    assert page.page.evaluate(pixels) == plain
    white = [int((np.asarray(Image.open(io.BytesIO(each)).convert("RGB")).min(2) > 250).sum())
             for each in (content, page.download("Overlay PNG")[1])]  # fmt: skip
    assert white[0] > white[1] + 200


def test_a_label_stands_inside_of_its_object(page: Page) -> None:
    """The middle of a mask in two parts lies between them."""
    script = """async ([width, rows]) => {
        const { anchorOf } = await import('./masks.js');
        return anchorOf({ x: 10, y: 20, width, height: rows.length / width, data: Uint8Array.from(rows) });
    }"""
    assert page.page.evaluate(script, [5, [1] * 25]) == [12.5, 22.5]
    assert page.page.evaluate(script, [6, [1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0]]) == [14.5, 20.5]


def test_thirty_classes_have_colors_of_their_own(page: Page) -> None:
    colors = page.page.evaluate(
        """async () => {
            const { colourOf } = await import('./drawing.js');
            const { colors } = await (await fetch('model')).json();
            const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
            return Array.from({ length: 30 }, (_, label) => {
                context.fillStyle = colourOf(label, colors);
                context.fillRect(0, 0, 1, 1);
                return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
            });
        }"""
    )
    distances = np.abs(np.array(colors)[:, None] - np.array(colors)[None]).sum(2) + 999 * np.eye(30, dtype=int)
    assert distances.min() > 20


def test_waiting_can_be_ended_and_tried_again(page: Page, sample: bytes) -> None:
    held: list[playwright.Route] = []
    page.page.route("**/predict*", lambda route: held.append(route))
    page.choose("cells.png", sample, "image/png")
    page.page.wait_for_selector("#preview:not([hidden])")
    playwright.expect(page.page.locator("#elapsed")).to_have_text("1 s")
    page.page.get_by_role("button", name="Cancel").click()
    assert page.page.locator("#busy").is_hidden()
    assert page.page.locator("#empty").is_visible()
    page.page.unroute("**/predict*")
    busy = json.dumps({"error": {"code": "busy", "message": "the server is busy"}})
    page.page.route("**/predict*", lambda route: route.fulfill(status=503, body=busy))
    page.choose("cells.png", sample, "image/png")
    page.page.get_by_role("button", name="Try again").wait_for()
    page.page.unroute("**/predict*")
    page.page.get_by_role("button", name="Try again").click()
    page.page.wait_for_selector("#panel:not([hidden])")
    assert page.text("#about").startswith("cells.png · 512 × 384 px · ")


def test_large_pictures_are_looked_at_in_tiles(page: Page, sample: bytes) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.tile(np.asarray(Image.open(io.BytesIO(sample))), (4, 4, 1))).save(buffer, "PNG")
    page.choose("mosaic.png", buffer.getvalue(), "image/png")
    page.page.wait_for_selector("#note:not([hidden])")
    assert page.text("#note").startswith("The image was shrunk by a factor of 3.0")
    before = int(page.text("#count").split()[0])
    page.page.locator("#tile").fill("1024")
    page.page.get_by_role("button", name="Look in tiles").click()
    page.page.wait_for_selector("#note", state="hidden")
    assert page.text("#about").endswith("tiles of 1024 px")
    assert int(page.text("#count").split()[0]) > 1.5 * before
    assert any("tile=1024" in url for url in page.requests)


def test_the_picture_is_enlarged_and_moved_and_objects_stay_where_they_are(page: Page, expected: Instances) -> None:
    page.try_sample()
    width = page.page.locator("#picture").bounding_box()["width"]  # type: ignore[index]
    frame = page.page.locator("#view").bounding_box()
    for _ in range(3):
        page.page.get_by_role("button", name="Larger").click()
    assert page.page.locator("#view").bounding_box() == frame
    bounds = page.page.locator("#picture").bounding_box()
    assert frame is not None
    assert bounds is not None
    assert bounds["width"] == pytest.approx(width * 1.5**3, rel=0.01)
    left = page.page.evaluate("document.getElementById('view').scrollLeft")
    assert left > 0
    page.page.mouse.move(frame["x"] + 200, frame["y"] + 200)
    page.page.mouse.down()
    page.page.mouse.move(frame["x"] + 150, frame["y"] + 200, steps=4)
    page.page.mouse.up()
    assert page.page.evaluate("document.getElementById('view').scrollLeft") == pytest.approx(left + 50, abs=5)
    page.page.locator("#view").focus()
    page.page.keyboard.press("0")
    assert page.text("#zoom-fit") == "100 %"
    for look in ("Outlines", "Image alone", "Filled"):
        page.page.get_by_role("radio", name=look).check()
    rows = page.page.locator("#objects [role=option]")
    assert rows.nth(0).inner_text().split()[:2] == ["0", "nucleus"]
    assert rows.nth(7).inner_text().split()[:2] == ["7", "nucleus"]


def test_the_key_is_asked_for_once(browser: "playwright.Browser", tmp_path: Path) -> None:
    key = "0123456789abcdef-and-more"
    (tmp_path / "key").write_text(key)
    with running("--api-key-file", str(tmp_path / "key"), "--engine", "pytorch", "--timeout", "600") as guarded:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(guarded.url)
        for words, typed in (("This server wants a key.", "wrong-key"), ("This key is not right.", key)):
            playwright.expect(page.locator("#door-text")).to_have_text(words)
            page.get_by_role("textbox", name="Key").fill(typed)
            page.keyboard.press("Enter")
        playwright.expect(page.locator("#model")).to_have_text("nuclei · finds nucleus")
        page.reload()
        playwright.expect(page.locator("#model")).to_have_text("nuclei · finds nucleus")
        assert page.locator("#door").is_hidden()
        page.get_by_role("button", name="Try this sample").click()
        page.wait_for_selector("#panel:not([hidden])")
        context.close()
