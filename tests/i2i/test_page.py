"""The local page: what its buttons do, and the page itself in a headless browser."""

from __future__ import annotations

import base64
import io
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.faked_faces import Brightening, FakeAnalyser, photo_of
from PIL import Image

from stylepairs.datagen.images.files import load_photo
from stylepairs.datagen.shell.errors import InputError
from stylepairs.i2i.edit.editor import Editor
from stylepairs.i2i.models.checkpoints import ModelInfo
from stylepairs.i2i.models.glean import Edit, Glean
from stylepairs.i2i.page import SHOWN_PX, Page, make_page, params_of, region_of_layers, serve, styles_of

INFO = ModelInfo("hair_color", "color", {})
KINDS = ModelInfo("bangs", "params", {}, {"length": [0.2, 1.0], "bangs.style": ["curtain", "full"]})


class ByDegree(Brightening):
    """As bright as the degree says."""

    def forward(self, photo: torch.Tensor, region: torch.Tensor, degree: torch.Tensor, *style: torch.Tensor) -> Edit:
        return super().forward(photo, region * degree[:, None, None, None], degree, *style)


@pytest.fixture
def page(brightening: Glean, tmp_path: Path) -> Page:
    brightening.__class__ = ByDegree
    (tmp_path / "made").mkdir()
    return Page({"hair_color": Editor(brightening, INFO, FakeAnalyser([(150, 100)]))}, tmp_path / "made")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(photo_of(200, 300)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_styles_are_what_the_model_knows_and_come_back_as_parameters() -> None:
    assert "auburn" in styles_of(INFO)
    assert params_of(INFO, "#aabbcc") == {"color": "#aabbcc"}
    styles = styles_of(KINDS)
    assert len(styles) == 6
    assert params_of(KINDS, styles[1]) == {"length": 0.2, "bangs": {"style": "full"}}
    lips = styles_of(ModelInfo("lips", "color_and_params", {}, {"fullness": [-0.2, 0.5]}))
    assert lips[:3] == ["color=nude, fullness=0", "color=nude, fullness=-0.2", "color=nude, fullness=0.5"]
    assert "color=own, fullness=0.5" in lips
    plain = ModelInfo("teeth", "none", {})
    assert styles_of(plain) == ["as trained"]
    assert params_of(plain, "as trained") == {}


@pytest.mark.parametrize(
    ("typed", "message"), [("full", "Style full: must be key=value"), ("", "choose one"), (None, "choose one")]
)
def test_a_style_that_says_nothing_is_refused_and_not_passed_over(typed: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        params_of(KINDS, typed)


def test_a_value_with_commas_comes_back_whole() -> None:
    kinds = {"adopt": [0.0, 1.0], "parts": ["brows,eyes", "eyes"]}
    styles = styles_of(ModelInfo("facial_features", "params", {}, kinds))
    found = [params_of(KINDS, style) for style in styles]
    assert found[:2] == [{"adopt": 0, "parts": "brows,eyes"}, {"adopt": 0, "parts": "eyes"}]


def test_names_that_yaml_reads_as_something_else_come_back_as_they_are() -> None:
    choices = ["no", "1", "a: b", True, "True", "#aabbcc", "full"]
    styles = styles_of(ModelInfo("mine.py", "params", {}, {"kind": choices}))
    assert [params_of(KINDS, style)["kind"] for style in styles] == choices
    assert styles[-1] == "kind=full"


def test_a_download_of_a_feature_of_ones_own_is_named_by_the_photo_and_stays_in_its_folder(
    page: Page, photo: Path
) -> None:
    page.editors["mine/../../blush.py"] = page.editors["hair_color"]
    assert page.edit(str(photo), "mine/../../blush.py", "red", 1.0)[2] == page.out / "photo_blush.py_0.png"


class Served:
    """Gradio's blocks as `serve` uses them, with a photo that somebody dropped."""

    def launch(self, **_: Any) -> tuple[None, str, None]:
        self.dropped = Path(os.environ["GRADIO_TEMP_DIR"]) / "photo.jpg"
        self.dropped.parent.mkdir(parents=True, exist_ok=True)
        self.dropped.touch()
        return None, "http://127.0.0.1", None

    def block_thread(self) -> None:
        pass


def test_no_photo_is_left_on_the_disk_when_the_page_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = Served()
    monkeypatch.setattr("stylepairs.i2i.page.make_page", lambda _: blocks)
    monkeypatch.setattr("stylepairs.i2i.page.shipped_models", list)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    serve([], 0)
    assert not blocks.dropped.exists()


def test_of_the_downloads_the_last_ones_stay(page: Page, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylepairs.i2i.page.KEPT_DOWNLOADS", 2)
    made = [page.edit(str(photo), "hair_color", "red", degree)[2] for degree in (0.2, 0.5, 1.0)]
    assert sorted(page.out.iterdir()) == sorted(made[1:])


def test_a_photo_is_edited_where_it_is_painted_and_the_file_is_marked(page: Page, photo: Path) -> None:
    layer = np.zeros((100, 150, 4), np.uint8)
    layer[:, :75] = 200
    before, after, file, line = page.edit(str(photo), "hair_color", "blond", 1.0, [layer])
    changed = (before != after).any(-1)
    assert changed[:, :148].any()
    assert not changed[:, 153:].any()
    assert line == "1 of 1 face edited"
    assert np.array_equal(load_photo(file).pixels, after)
    assert b"compositeWithTrainedAlgorithmicMedia" in load_photo(file).xmp
    assert region_of_layers([np.zeros((9, 9, 4), np.uint8)], (18, 18)) is None


def test_a_photo_that_nothing_changed_is_not_marked(page: Page, photo: Path) -> None:
    before, after, file, line = page.edit(str(photo), "hair_color", "blond", 0.0)
    assert line.startswith("Nothing changed")
    assert np.array_equal(before, after)
    assert b"TrainedAlgorithmicMedia" not in (load_photo(file).xmp or b"")


def test_degree_zero_changes_nothing_the_model_was_not_asked_for(page: Page, photo: Path) -> None:
    with pytest.raises(InputError, match="blnd"):
        page.edit(str(photo), "hair_color", "blnd", 1.0)
    assert page.shown(str(photo)).shape == (200, 300, 3)
    Image.fromarray(photo_of(20, 3000)).save(photo)
    assert page.shown(str(photo)).shape == (7, SHOWN_PX, 3)


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")


@pytest.fixture
def browser() -> Any:
    if BROWSER is None or DRIVER is None:
        pytest.skip("no Chromium with its driver here (Debian: chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for option in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1400,1100",
    ):
        options.add_argument(option)
    # No other host can be reached.
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(120)
    yield driver
    driver.quit()


def wait_for(found: Any, seconds: float = 90) -> Any:
    """What `found` gives as soon as it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            value = found()
        except Exception:  # noqa: BLE001 - the page is being drawn anew
            value = None
        if value:
            return value
        time.sleep(0.2)
    raise AssertionError("the page did not come to it in time")


SHOWN = """
return [...document.querySelectorAll('#result img')].map(i => {
  const c = document.createElement('canvas'); c.width = i.naturalWidth; c.height = i.naturalHeight;
  if (!c.width) return ''; c.getContext('2d').drawImage(i, 0, 0); return c.toDataURL('image/png');
});"""


def shown(browser: Any) -> list[np.ndarray]:
    """The pictures of the slider, as the browser has them."""
    urls = [url for url in browser.execute_script(SHOWN) if url]
    return [np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")) for url in urls]


def largest_change(pictures: list[np.ndarray]) -> int:
    """Levels between the slider's sides, which the browser decodes one after the other: ask until they are there."""
    return int(np.abs(pictures[0].astype(int) - pictures[-1]).max()) if len(pictures) >= 2 else 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_drop_slide_see_pixels_change_download(browser: Any, page: Page, photo: Path, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    degrees, edit = [], page.edit
    page.edit = lambda *asked: degrees.append(asked[3]) or edit(*asked)
    blocks = make_page(page)
    _, address, _ = blocks.launch(
        server_name="127.0.0.1", quiet=True, prevent_thread_lock=True, ssr_mode=False, allowed_paths=[str(tmp_path)]
    )
    try:
        browser.get(address)
        wait_for(lambda: browser.find_element("css selector", "#photo input[type=file]")).send_keys(str(photo))
        wait_for(lambda: "Choose an edit" in browser.find_element("css selector", "#line").text)
        browser.find_element("css selector", "#edit").click()
        wait_for(lambda: "1 of 1 face edited" in browser.find_element("css selector", "#line").text)
        wait_for(lambda: largest_change(shown(browser)) == 51)
        number = browser.find_element("css selector", "#degree input[type=number]")
        number.clear()
        number.send_keys("0.25\n")
        slider = browser.find_element("css selector", "#degree input[type=range]")
        browser.execute_script("arguments[0].dispatchEvent(new Event('pointerup', {bubbles: true}))", slider)
        browser.find_element("css selector", "#edit").click()
        wait_for(lambda: degrees[-1] == 0.25)
        wait_for(lambda: 10 < largest_change(shown(browser)) < 15)
        assert [pixels.shape for pixels in shown(browser)] == [(200, 300, 3)] * 2
        if folder := os.environ.get("PAGE_SCREENSHOT"):
            browser.save_screenshot(str(Path(folder) / "page.png"))
        kept = tmp_path / "downloads"
        browser.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(kept)})
        browser.find_element("css selector", "#download").click()
        file = wait_for(lambda: next(kept.glob("photo_hair_color_*.png")))
        assert np.array_equal(load_photo(file).pixels, load_photo(page.out / file.name).pixels)
    finally:
        blocks.close()
