"""Writes docs/report.jpg, a picture of a run's report: its head, its charts and its first images.

pip install playwright && python docs/report_picture.py runs/leather/report.html

The run is that of configs/quickstart.py:leather with model.detector=devcore, ImageNet weights,
image_size=224 and calibration=0.2.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH = 1280
STYLE = """
header { padding-top: 1.5rem }
#control { position: static }
.charts > :nth-child(n+3), #gallery > :nth-child(n+10) { display: none }
.filters, #images { display: none !important }
"""
PARTS = ("header", "dl.numbers", "#control", ".charts", "#gallery")


def main(report: str) -> None:
    """Writes the picture of a report.

    Args:
      report: path of a run's report.html.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.goto(Path(report).absolute().as_uri())
        page.add_style_tag(content=STYLE)
        # Pictures far down are loaded late.
        page.evaluate(
            "Promise.all([...document.images].map(each => { each.loading = 'eager'; "
            "return each.decode(); }))"
        )
        pictures = [
            Image.open(io.BytesIO(page.locator(part).screenshot()))
            for part in PARTS
            if page.locator(part).count()
        ]
        browser.close()
    sheet = Image.new("RGB", (WIDTH, sum(picture.height + 24 for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, ((WIDTH - picture.width) // 2, top))
        top += picture.height + 24
    sheet.save(Path(__file__).parent / "report.jpg", quality=82)


if __name__ == "__main__":
    main(*sys.argv[1:])
