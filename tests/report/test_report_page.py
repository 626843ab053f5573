"""The page: whole, self-contained and true to its files; what can be checked without a browser."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import result_files as files
import synthetic
from ftwt import cli
from ftwt.records.recording import Recording
from ftwt.report import palette, write
from ftwt.report.answer import answers
from ftwt.report.page import compose
from ftwt.report.page.html import ASSETS, MOST_BYTES, unpacked
from ftwt.report.page.words import in_words
from ftwt.report.reading.read import read
from ftwt.report.rows import accuracy_rows
from ftwt.report.rows_of_run import unit_rows
from ftwt.report.write import write_report

ENGINE = synthetic.RESULTS / "engine" / "resnet20-r80-threads1.json"


class Parsed(HTMLParser):
    """The elements of a page: tag and attributes, and the text of those that have an id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img", "input", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append((self.elements[-1][1], data))
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def ids(self) -> list[str]:
        return [held["id"] for _, held in self.elements if held.get("id")]

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))

    @property
    def figures(self) -> list[str]:
        """Ids of the figures."""
        held = [held.get("id") or "" for held in self.all("div") if held.get("class") == "plot"]
        return [id.removeprefix("plot-") for id in held]

    def data(self, id: str = "data") -> Any:
        [text] = [text for held, text in self.scripts if held.get("id") == id]
        return json.loads(unpacked(text))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of one setting, of which two have a twin and one a recording, and a benchmark."""
    home = tmp_path_factory.mktemp("results")
    record = synthetic.recording(network="cifar10-resnet20")
    synthetic.run_folder(home / "net-0", seed=0, record=record, steps=60)
    for seed in (1, 2):
        synthetic.run_folder(home / f"net-{seed}", seed=seed)
    for seed in (0, 1):
        synthetic.run_folder(home / f"net-{seed}-twin", seed=seed, twin_of=f"runs/net-{seed}")
    (home / "bench.json").write_bytes(ENGINE.read_bytes())
    return home


@pytest.fixture(scope="module")
def html(home: Path) -> str:
    output = home / "page" / "report.html"
    report = write_report(home, output)
    text = output.read_text(encoding="utf-8")
    assert report.size == len(text.encode()) < 1_500_000
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]
    return text


@pytest.fixture(scope="module")
def page(html: str) -> Parsed:
    return Parsed(html)


# --- The file -----------------------------------------------------------------------------------


def test_the_page_is_whole_and_needs_nothing_else(html: str, page: Parsed) -> None:
    assert html.startswith("<!DOCTYPE html>") and page.open == []
    assert not re.search(r"https?:", re.sub(r' xmlns(:xlink)?="[^"]+"', "", html))
    addresses = [
        held[name] or ""
        for _, held in page.elements
        for name in ("src", "href", "srcset", "action", "data")
        if name in held
    ]
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert not re.search(r"@import|url\((?!#)", html)
    assert not {tag for tag, _ in page.elements} & {"iframe", "object", "embed", "base", "form"}


def test_the_browser_is_told_to_run_these_scripts_alone(page: Parsed) -> None:
    [policy] = [held["content"] for held in page.all("meta") if "http-equiv" in held]
    assert policy is not None and policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy and "connect-src" not in policy
    plain = [text for held, text in page.scripts if not held]
    assert len(plain) == 2
    for script in plain:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert not any(name.startswith("on") for _, held in page.elements for name in held)


def test_ids_are_unique_and_all_that_is_referred_to_is_there(page: Parsed) -> None:
    ids = page.ids
    assert len(ids) == len(set(ids))
    for _, held in page.elements:
        for name in ("aria-labelledby", "aria-controls", "aria-describedby", "for"):
            if held.get(name):
                assert held[name] in ids
        for name in ("href", "xlink:href"):
            if (held.get(name) or "").startswith("#"):
                assert (held[name] or "")[1:] in ids
        for wanted in re.findall(r"url\(#([^)]+)\)", " ".join(filter(None, held.values()))):
            assert wanted in ids
    wanted = re.findall(r'byId\("([\w-]+)"\)', (ASSETS / "explorer.js").read_text("utf-8"))
    wanted += re.findall(r'byId\("([\w-]+)"\)', (ASSETS / "page.js").read_text("utf-8"))
    assert set(wanted) <= set(ids)
    sections = [(held["href"] or "")[1:] for held in page.all("a")][1:]
    assert sections == ["answer", "figures", "explorer", "images", "tables", "missing", "files"]


def test_everything_has_a_name_and_one_heading_leads(html: str, page: Parsed) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert (
        len(page.all("h1"))
        == len(page.all("main"))
        == html.split("<body>")[0].count("<title>")
        == 1
    )
    assert all(held["role"] == "img" and held["aria-label"] for held in page.all("svg"))
    assert all("alt" in held for held in page.all("img"))
    buttons = re.findall(r"<button[^>]*>([^<]*)</button>", html)
    assert len(buttons) == len(page.all("button")) and all(buttons)
    assert all(held.get("aria-label") for held in page.all("button") if "data-figure" in held)
    scopes = {held.get("scope") for held in page.all("th")}
    assert scopes == {"col", "row"} and len(page.all("caption")) == len(page.all("table"))
    [viewport] = [held["content"] for held in page.all("meta") if held.get("name") == "viewport"]
    assert viewport == "width=device-width, initial-scale=1"


# --- What it says -------------------------------------------------------------------------------


def test_it_starts_with_the_answer(home: Path, page: Parsed) -> None:
    [answer] = answers(read(home))
    runs = [json.loads((home / f"net-{i}" / "run.json").read_text("utf-8")) for i in range(3)]
    top1 = np.mean([run["test"]["top1"] for run in runs])
    achieved = np.mean([run["test"]["reduction"] for run in runs])
    assert answer.seeds == 3 and answer.top1.mean == pytest.approx(top1)
    assert answer.achieved.mean == pytest.approx(achieved)
    assert answer.dense_top1 is not None and answer.gain is not None and answer.gain.count == 2
    opening = page.words.split("Accuracy against work saved")[0]
    for text in (
        f"{100 * top1:.1f}%",
        f"{100 * achieved:.1f}%",
        f"{100 * answer.dense_top1:.1f}%",
        f"{100 * runs[0]['predicted_reduction']:.1f}%",
        "An image cost 40.6 M multiply-accumulates",
        f"{100 * abs(top1 - answer.dense_top1):.1f} points paid",
        "The static twin, the same network with one fixed mask, trained as long, reaches",
    ):
        assert text in opening


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ((-0.01, -0.012), "1.1 points more than the gates. Deciding for each image did not pay"),
        ((0.02, 0.03), "the gates are 2.5 points better. That is what deciding for each image won"),
        ((-0.01, 0.012), "no clear difference. Deciding for each image gained nothing here"),
        ((-0.003,), "0.3 points more than the gates, no clear difference"),  # chance: 0.4 points
        ((0.009,), "the gates are 0.9 points better"),
        ((), "Not among the files: the static twin"),
    ],
)
def test_the_twin_is_told_plainly(tmp_path: Path, gains: tuple[float, ...], said: str) -> None:
    for seed, gain in enumerate(gains or (0.0,)):
        folder = synthetic.run_folder(tmp_path / f"net-{seed}", seed=seed)
        if gains:
            twin = synthetic.run_folder(
                tmp_path / f"twin-{seed}", seed=seed, twin_of=f"runs/net-{seed}"
            )
            values = json.loads((folder / "run.json").read_text("utf-8"))
            other = json.loads((twin / "run.json").read_text("utf-8"))
            other["test"]["top1"] = values["test"]["top1"] - gain
            (twin / "run.json").write_text(json.dumps(other), encoding="utf-8")
    [answer] = answers(read(tmp_path))
    assert said in in_words(answer).twin


def test_networks_that_were_tested_on_other_images_are_not_compared(tmp_path: Path) -> None:
    few = {"config": {"model": "cifar10-resnet20", "data": {"dataset": "cifar10-embedded"}}}
    dense = files.evaluation(0.917, 0.0, 0, images=1000, provenance=files.provenance() | few)
    files.write(tmp_path / "dense.json", dense)
    run = synthetic.run_folder(tmp_path / "net")
    twin = synthetic.run_folder(tmp_path / "twin", twin_of="runs/net")
    for folder, images in ((run, 9000), (twin, 1000)):
        values = json.loads((folder / "run.json").read_text("utf-8"))
        values["config"]["weights"] = "cifar10-resnet20"
        values["test"]["images"] = images
        files.write(folder / "run.json", values)
    [answer] = answers(read(tmp_path))
    assert answer.paid is None and answer.gain is None
    words = in_words(answer)
    said = "was tested on different images (1,000, not 9,000; "
    assert f"The dense network {said}91.7%): no difference is shown." in words.verdict
    assert f"The static twin {said}" in words.twin
    write_report(tmp_path, tmp_path / "page.html")
    page = Parsed((tmp_path / "page.html").read_text("utf-8"))
    assert "points paid" not in page.words and "9,000 test images" in page.words


def test_what_is_missing_is_said_with_the_command_for_it(page: Parsed, tmp_path: Path) -> None:
    gaps = page.words.split("Not in this report")[1].split("What this page was made from")[0]
    assert re.search(r"the curve r -> reduction .* ftwt estimate [^(]* --output est", gaps)
    assert "net-1" in gaps and "--record" in gaps
    folder = synthetic.run_folder(tmp_path / "lonely")
    write_report(folder, tmp_path / "page.html")
    small = Parsed((tmp_path / "page.html").read_text("utf-8"))
    assert "explorer" not in small.ids and "images" not in small.ids
    assert f"ftwt evaluate {folder} --record" in small.words
    assert "the static twin, which shows what the gates are worth" in small.words


def test_without_a_pruned_network_there_is_a_page_without_an_answer(tmp_path: Path) -> None:
    write_report(ENGINE, tmp_path / "page.html")
    page = Parsed((tmp_path / "page.html").read_text("utf-8"))
    assert "No network with gates is among the files." in page.words
    assert page.figures == ["latency-runs-resnet20-r80-threads1"]


def test_a_recording_alone_has_an_answer(tmp_path: Path) -> None:
    recording = synthetic.recording(network="somebody's")
    recording.save(tmp_path / "net.safetensors")
    [answer] = write_report(tmp_path / "net.safetensors", tmp_path / "page.html").answers
    assert answer.network == "somebody's" and answer.images == len(recording)
    assert answer.top1.mean == recording.correct.mean()
    assert answer.achieved.mean == pytest.approx(recording.reduction.mean())
    assert answer.executed_macs.mean == pytest.approx(recording.executed_macs.mean())
    page = Parsed((tmp_path / "page.html").read_text("utf-8"))
    assert f"{100 * answer.achieved.mean:.1f}% fewer" in page.words
    assert "what the dense network achieved is not among the files" in page.words


def test_an_evaluation_alone_has_an_answer(tmp_path: Path) -> None:
    values = synthetic.run_values()["test"]
    (tmp_path / "figures.json").write_text(json.dumps(values), encoding="utf-8")
    [answer] = write_report(tmp_path / "figures.json", tmp_path / "page.html").answers
    assert (answer.top1.mean, answer.achieved.mean) == (values["top1"], values["reduction"])


# --- What is drawn ------------------------------------------------------------------------------


def drawing(html: str, id: str) -> ElementTree.Element:
    """The drawing of a figure."""
    text = html.split(f'id="plot-{id}">')[1].split("</svg>")[0] + "</svg>"
    return ElementTree.fromstring(text)


def titles(html: str, id: str) -> list[str]:
    """What the marks of a figure say when one points at them."""
    return [part.text or "" for part in drawing(html, id).iter() if part.tag.endswith("title")]


def test_each_figure_is_in_the_page_with_its_data_and_its_command(html: str, page: Parsed) -> None:
    assert [name.rpartition("-net-0")[0] or name for name in page.figures] == [
        "accuracy-cifar10-resnet20",
        "curve-cifar10-resnet20",
        "latency-runs-resnet20-r80-threads1",
        "keep",
        "core",
        "training",
        "work",
        "classes",
    ]
    tables = {table["id"]: table["data"] for table in page.data()["tables"]}
    assert [*tables] == [*page.figures, "extremes"]
    for figure in page.figures:
        rows, columns = tables[figure]["rows"], tables[figure]["columns"]
        assert rows and all(len(row) == len(columns) for row in rows)
        kinds = {b["data-kind"] for b in page.all("button") if b.get("data-figure") == figure}
        assert kinds == {"csv", "json", "table"}
        part = html.split(f'id="figure-{figure}"')[1].split("</figure>")[0]
        assert re.search(r"<code>(ftwt|engine\.py) ", part)
        assert len([*drawing(html, figure).iter()]) > 50


def test_marks_say_what_they_show(home: Path, html: str, page: Parsed) -> None:
    rows = accuracy_rows(read(home), "cifar10-resnet20")
    told = titles(html, "accuracy-cifar10-resnet20")
    assert len(told) == len(rows)
    for text, row in zip(told, rows, strict=True):
        assert f"{100 * row['top1']:.2f}% at {100 * row['reduction']:.1f}% fewer MACs" in text
        assert text.startswith(row["method"])
    layers = unit_rows(read(home).runs[0])
    [recorded] = [name for name in page.figures if name.startswith("core-")]
    told = titles(html, recorded)
    wanted = [
        f"{row['unit']}: {row[kind]} of {row['channels']} filters fire {kind}"
        for kind in ("always", "sometimes", "never")
        for row in layers
    ]
    assert told == wanted
    table = next(t["data"] for t in page.data()["tables"] if t["id"].startswith("accuracy"))
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]] == [
        {name: row.get(name) for name in table["columns"]} for row in rows
    ]


def test_drawings_take_their_ink_from_the_theme_and_their_colours_from_the_palette(
    html: str, page: Parsed
) -> None:
    variables = set(re.findall(r"--([\w-]+):", (ASSETS / "page.css").read_text("utf-8")))
    known = {colour.lower() for colour in palette.OKABE_ITO.values()}
    for figure in page.figures:
        text = ElementTree.tostring(drawing(html, figure), encoding="unicode")
        assert set(re.findall(r"var\(--([\w-]+)\)", text)) <= variables
        assert "var(--ink)" in text and "var(--grid)" in text
        assert set(re.findall(r"#[0-9a-f]{6}(?![\w-])", text)) <= known
    told = ElementTree.tostring(drawing(html, "accuracy-cifar10-resnet20"), encoding="unicode")
    assert palette.DYNAMIC[0].lower() in told and palette.TWIN.lower() in told


def test_the_explorer_holds_what_was_recorded(home: Path, page: Parsed) -> None:
    recording = Recording.load(home / "net-0" / "recording.safetensors")
    [held] = page.data()["explorer"]
    assert held["name"] == "net-0" and held["images"] == len(recording)
    packed = np.frombuffer(base64.b64decode(held["masks"]), np.uint8)
    packed = packed.reshape(len(recording.shown), -1)
    start = 0
    for unit, fired in zip(held["units"], held["fired"], strict=True):
        wide = -(-unit["channels"] // 8)
        bits = np.unpackbits(packed[:, start : start + wide], axis=1, count=unit["channels"])
        masks = recording.masks(unit["name"])
        assert (bits == masks[recording.shown]).all()
        assert fired == masks.sum(0).tolist()
        start += wide
    assert start == packed.shape[1]
    for image in held["shown"]:
        macs = recording.executed_macs
        assert image["above"] == (macs < macs[image["index"]]).mean()
    assert [image["index"] for image in held["shown"]] == recording.shown.tolist()


def test_heatmaps_have_one_scale_for_dense_and_dynamic(home: Path, page: Parsed) -> None:
    recording = Recording.load(home / "net-0" / "recording.safetensors")
    [held] = page.data()["explorer"]
    values = np.frombuffer(base64.b64decode(held["heatmaps"]["values"]), np.uint8)
    for unit in held["heatmaps"]["units"]:
        size = unit["high"] * unit["wide"]
        for place in range(len(recording.shown)):
            start = unit["from"] + 2 * place * size
            pair = [
                maps[unit["name"]][place].astype(float)
                for maps in (recording.dense_heatmaps, recording.dynamic_heatmaps)
            ]
            for which, wanted in enumerate(pair):
                got = values[start + which * size : start + (which + 1) * size]
                scale = max(pair[0].max(), pair[1].max())
                assert got.reshape(wanted.shape) == pytest.approx(255 * wanted / scale, abs=0.51)
                assert unit["highest"][place] == pytest.approx(scale, rel=1e-3)


def test_the_cheapest_and_the_dearest_images_are_shown(home: Path, page: Parsed) -> None:
    recording = Recording.load(home / "net-0" / "recording.safetensors")
    held = page.data()["tables"][-1]
    rows = [dict(zip(held["data"]["columns"], row, strict=True)) for row in held["data"]["rows"]]
    shown = sorted(recording.executed_macs[recording.shown])
    assert [row["executed_macs"] for row in rows] == [*shown[:6], *shown[::-1][:6]]
    pictures = [image["src"] for image in page.all("img")]
    [explorer] = page.data()["explorer"]
    assert pictures == [explorer["pictures"][row["picture"]] for row in rows]
    assert [image["alt"] for image in page.all("img")] == [row["label"] for row in rows]
    assert {b["data-kind"] for b in page.all("button") if b.get("data-figure") == "extremes"}


def test_large_pictures_and_heatmaps_are_made_smaller(tmp_path: Path) -> None:
    synthetic.recording(side=224, shown=16, maps=1).save(tmp_path / "recording.safetensors")
    report = write_report(tmp_path, tmp_path / "page.html")
    [held] = Parsed((tmp_path / "page.html").read_text("utf-8")).data()["explorer"]
    [maps] = held["heatmaps"]["units"]
    assert maps["high"] == maps["wide"] == 32
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in held["pictures"])
    assert report.size < 1_500_000


# --- Names from strangers -----------------------------------------------------------------------


def test_names_from_files_stay_text(tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)>"
    folder = synthetic.run_folder(tmp_path / "run")
    values = json.loads((folder / "run.json").read_text("utf-8"))
    values["config"]["model"] = bad
    values["provenance"]["command"] = "ftwt train </code><script>alert(2)</script>"
    values["test"]["units"][0]["name"] = "</script><b>unit</b>"
    (folder / "run.json").write_text(json.dumps(values), encoding="utf-8")
    write_report(folder, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text("utf-8")
    page = Parsed(html)
    assert bad not in html and "<script>alert" not in html and page.open == []
    assert bad in page.words and page.all("img") == []
    assert "<b>unit" not in html and "&lt;b&gt;unit" in html


# --- The verb -----------------------------------------------------------------------------------


def test_the_verb_tells_the_answer_and_where_the_page_is(
    home: Path, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "out" / "page.html"
    assert cli.main(["report", str(home), "-o", str(output)]) == 0
    told = capsys.readouterr()
    assert not told.err and "dynamic, r = 0.9" in told.out and "static twin" in told.out
    assert f"page: {output}" in told.out and "not shown: the curve r -> reduction" in told.out
    assert cli.main(["report", str(home), "-o", str(output), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["page"] == str(output) and values["bytes"] == output.stat().st_size
    assert values["answers"][0]["seeds"] == 3 and len(values["figures"]) == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "holds no results"),
        (lambda path: path.write_text("{"), "run.json is not"),
    ],
)
def test_a_mistake_leaves_the_page_that_was_there(
    tmp_path: Path, make: Any, message: str, capsys: Any
) -> None:
    source, output = tmp_path / "run.json", tmp_path / "page.html"
    make(source)
    output.write_text("the old page")
    assert cli.main(["report", str(source), "-o", str(output)]) == 1
    assert output.read_text() == "the old page"
    told = capsys.readouterr().err
    assert message in told and "run.json" in told and told.count("\n") == 1


def test_writing_the_page_loads_no_torch(home: Path, tmp_path: Path) -> None:
    code = "import sys; from ftwt.report.write import write_report; write_report(*sys.argv[1:]);"
    code += "print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", code, str(home), str(tmp_path / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {"jinja2", "matplotlib"} <= loaded and not loaded & {"torch", "torchvision"}


# --- Size ---------------------------------------------------------------------------------------


def test_recordings_that_find_no_room_are_named(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "ROOM", 1)
    synthetic.recording().save(tmp_path / "second.safetensors")
    write_report([home, tmp_path / "second.safetensors"], tmp_path / "page.html")
    page = Parsed((tmp_path / "page.html").read_text("utf-8"))
    assert [held["name"] for held in page.data()["explorer"]] == ["net-0"]
    assert "the explorer of second: the page has no room for more than 1" in page.words
    assert f"ftwt report {tmp_path / 'second.safetensors'} -o second.html" in page.words


def test_figures_that_find_no_room_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compose, "MOST_SUBJECTS", 1)
    monkeypatch.setattr(compose, "MOST_TIMED", 1)
    for number in range(3):
        synthetic.run_folder(tmp_path / "runs" / f"net-{number}", r=0.9 - number / 20)
    engine = sorted((synthetic.RESULTS / "engine").glob("*threads1.json"))[:3]
    assert len(engine) == 3
    report = write_report([tmp_path / "runs", *engine], tmp_path / "page.html")
    page = Parsed((tmp_path / "page.html").read_text("utf-8"))
    assert sum(name.startswith("keep-") for name in report.figures) == 1
    assert sum(name.startswith("latency-") for name in report.figures) == 1
    assert "figures of layers, training and work of net-1, net-2: name their files" in page.words
    assert re.search(r"figures of latency of .*cifar10-resnet56.*: name their files", page.words)


def test_a_page_that_would_be_too_large_is_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "MOST_BYTES", 300_000)
    with pytest.raises(ValueError, match=r"would have 0\.\d MB; at most 0 MB .* name fewer files"):
        write_report(home, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


MEASURED = """
import json, resource, sys, time
start = time.perf_counter()
from ftwt.report.write import write_report
report = write_report(sys.argv[1], sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([time.perf_counter() - start, peak, report.size]))
"""


@pytest.mark.slow
def test_a_hundred_runs_and_ten_thousand_images_of_a_large_network(tmp_path: Path) -> None:
    vgg16 = (64, 64, 128, 128, *(256,) * 3, *(512,) * 6)  # 4,224 filters
    for number in range(100):
        record = None
        if number < 5:
            record = synthetic.recording(images=10_000, shown=64, channels=vgg16, seed=number)
        seed, r = number % 5, round(0.7 + 0.01 * (number // 5), 2)
        folder = tmp_path / "runs" / f"run-{number}"
        synthetic.run_folder(folder, seed=seed, r=r, steps=300, record=record)
    output = tmp_path / "page.html"
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "runs"), str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, peak_bytes, size = json.loads(done.stdout)
    assert seconds < 60 and peak_bytes < 2e9 and size < MOST_BYTES
    data = Parsed(output.read_text("utf-8")).data()
    assert all(len(held["shown"]) == 64 for held in data["explorer"])


def test_of_a_second_look_the_page_says_which_images_look_again(tmp_path: Path) -> None:
    recording = synthetic.recording(network="two looks")
    passes = np.where(recording.executed_macs > np.median(recording.executed_macs), 2, 1)
    look = replace(recording, units=(), packed_masks={}, dense_heatmaps={}, dynamic_heatmaps={})
    replace(look, passes=passes.astype(np.uint8)).save(tmp_path / "look.safetensors")
    write_report([tmp_path / "look.safetensors"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    share = f"{(passes > 1).mean():.1%} of {len(look):,} images are looked at again: top-1 "
    assert share in page
    strips = page[page.index(share) :]
    cheap, dear = strips.index("Cheapest"), strips.index("Dearest")
    assert ", looked at again" not in strips[cheap:dear] and ", looked at again" in strips[dear:]
