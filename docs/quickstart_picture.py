"""Draws docs/quickstart.jpg: test images of the quickstart's run with their scores.

python docs/quickstart_picture.py runs/quickstart
"""

import csv
import io
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from devnet_jax.config import Config
from devnet_jax.data.few_shot import FewShotDataset
from devnet_jax.data.split import Split
from devnet_jax.workdir import Workdir, read_json

COLUMNS, SIDE, GAP, CAPTION = 6, 192, 8, 30
GREEN, RED = (35, 130, 60), (190, 40, 40)


def main(path: str) -> None:
    workdir = Workdir(path)
    config = Config.from_dict(read_json(workdir.config))
    split = Split.from_dict(read_json(workdir.split))
    source = FewShotDataset.reopen(config.dataset, split).source
    pictures = {e.path: source.image_bytes(i) for i, e in enumerate(source.examples)}
    with (Path(path) / "eval" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    good = [row for row in rows if row["label"] == "0"][:COLUMNS]
    kinds = sorted({row["defect"] for row in rows if row["label"] == "1"})
    bad = [median_of(rows, kind) for kind in kinds][:COLUMNS]

    width = COLUMNS * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, 2 * (SIDE + CAPTION + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(18)
    for y, line in enumerate((good, bad)):
        for x, row in enumerate(line):
            left, top = GAP + x * (SIDE + GAP), GAP + y * (SIDE + CAPTION + GAP)
            picture = Image.open(io.BytesIO(pictures[row["path"]])).resize((SIDE, SIDE))
            sheet.paste(picture, (left, top))
            alarm = float(row["score"]) >= 1.645
            text = f"{row['defect']}  {float(row['score']):.1f}"
            draw.text((left + 2, top + SIDE + 4), text, RED if alarm else GREEN, font)
    sheet.save(Path(__file__).parent / "quickstart.jpg", quality=85)


def median_of(rows: list[dict[str, str]], kind: str) -> dict[str, str]:
    """The image of that defect class with the class's median score."""
    ranked = sorted((r for r in rows if r["defect"] == kind), key=lambda r: float(r["score"]))
    return ranked[len(ranked) // 2]


if __name__ == "__main__":
    main(*sys.argv[1:])
