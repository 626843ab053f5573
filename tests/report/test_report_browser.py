"""The page in a real browser: figures drawn, the explorer at work, nothing fetched, no overflow."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report_page import ENGINE, Parsed

import browser
import synthetic
from ftwt import cli
from ftwt.records.recording import Recording
from ftwt.report.write import write_report

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "all is there")

WIDTHS = (360, 768, 1400)
OVERFLOW = """
const wide = document.documentElement.clientWidth;
const clips = (node) => ['auto', 'scroll', 'hidden'].includes(getComputedStyle(node).overflowX);
const inside = (node) => node && (clips(node) || inside(node.parentElement));
return [...document.querySelectorAll('main *, .bar *')]
  .filter((node) => node.getBoundingClientRect().right > wide + 1 && node.getClientRects().length
    && !inside(node.parentElement) && !node.closest('.hidden, .skip'))
  .map((node) => node.tagName + '.' + node.className + ' ' + node.textContent.slice(0, 40));
"""
MARKS = """
return [...document.querySelectorAll('.plot')].map((plot) => {
  const seen = [...plot.querySelectorAll('use, path, text')].filter((mark) => {
    const box = mark.getBoundingClientRect();
    return box.width + box.height > 0;
  });
  const high = (text) => text.getBoundingClientRect().height;
  const sizes = [...plot.querySelectorAll('text')].map(high);
  return [plot.id.slice(5), seen.length, Math.min(...sizes)];
});
"""


class Tab:
    """A page in the browser."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def look(self, width: int = 1400, height: int = 900, theme: str = "light") -> None:
        """Set the size of the window and the colours that the user prefers."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        prefers = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": prefers})

    def open(self, path: Path, selection: str = "") -> None:
        """Open a page and wait until it says that all is drawn."""
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(path.resolve().as_uri() + selection)
        self.until("document.documentElement.dataset.ready === 'yes'")

    def until(self, condition: str) -> None:
        """Wait until a condition holds."""
        end = time.monotonic() + 30
        while not self.run(f"return {condition}"):
            assert time.monotonic() < end, f"{condition}: {self.driver.get_log('browser')}"
            time.sleep(0.05)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript."""
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        """Press keys, where the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def requests(self) -> list[str]:
        """Addresses that the page asked for, but itself and what it holds."""
        sent = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                asked = message["params"]
                sent.append(asked["request"]["url"] if "request" in asked else asked["url"])
        return [url for url in sent if not url.startswith(("data:", "blob:", "about:"))]

    def colours(self) -> tuple[str, str, str]:
        """The page's ground, its ink, and the ink of its first figure."""
        return tuple(
            self.run(
                "const look = getComputedStyle(document.body);"
                "const text = document.querySelector('.plot svg text');"
                "return [look.backgroundColor, look.color, getComputedStyle(text).fill];"
            )
        )

    def route(self) -> list[str]:
        """What the explorer's rows look like."""
        return self.run(
            "return [...document.querySelectorAll('#routes canvas')].map((c) => c.toDataURL());"
        )


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser.browser(tmp_path_factory.mktemp("profile")) as driver:
        yield Tab(driver)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report over two recorded runs, a twin, real runs, a benchmark."""
    home = tmp_path_factory.mktemp("results")
    for seed in (0, 1):
        record = synthetic.recording(network="cifar10-resnet20", seed=seed, shown=32)
        synthetic.run_folder(home / f"net-{seed}", seed=seed, record=record, steps=60)
    synthetic.run_folder(home / "net-0-twin", seed=0, twin_of="runs/net-0")
    for path in (synthetic.RESULTS / "resnet20").glob("r80*.json"):
        (home / path.name).write_bytes(path.read_bytes())
    write_report([home, ENGINE], home / "report.html")
    return home / "report.html"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that `ftwt prune` ends with, of a tiny network with gates."""
    import tiny

    home = tmp_path_factory.mktemp("pruned")
    with pytest.MonkeyPatch.context() as patch:
        tiny.register(home, patch)
        patch.chdir(home)
        command = ["prune", tiny.NAME, *tiny.DATA, "--gates", "dynamic", "--reduction", "0.25"]
        assert cli.main([*command, "--json"]) == 0
    return home / "runs" / "pruned" / "index.html"


@pytest.fixture(params=["shown", "trained"])
def report(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_opens_without_errors_requests_and_overflow(
    tab: Tab, report: Path, width: int, theme: str
) -> None:
    tab.look(width, theme=theme)
    tab.open(report)
    assert tab.driver.get_log("browser") == []
    assert tab.requests() == [report.resolve().as_uri()]
    assert tab.run("return document.documentElement.scrollWidth") <= width
    assert tab.run(OVERFLOW) == []
    ground, ink, drawn = tab.colours()
    dark = ("rgb(20, 23, 26)", "rgb(232, 234, 237)", "rgb(232, 234, 237)")
    light = ("rgb(255, 255, 255)", "rgb(27, 31, 36)", "rgb(27, 31, 36)")
    assert (ground, ink, drawn) == (dark if theme == "dark" else light)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_has_marks_and_type_that_can_be_read(
    tab: Tab, report: Path, width: int
) -> None:
    tab.look(width)
    tab.open(report)
    told = tab.run(MARKS)
    assert [id for id, _, _ in told] == Parsed(report.read_text("utf-8")).figures
    assert len(told) >= 5
    for id, marks, smallest in told:
        assert marks > 20, id
        assert smallest >= 8, id  # pixels from the top of a line to its bottom


def test_the_button_changes_the_colours_of_page_and_figures(tab: Tab, trained: Path) -> None:
    tab.look(theme="light")
    tab.open(trained)
    before = tab.colours()
    routes = tab.route()
    tab.run("document.getElementById('theme').click()")
    tab.until(
        "getComputedStyle(document.querySelector('.plot svg text')).fill !== 'rgb(27, 31, 36)'"
    )
    after = tab.colours()
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert tab.route() != routes
    tab.run("localStorage.clear()")


def test_the_data_of_a_figure_are_a_click_away(tab: Tab, trained: Path, tmp_path: Path) -> None:
    tab.look()
    tab.open(trained)
    where = {"behavior": "allow", "downloadPath": str(tmp_path)}
    tab.driver.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    id = tab.run("return window.ftwt.data.tables[0].id")
    for kind in ("csv", "json", "table"):
        tab.run(
            "document.querySelector(`button[data-figure='${arguments[0]}'][data-kind='${arguments[1]}']`)"
            ".click()", id, kind,
        )  # fmt: skip
    wanted = Parsed(trained.read_text("utf-8")).data()["tables"][0]["data"]
    end = time.monotonic() + 20
    while not all((tmp_path / f"{id}.{kind}").exists() for kind in ("csv", "json")):
        assert time.monotonic() < end
        time.sleep(0.05)
    rows = json.loads((tmp_path / f"{id}.json").read_text("utf-8"))
    assert [list(row.values()) for row in rows] == wanted["rows"]
    lines = (tmp_path / f"{id}.csv").read_text("utf-8").splitlines()
    assert lines[0] == ",".join(wanted["columns"]) and len(lines) == len(wanted["rows"]) + 1
    cells = tab.run(
        "return document.querySelectorAll(`#table-${arguments[0]} tbody tr`).length", id
    )
    assert cells == len(wanted["rows"])


# --- The explorer -------------------------------------------------------------------------------


def expected(path: Path, a: int, b: int | None, run: int = 0) -> list[int]:
    """Filters that fire for both images, only the first, only the second, by the page's masks."""
    import base64

    import numpy as np

    held = Parsed(path.read_text("utf-8")).data()["explorer"][run]
    packed = np.frombuffer(base64.b64decode(held["masks"]), np.uint8)
    bits = np.unpackbits(packed.reshape(len(held["shown"]), -1), axis=1).astype(bool)
    first = bits[a]
    second = np.zeros_like(first) if b is None else bits[b]
    return [int(part.sum()) for part in (first & second, first & ~second, ~first & second)]


def choose(tab: Tab, place: int, *, second: bool = False) -> None:
    tab.run(
        "document.querySelector(`#picks button[data-place='${arguments[0]}']`).dispatchEvent("
        "new MouseEvent('click', {bubbles: true, shiftKey: arguments[1]}));",
        place,
        second,
    )


def told(tab: Tab) -> list[int]:
    texts = tab.run(
        "return [...document.querySelectorAll('#card-both dd')].map(d => d.textContent)"
    )
    return [int(text.split(" ")[0].replace(",", "")) for text in texts if "of" in text]


def test_choosing_an_image_changes_the_route(tab: Tab, report: Path) -> None:
    tab.look()
    tab.open(report)
    data = Parsed(report.read_text("utf-8")).data()["explorer"][0]
    routes = []
    for place in (3, 11):
        choose(tab, place)
        routes.append(tab.route())
        assert told(tab)[0] == expected(report, place, None)[1]
        assert f"image {data['shown'][place]['index']}" in tab.run(
            "return document.getElementById('card-a').textContent"
        )
    assert len(routes[0]) == len(data["units"]) and routes[0] != routes[1]
    choose(tab, 5, second=True)
    assert tab.route() != routes[1]
    both, only_a, only_b = expected(report, 11, 5)
    assert told(tab) == [both, only_a, only_b]
    jaccard = float(tab.run("return document.getElementById('jaccard').textContent"))
    assert jaccard == pytest.approx(both / (both + only_a + only_b), abs=6e-4)
    assert tab.driver.get_log("browser") == []


CORNERS = """
const canvas = document.querySelectorAll('#routes canvas')[arguments[0]], count = arguments[1];
const pitch = Math.min(Math.max(Math.floor(canvas.parentElement.clientWidth / count), 8), 18);
const across = Math.floor(canvas.parentElement.clientWidth / pitch);
const pen = canvas.getContext('2d'), names = ['both', 'here', 'core', 'only-a', 'only-b'];
const known = Object.fromEntries(names.map((name) => {
  const probe = document.createElement('canvas').getContext('2d');
  probe.fillStyle = window.ftwt.colour(name);
  probe.fillRect(0, 0, 1, 1);
  return [probe.getImageData(0, 0, 1, 1).data.join(), name];
}));
return Array.from({ length: count }, (_, filter) => {
  const x = (filter % across) * pitch + 1, y = Math.floor(filter / across) * pitch + 1;
  const pixel = pen.getImageData(x, y, 1, 1).data;
  return pixel[3] ? known[pixel.join()] : 'nothing';
});
"""


def test_each_cell_shows_its_filter(tab: Tab, trained: Path) -> None:
    tab.look()
    tab.open(trained)
    recording = Recording.load(trained.parent / "net-0" / "recording.safetensors")
    data = Parsed(trained.read_text("utf-8")).data()["explorer"]
    assert [held["name"] for held in data] == ["net-0", "net-1"]
    a, b = (int(recording.shown[place]) for place in (3, 5))
    for unit, name in ((0, "layer0.conv"), (3, "layer3.conv")):
        masks = recording.masks(name)
        always = masks.all(0)
        choose(tab, 3)
        alone = [
            "nothing" if not fires else "core" if core else "here"
            for fires, core in zip(masks[a], always, strict=True)
        ]
        assert tab.run(CORNERS, unit, masks.shape[1]) == alone
        choose(tab, 5, second=True)
        kinds = {(1, 1): "both", (1, 0): "only-a", (0, 1): "only-b", (0, 0): "nothing"}
        pairs = [kinds[int(p), int(q)] for p, q in zip(masks[a], masks[b], strict=True)]
        assert tab.run(CORNERS, unit, masks.shape[1]) == pairs
        assert {"core", "here", "nothing"} == {*alone} and len({*pairs}) == 4
        tab.run("document.getElementById('clear-b').click()")


def test_the_address_keeps_the_selection(tab: Tab, trained: Path) -> None:
    tab.look()
    tab.open(trained)
    choose(tab, 4)
    choose(tab, 9, second=True)
    selection = tab.run("return location.hash")
    routes = tab.route()
    tab.open(trained, selection)
    assert tab.route() == routes and told(tab) == expected(trained, 4, 9)


def test_another_network_and_another_order(tab: Tab, trained: Path) -> None:
    tab.look()
    tab.open(trained)
    change = "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
    change += "s.dispatchEvent(new Event('change'));"
    first = "return document.querySelector('#picks button').dataset.place"
    data = Parsed(trained.read_text("utf-8")).data()["explorer"]
    macs = [image["macs"] for image in data[0]["shown"]]
    assert macs[int(tab.run(first))] == min(macs)
    tab.run(change, "order", "dearest")
    assert macs[int(tab.run(first))] == max(macs)
    label = data[0]["shown"][0]["label"]
    tab.run(change, "order", f"class {label}")
    places = tab.run(
        "return [...document.querySelectorAll('#picks button')].map(b => Number(b.dataset.place))"
    )
    wanted = [i for i, image in enumerate(data[0]["shown"]) if image["label"] == label]
    assert sorted(places) == wanted
    tab.run(change, "order", "class")
    tab.run(change, "run", "1")
    choose(tab, 2)
    assert told(tab)[0] == expected(trained, 2, None, run=1)[1]


def test_the_keyboard_does_it_all(tab: Tab, trained: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    tab.look()
    tab.open(trained)
    tab.run("document.querySelector('#picks button').focus()")
    tab.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, "b", Keys.ARROW_LEFT, "a")
    order = tab.run(
        "return [...document.querySelectorAll('#picks button')].map(b => Number(b.dataset.place))"
    )
    assert told(tab) == expected(trained, order[1], order[2])
    tab.run("document.querySelector('#clear-b').focus()")
    tab.press(Keys.ENTER)
    assert told(tab)[0] == expected(trained, order[1], None)[1]
    tab.run("document.querySelector('#routes canvas').focus()")
    tab.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    text = tab.run("return document.activeElement.getAttribute('aria-valuetext')")
    assert text.startswith("layer0.conv, filter 3: computed for this image and for every other")
    assert "100.0% of 200 images" in text
    assert tab.run("return document.querySelector('.tip').textContent") == text


def test_pointing_at_a_filter_names_it(tab: Tab, trained: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    tab.look()
    tab.open(trained)
    tab.run(
        "document.querySelector('#routes').scrollIntoView({block: 'center', behavior: 'instant'})"
    )
    canvas = tab.run("return document.querySelectorAll('#routes canvas')[1]")
    corner = -canvas.size["width"] // 2 + 5
    ActionChains(tab.driver).move_to_element_with_offset(canvas, corner, 0).perform()
    tab.until("!document.querySelector('.tip').hidden")
    text = tab.run("return document.querySelector('.tip').textContent")
    assert text.startswith("layer1.conv, filter 0: computed for")


def test_the_largest_network_stays_fluid(tab: Tab, tmp_path: Path) -> None:
    vgg16 = (64, 64, 128, 128, *(256,) * 3, *(512,) * 6)
    synthetic.recording(channels=vgg16, shown=64).save(tmp_path / "recording.safetensors")
    write_report(tmp_path, tmp_path / "page.html")
    tab.look()
    tab.open(tmp_path / "page.html")
    taken = tab.run(
        "const times = []; for (let i = 1; i < 12; i++) { const start = performance.now();"
        "document.querySelector(`#picks button[data-place='${i}']`).click();"
        "times.push(performance.now() - start); } return times.sort((a, b) => a - b)[5];"
    )
    assert taken < 500  # milliseconds; about 30 on a machine that has nothing else to do


def test_names_from_files_run_nothing(tab: Tab, tmp_path: Path) -> None:
    import dataclasses

    bad = "<img src=x onerror='document.title=1'>"
    record = synthetic.recording(network=bad)
    classes = (bad, "</script><script>document.title = 2</script>", *record.classes[2:])
    dataclasses.replace(record, classes=classes).save(tmp_path / "recording.safetensors")
    write_report(tmp_path, tmp_path / "page.html")
    tab.look()
    tab.open(tmp_path / "page.html")
    assert tab.driver.title.endswith("ftwt report")
    assert tab.driver.get_log("browser") == [] and len(tab.requests()) == 1
    assert bad in tab.run("return document.getElementById('picks').textContent")


def test_the_browser_refuses_what_is_not_of_the_page(tab: Tab, trained: Path) -> None:
    tab.look()
    tab.open(trained)
    tab.run(
        "const script = document.createElement('script'); script.textContent = 'window.bad = 1';"
        "document.head.append(script);"
        "const image = new Image(); image.src = 'http://127.0.0.1:9/pixel.png';"
        "window.asked = fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused');"
    )
    assert tab.run("return window.asked") == "refused"
    assert tab.run("return window.bad === undefined")
    refused = [entry["message"] for entry in tab.driver.get_log("browser")]
    for directive in ("script-src", "img-src", "default-src"):
        assert any(directive in text for text in refused)
    # The log that the other tests hold to be empty names even what was refused.
    assert tab.requests()[1:] == ["http://127.0.0.1:9/pixel.png"]


def test_an_old_browser_is_told_and_keeps_the_answer(tab: Tab, trained: Path) -> None:
    source = {"source": "delete window.DecompressionStream"}
    added = tab.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", source)
    try:
        tab.driver.get(trained.resolve().as_uri())
        tab.until("!document.getElementById('trouble').hidden")
        text = tab.run("return document.querySelector('main').innerText")
        assert "DecompressionStream" in text and "points paid" in text
        assert tab.run("return document.querySelectorAll('#settings tbody tr').length") >= 2
    finally:
        tab.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
