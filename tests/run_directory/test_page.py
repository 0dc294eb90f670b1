"""What a person sees: TensorBoard's own pages, in a real browser."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any, TypeVar

import matplotlib.image
import numpy as np
import pytest

from hyperopt_cli.run_directory.tensorboard import TensorBoardLog
from tests.run_directory.example import result, step

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="no Chromium with its chromedriver on the PATH"),
]

T = TypeVar("T")

QUIET = ("quic", "background-networking", "component-update", "sync", "gpu")
FLAGS = ["--headless=new", "--no-sandbox", "--no-first-run", "--window-size=1500,1600"]
FLAGS += [f"--disable-{what}" for what in QUIET]

# Elements below every shadow root: the older pages consist of nested web components.
FIND = """
const found = [];
const walk = root => {
  found.push(...root.querySelectorAll(arguments[0]));
  root.querySelectorAll("*").forEach(node => node.shadowRoot && walk(node.shadowRoot));
};
walk(document);
return found"""


def wait_for(what: Callable[[], T], timeout_s: float = 60.0) -> T:
    """What `what` returns as soon as that is true, or its last answer."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    with TensorBoardLog(folder / "tensorboard", recipe="steps: 1200\n") as log:
        for n in range(3):
            log.on_outer_step(step(n))
        log.on_end(result())
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder / "tensorboard")]
    output = folder / "output.txt"
    with output.open("w") as file:
        options = ["--host=127.0.0.1", "--port=0", "--load_fast=false"]
        server = subprocess.Popen([*command, *options], stdout=file, stderr=subprocess.STDOUT)
    try:
        found = wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+/", output.read_text()))
        assert found, output.read_text()
        yield found.group()
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def collect(browser: Any, selector: str, what: str) -> list[Any]:
    """The JavaScript expression `what` of every `node` that the selector finds."""
    return list(browser.execute_script(f"{FIND}.map(node => {what})", selector))


def texts(browser: Any, selector: str) -> set[str]:
    return set(collect(browser, selector, r"node.textContent.replace(/\s+/g, ' ').trim()"))


def colored_pixels(element: Any) -> int:
    """Pixels of the element that are neither white nor grey: the curves in it."""
    pixels = matplotlib.image.imread(BytesIO(element.screenshot_as_png))[..., :3]
    return int((np.ptp(pixels, axis=-1) > 0.3).sum())


def test_time_series_show_the_losses_and_draw_the_inner_curves(browser: Any, address: str) -> None:
    browser.get(f"{address}?tagFilter=loss#timeseries")
    wanted = {"loss/validation", "loss/training", "inner_loss", "best/validation_loss", "test/loss"}

    def tags() -> set[str]:
        return {text.replace(" ", "") for text in texts(browser, "scalar-card tb-truncated-path")}

    assert wait_for(lambda: wanted <= tags()), tags()
    (inner,) = [card for card in collect(browser, "scalar-card", "node") if card.text.startswith("inner_loss")]
    chart = inner.find_element("css selector", "line-chart")
    assert wait_for(lambda: colored_pixels(chart) > 500), colored_pixels(chart)


def test_custom_scalars_draw_a_chart_for_each_hyperparameter(browser: Any, address: str) -> None:
    browser.get("about:blank")
    browser.get(f"{address}#custom_scalars")
    wanted = {"lr", "momentum", "weight_decay", "data_weights", "validation and training"}
    assert wait_for(lambda: wanted <= texts(browser, ".heading-label")), texts(browser, ".heading-label")

    def drawn() -> int:
        return sum(len(line or "") > 20 for line in collect(browser, "path.line", "node.getAttribute('d')"))

    # 2 losses, 3 inner curves, 7 rates, 1 momentum, 4 decays, 3 of the data weights
    assert wait_for(lambda: drawn() >= 20), drawn()


def test_images_show_the_learned_schedules(browser: Any, address: str) -> None:
    browser.get("about:blank")
    browser.get(f"{address}#images")

    def widths() -> list[int]:
        return collect(browser, "img[src*=individualImage]", "node.naturalWidth")

    assert wait_for(lambda: len(widths()) == 2 and all(widths())), widths()


def test_hparams_name_initial_settings_and_the_best_loss(browser: Any, address: str) -> None:
    browser.get("about:blank")
    browser.get(f"{address}#hparams")
    wanted = {"initial lr", "initial momentum", "best/validation_loss"}
    cells = "vaadin-grid-cell-content, .table-header"
    assert wait_for(lambda: wanted <= texts(browser, cells)), texts(browser, cells)


def test_the_text_page_shows_the_recipe(browser: Any, address: str) -> None:
    browser.get("about:blank")
    browser.get(f"{address}#text")
    assert wait_for(lambda: "steps: 1200" in texts(browser, "pre code")), texts(browser, "pre")
