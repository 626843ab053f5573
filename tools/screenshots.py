"""Photograph the report for the docs: `python tools/screenshots.py runs/gates`.

Needs Chromium and its driver, as the tests of the page do, and a folder of `ftwt prune --gates
dynamic`, whose explorer is shown; the first picture is of results that are in the repository.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "helpers"))

import browser  # noqa: E402, I001

from ftwt.report.write import write_report  # noqa: E402

RESULTS = [ROOT / "results" / name for name in ("resnet20", "engine/resnet20-r80-threads1.json")]
WIDTH = 1180
COMPARE = """
const buttons = document.querySelectorAll('#picks button');
buttons[3].click();
buttons[buttons.length - 5].dispatchEvent(new MouseEvent('click', {bubbles: true, shiftKey: true}));
document.documentElement.style.scrollBehavior = 'auto';
document.querySelector('#explorer .controls').scrollIntoView();
"""


def main() -> None:
    """Write docs/report.png and docs/explorer.png."""
    gates = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/gates")
    with tempfile.TemporaryDirectory() as folder, browser.browser(Path(folder) / "user") as driver:
        page = Path(folder) / "report.html"
        write_report(RESULTS, page)
        shots = (
            (page, "light", 1250, "", "report.png"),
            (gates / "index.html", "dark", 1330, COMPARE, "explorer.png"),
        )
        for source, theme, height, script, name in shots:
            size = {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": True}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            prefers = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", prefers)
            driver.get(source.resolve().as_uri())
            while not driver.execute_script("return document.documentElement.dataset.ready"):
                time.sleep(0.1)
            driver.execute_script(script)
            time.sleep(0.5)
            taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
            picture = Image.open(io.BytesIO(base64.b64decode(taken))).convert("RGB")
            method = Image.Quantize.MEDIANCUT if theme == "dark" else Image.Quantize.MAXCOVERAGE
            small = picture.quantize(192, method=method, dither=Image.Dither.NONE)
            small.save(ROOT / "docs" / name, optimize=True)
            print(f"docs/{name}: {(ROOT / 'docs' / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
