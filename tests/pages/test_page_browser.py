"""Pages of runs in a real browser: filter, pictures at points, colours, widths, refresh, no network."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_runs import add_particle, make_comparison, make_experiment, make_run, settings_of

from noisetilt_kernels.pages.render import PAGE, write_page
from noisetilt_kernels.pages.server import Server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="there is no chromium with its driver"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a window. Nothing is downloaded: the driver is the installed one."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
        "--disable-background-networking",
        "--disable-component-update",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    driver.execute_cdp_cmd("Network.enable", {})
    yield driver
    driver.quit()


@pytest.fixture(autouse=True)
def wide_and_light(browser: Any) -> None:
    """Start each test with a wide window, light colours and an empty log."""
    set_window(browser, 1400)
    set_colors(browser, "light")
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get_log("performance")


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """Folder of a comparison with its page."""
    make_comparison(tmp_path / "comparison")
    write_page(tmp_path / "comparison")
    return tmp_path / "comparison"


def set_window(browser: Any, width: int, height: int = 900) -> None:
    values = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", values)


def set_colors(browser: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def wait(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Return the first true value of a function; fail if there is none in time."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "the page did not get there in time"
        time.sleep(0.1)
    return value


def open_page(browser: Any, address: Path | str) -> None:
    """Open a page and wait until its charts are drawn."""
    browser.get(address.as_uri() if isinstance(address, Path) else address)
    wait(lambda: charts_are_drawn(browser))


def charts_are_drawn(browser: Any) -> bool:
    return browser.execute_script(
        "return document.readyState === 'complete' && globalThis.Bokeh?.documents.length > 0 &&"
        "Bokeh.documents.every(one => one.is_idle)"
    )


def visible(browser: Any, selector: str) -> list[str]:
    """Return the ids of the elements that can be seen."""
    script = (
        "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility()).map(e => e.id)"
    )
    return browser.execute_script(script, selector)


def choose(browser: Any, name: str, text: str) -> None:
    """Choose an option of the filter."""
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("name", name)).select_by_visible_text(text)


VIEW = """
    const [plot] = Bokeh.documents[0].roots()
    const view = Bokeh.index.get_by_id(plot.id)
"""
"""JavaScript for the first chart and what draws it."""


def glyphs(browser: Any) -> list[int]:
    """Return the number of rows that each chart draws."""
    return browser.execute_script(
        """
        return Bokeh.documents[0].roots().map(plot => {
          const views = [...Bokeh.index.get_by_id(plot.id).renderer_views.values()]
          return views.find(one => one.all_indices !== undefined).all_indices.count
        })
        """
    )


def check_log(browser: Any, prefix: str) -> None:
    """Check that no script failed, and that nothing was asked for but addresses that begin with a prefix."""
    log = browser.get_log("browser")
    assert not [entry for entry in log if entry["level"] in ("SEVERE", "WARNING")], log
    asked = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    ]
    assert any(url.startswith(prefix) for url in asked)
    others = [url for url in asked if not url.startswith((prefix, "data:", "blob:", "about:"))]
    assert not others


def test_the_filter_hides_images_and_points(browser: Any, comparison: Path) -> None:
    open_page(browser, comparison / PAGE)
    assert len(visible(browser, "figure")) == 12
    points = glyphs(browser)
    assert points == [12] * 4
    choose(browser, "method", "base")
    assert visible(browser, "figure") == [f"image-0-0-{particle}" for particle in range(6)]
    assert browser.find_element("id", "count").text == "6 of 12 shown"
    wait(lambda: glyphs(browser) == [6] * 4)
    choose(browser, "prompt", "a <script>window.broken = true</script> three")
    assert visible(browser, "figure") == ["image-0-0-3", "image-0-0-4", "image-0-0-5"]
    wait(lambda: glyphs(browser) == [3] * 4)
    browser.refresh()  # the address keeps the filter
    wait(lambda: charts_are_drawn(browser))
    assert len(visible(browser, "figure")) == 3 and glyphs(browser) == [3] * 4
    choose(browser, "prompt", "all prompts")
    choose(browser, "method", "all methods")
    assert len(visible(browser, "figure")) == 12
    assert browser.execute_script("return window.broken") is None
    check_log(browser, "file://")


def test_a_point_shows_its_image(browser: Any, comparison: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    open_page(browser, comparison / PAGE)
    choose(browser, "method", "ntrk:rho=0.01")
    chart = browser.find_element("css selector", ".chart")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    place = browser.execute_script(
        VIEW
        + """
        const x = view.frame.x_scale.compute(0.25)  // particle 3, of the second prompt
        const y = view.frame.y_scale.compute(0.6)
        const box = view.el.getBoundingClientRect()
        return [box.x + x, box.y + y]
        """
    )
    tooltip = """
        const find = (root) => {
          for (const one of root.querySelectorAll("*")) {
            if (one.tagName === "IMG" && one.style.width === "8rem" && one.checkVisibility())
              return [one.src, one.naturalWidth, one.parentElement.textContent]
            if (one.shadowRoot) { const found = find(one.shadowRoot); if (found) return found }
          }
        }
        return find(document)
    """
    ActionChains(browser).move_by_offset(*map(round, place)).perform()
    source, width, text = wait(lambda: browser.execute_script(tooltip))
    image = browser.find_element("css selector", "#image-0-1-3 img")
    assert source == image.get_attribute("src") and width == 32
    assert "reward 0.25" in text and "ntrk:rho=0.01" in text
    assert "<script>window.broken = true</script> three" in text  # as text
    assert browser.execute_script("return window.broken") is None
    ActionChains(browser).move_by_offset(-round(place[0]), -round(place[1])).perform()
    check_log(browser, "file://")


def test_an_image_opens_large_by_keyboard(browser: Any, comparison: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, comparison / PAGE)
    (comparison / "base" / "images" / "0001.png").unlink()
    link = browser.find_element("css selector", "#image-0-0-0 a")
    link.send_keys(Keys.ENTER)
    large = "#large .view img"

    def shown() -> tuple[str, int, str]:
        return browser.execute_script(
            "const image = document.querySelector(arguments[0]);"
            "return image && image.complete && [image.src, image.naturalWidth, image.alt]",
            large,
        )

    source, width, alt = wait(shown)
    assert source.endswith("/base/images/0000.png") and width == 32 and alt.startswith("Image 0 of base")
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    # its file is missing: the small picture takes its place
    wait(lambda: (found := shown()) and found[0].startswith("data:") and "Image 1 of base" in found[2])
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait(lambda: not visible(browser, "#large"))
    focused = browser.execute_script("return document.activeElement.closest('figure').id")
    assert focused == "image-0-0-1"


def test_dark_colors(browser: Any, comparison: Path) -> None:
    script = (
        VIEW
        + """
        const axis = [...view.renderer_views.values()].find(one => one.visuals?.axis_label_text)
        const style = getComputedStyle(document.body)
        return [style.backgroundColor, style.color, getComputedStyle(axis.el).getPropertyValue(
          "--bk-axis-label-text-color")]
        """
    )
    open_page(browser, comparison / PAGE)
    light = browser.execute_script(script)
    set_colors(browser, "dark")
    dark = wait(
        lambda: charts_are_drawn(browser) and (now := browser.execute_script(script)) != light and now
    )
    assert all(before != after for before, after in zip(light, dark, strict=True))
    assert light[0] == "rgb(255, 255, 255)" and light[2] == "#1b1f24" and dark[2] == "#e6e9ec"
    assert canvas_ink(browser) > 200  # the axis is drawn in a light colour
    set_colors(browser, "light")
    wait(lambda: charts_are_drawn(browser) and browser.execute_script(script) == light)
    assert canvas_ink(browser) < 60


def canvas_ink(browser: Any) -> int:
    """Return the extreme brightness of the neutral opaque pixels of a chart: its letters."""
    return browser.execute_script(
        VIEW
        + """
        const canvas = view.canvas_view.primary.canvas
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height)
        const dark = matchMedia("(prefers-color-scheme: dark)").matches
        let ink = dark ? 0 : 255
        for (let at = 0; at < data.length; at += 4) {
          if (data[at + 3] < 250) continue
          const [red, green, blue] = data.slice(at, at + 3)
          if (Math.max(red, green, blue) - Math.min(red, green, blue) > 16) continue
          ink = dark ? Math.max(ink, green) : Math.min(ink, green)
        }
        return ink
        """
    )


@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_wider_than_the_window(browser: Any, tmp_path: Path, width: int) -> None:
    make_experiment(tmp_path / "exp")
    method = "ntrk:rho=0.01,operator=wgnc,steps=12,schedule=linear"
    make_comparison(tmp_path / "long", [method, "base"])
    make_run(tmp_path / "run", settings_of(), peaks=[9.0], fallbacks=[1])
    set_window(browser, width)
    for name in ("exp", "long", "run"):
        write_page(tmp_path / name)
        open_page(browser, tmp_path / name / PAGE)
        extent = browser.execute_script("return document.documentElement.scrollWidth")
        assert extent <= width, name
        for chart in browser.find_elements("css selector", ".chart"):
            assert 200 < chart.size["width"] <= width
    with serving(tmp_path) as server:
        browser.get(server.address)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width


class serving:
    """Server of a folder within a block."""

    def __init__(self, root: Path) -> None:
        self.server = Server(root)

    def __enter__(self) -> Server:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        return self.server

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_a_served_page_follows_a_run(browser: Any, tmp_path: Path) -> None:
    settings = settings_of(particles=20)
    folder = make_run(tmp_path / "run", settings, finished=12, ended=False)
    with serving(tmp_path) as server:
        open_page(browser, f"{server.address}run/index.html")
        assert len(visible(browser, "figure")) == 13 and "stopped after 12 of 40" in browser.page_source
        set_window(browser, 400, 600)
        browser.execute_script("scrollTo(0, 1200); window.before = true")
        position = browser.execute_script("return scrollY")
        add_particle(folder, settings, 12)
        add_particle(folder, settings, 13)
        wait(lambda: browser.execute_script("return window.before") is None)
        wait(lambda: charts_are_drawn(browser))
        assert len(visible(browser, "figure")) == 14
        assert abs(browser.execute_script("return scrollY") - position) < 30
        check_log(browser, server.address)


def test_a_slow_page_is_asked_for_once(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of()
    folder = make_run(tmp_path / "run", settings, finished=2, ended=False)
    made: list[float] = []
    make = Server.page

    def page(server: Server, folder: Path, state: str) -> bytes:
        made.append(time.monotonic())
        time.sleep(5)
        return make(server, folder, state)

    with serving(tmp_path) as server:
        for _ in range(2):  # the second answer is fast, so the page asks every two seconds
            open_page(browser, f"{server.address}run/index.html")
        browser.execute_script("window.before = true")
        monkeypatch.setattr(Server, "page", page)
        add_particle(folder, settings, 2)
        wait(lambda: browser.execute_script("return window.before") is None)
        assert len(made) == 1


def test_a_served_page_keeps_its_filter_and_waits_for_the_large_view(
    browser: Any, tmp_path: Path, comparison: Path
) -> None:
    with serving(comparison) as server:
        open_page(browser, server.address)
        choose(browser, "method", "ntrk:rho=0.01")
        browser.execute_script("window.before = true")
        browser.find_element("css selector", "#image-0-1-0 a").click()
        (comparison / "base" / "summary.json").unlink()
        time.sleep(5)
        assert browser.execute_script("return window.before") is True  # not while an image is open
        browser.find_element("css selector", "#large [data-close]").click()
        wait(lambda: browser.execute_script("return window.before") is None)
        wait(lambda: charts_are_drawn(browser))
        assert browser.find_element("name", "method").get_property("value") == "1"
        assert len(visible(browser, "figure")) == 6 and "base: stopped after 6 of 6" in browser.page_source
        browser.find_element("id", "live").click()
        browser.execute_script("window.before = true")
        (comparison / "base" / "summary.json").write_text("{}")
        time.sleep(5)
        assert browser.execute_script("return window.before") is True  # switched off
        check_log(browser, server.address)
