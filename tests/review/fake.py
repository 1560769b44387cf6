"""A session of the review page for tests: small drawn pictures, and learning that takes a moment.

It behaves like the real one, without a detector: scores are drawn, and move towards the truth with
each learning.
"""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from devnet_jax.errors import UserError

HOSTILE_NAME = (
    "\"><img src=x onerror='window.hacked = 1'><script>window.hacked = 2</script>&amp;.png"
)
HOSTILE_KIND = "<b onmouseover='window.hacked = 3'>\"&lt;"
NAMES = {
    3: f"line 1/{HOSTILE_NAME}",
    4: "line 1/" + "a-very-long-name-without-any-place-to-break" * 5 + ".png",
    5: "line 2/بطل \u202e gnp.png",
    6: "line 2/\udc80 日本 🔩.png",
}
KINDS = ("scratch", "dent", "stain", HOSTILE_KIND)
SIZES = ((240, 180), (180, 240), (256, 256), (320, 96))
LARGE = 7  # this picture is larger than any screen
THRESHOLD = 1.64
SHOWN: dict[str, Callable[[dict[str, Any]], bool]] = {
    "all": lambda picture: True,
    "unseen": lambda picture: picture["label"] == "",
    "good": lambda picture: picture["label"] == "good",
    "anomaly": lambda picture: picture["label"] == "anomaly",
    "skipped": lambda picture: picture["label"] == "skip",
    "changed": lambda picture: picture["changed"] != "",
    "disagree": lambda picture: (
        (picture["label"], picture["alarm"]) in {("good", True), ("anomaly", False)}
    ),
}


class FakeSession:
    """A deterministic session over `n` drawn pictures, every 5th of them with a defect.

    Args:
      n: number of pictures.
      seconds: duration of learning and of finishing.
      scored: number of pictures that have a score from the start; None: all.
    """

    def __init__(self, n: int = 300, seconds: float = 1.0, scored: int | None = None) -> None:
        self.n = n
        self.seconds = seconds
        self.truth = ["" if i % 5 else KINDS[i // 5 % len(KINDS)] for i in range(n)]
        rng = np.random.default_rng(7)
        self._noise = rng.normal(0, 1.3, n)
        self.n_scored = n if scored is None else scored
        self.labels: list[tuple[str, str]] = [("", "")] * n
        self.entries: list[dict[str, Any]] = []  # labels, as of a journal
        self.masks: dict[int, bytes] = {}
        self.calls: Counter[str] = Counter()
        self.generation = 1
        self.version = 0
        self.working: dict[str, Any] | None = None
        self.finished: dict[str, Any] | None = None
        self.error: str | None = None
        self._again = self._scores_anew = False
        self._before: dict[str, Any] | None = None
        self._changed: dict[int, str] = {}
        self._alarms: list[bool | None] = []
        self._lock = threading.RLock()
        self._threads: list[threading.Thread] = []

    def score(self, i: int) -> float | None:
        if i >= self.n_scored:
            return None
        signal = 3.2 if self.truth[i] else 0.0
        return round(float(signal + self._noise[i] / self.generation), 4)

    def state(self) -> dict[str, Any]:
        with self._lock:
            self.calls["state"] += 1
            kinds = Counter(defect for label, defect in self.labels if label == "anomaly")
            labels = Counter(label for label, _ in self.labels)
            scores = [score for i in range(self.n) if (score := self.score(i)) is not None]
            return {
                "n": self.n,
                "n_scored": self.n_scored,
                "n_pending": self.n if self._scores_anew else self.n - self.n_scored,
                "n_looked": self.n - labels[""],
                "n_good": labels["good"],
                "n_skipped": labels["skip"],
                "kinds": dict(kinds),
                "known_kinds": [*KINDS],
                "threshold": THRESHOLD,
                "n_alarms": sum(score >= THRESHOLD for score in scores),
                "generation": self.generation,
                "version": self.version,
                "working": self.working,
                "estimate": self._estimate(),
                "estimate_before": self._before,
                "n_changed": len(self._changed),
                "note": ""
                if self.generation > 1
                else "No run in this workdir yet: all pictures "
                "taught the first detector as if they were good, so defects among them count as "
                "good until you label them.",
                "error": self.error,
                "finished": self.finished,
                "input": f"/data/parts {HOSTILE_KIND}",
                "has_run": False,
            }

    def _estimate(self) -> dict[str, Any] | None:
        if self.generation == 1:
            return None
        rate = 0.4 / self.generation
        return {
            "auroc": 1 - rate / 5,
            "low": 1 - rate / 2,
            "high": 1 - rate / 20,
            "n_normal": 1180,
            "n_anomaly": 2 + self.generation,
            "miss_rate": rate,
            "miss_low": rate / 3,
            "miss_high": min(1.0, 2.5 * rate),
        }

    def _picture(self, i: int) -> dict[str, Any]:
        score = self.score(i)
        alarm = None if score is None else score >= THRESHOLD
        label, defect = self.labels[i]
        near = score is not None and abs(score - THRESHOLD) < 0.5
        return {
            "id": i,
            "name": NAMES.get(i, f"line {1 + i % 3}/{i:03}.png"),
            "score": score,
            "alarm": alarm,
            "reason": f"like the labelled {self.truth[i] or 'dent'} (80 %)" if alarm else "",
            "label": label,
            "defect": defect,
            "why": "nearest the threshold" if near else "unlike anything seen",
            "changed": self._changed.get(i, ""),
            "mask": i in self.masks,
        }

    def list(self, order: str, show: str, offset: int, limit: int) -> dict[str, Any]:
        with self._lock:
            self.calls["list"] += 1
            all_ = [*map(self._picture, range(self.n))]
            keys: dict[str, Callable[[dict[str, Any]], Any]] = {
                "name": lambda each: each["id"],
                "score": lambda each: -np.inf if each["score"] is None else -each["score"],
                "teach": lambda each: (
                    each["label"] != "",
                    9 if each["score"] is None else abs(each["score"] - THRESHOLD),
                ),
            }
            if order not in keys or show not in SHOWN:
                raise UserError(f"no such list: order {order!r}, show {show!r}")
            chosen = sorted(filter(SHOWN[show], all_), key=keys[order])
            return {"total": len(chosen), "pictures": chosen[offset : offset + limit]}

    def picture(self, i: int) -> dict[str, Any]:
        with self._lock:
            width, height = self.size(i)
            history = [
                {key: entry[key] for key in ("time", "reviewer", "label", "defect")}
                for entry in self.entries
                if i in entry["ids"]
            ]
            return {**self._picture(i), "width": width, "height": height, "history": history}

    def label(self, ids: Sequence[int], label: str, defect: str, reviewer: str) -> None:
        if label == "anomaly" and defect.strip().lower() in {"good", "normal", "ok"}:
            raise UserError(f"{defect!r} is no kind of defect: label the picture good instead")
        with self._lock:
            entry = {
                "time": f"2026-11-30T12:00:{len(self.entries) % 60:02}",
                "reviewer": reviewer,
                "ids": [*ids],
                "label": label,
                "defect": defect,
                "old": [self.labels[i] for i in ids],
            }
            self.entries.append(entry)
            for i in ids:
                self.labels[i] = (label, defect)
            self.version += 1

    def undo(self, reviewer: str) -> list[int]:
        with self._lock:
            own = [each for each in self.entries if each["reviewer"] == reviewer]
            if not own:
                return []
            self.entries.remove(own[-1])
            for i, old in zip(own[-1]["ids"], own[-1]["old"], strict=True):
                self.labels[i] = old
            self.version += 1
            return [*own[-1]["ids"]]

    def size(self, i: int) -> tuple[int, int]:
        return (2400, 1600) if i == LARGE else SIZES[i % len(SIZES)]

    def spot(self, i: int) -> tuple[float, float]:
        """Returns the centre of the defect, if there is one, as shares of width and height."""
        return 0.25 + 0.5 * (i * 7 % 10) / 10, 0.3 + 0.4 * (i * 3 % 10) / 10

    def image(self, i: int, size: int | None) -> tuple[bytes, str]:
        with self._lock:
            self.calls[f"image {i}"] += 1
        width, height = self.size(i)
        picture = Image.new("RGB", (width, height), (60, 66, 74))
        draw = ImageDraw.Draw(picture)
        shade = 150 + 40 * (i * 37 % 5) // 4
        draw.rounded_rectangle(
            (0.1 * width, 0.15 * height, 0.9 * width, 0.85 * height),
            0.1 * height,
            fill=(shade, shade - 6, shade - 14),
        )
        if self.truth[i]:
            x, y = (share * side for share, side in zip(self.spot(i), (width, height), strict=True))
            radius = 0.08 * height
            box = (x - radius, y - radius, x + radius, y + radius)
            if self.truth[i] == "scratch":
                draw.line(box, fill=(50, 40, 40), width=max(2, height // 40))
            else:
                draw.ellipse(box, fill=(90, 60, 50))
        if size is not None:
            picture.thumbnail((size, size))
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=90)
        return stream.getvalue(), "image/jpeg"

    def map(self, i: int) -> bytes | None:
        if self.score(i) is None:
            return None
        width, height = self.size(i)
        x, y = self.spot(i)
        rows, columns = np.mgrid[0:1:48j, 0 : 1 : 48j * width / height]
        distance = np.hypot((columns - x) * width / height, rows - y)
        heat = np.exp(-((distance / 0.15) ** 2)) if self.truth[i] else 0 * distance
        alpha = 255 * heat * 0.7
        rgba = np.stack([255 + 0 * heat, 200 * (1 - heat), 0 * heat, alpha], axis=-1)
        stream = io.BytesIO()
        Image.fromarray(rgba.astype(np.uint8)).save(stream, "PNG")
        return stream.getvalue()

    def mask(self, i: int) -> bytes | None:
        return self.masks.get(i)

    def set_mask(self, i: int, png: bytes | None, reviewer: str) -> None:
        with self._lock:
            if png is None:
                self.masks.pop(i, None)
            else:
                try:
                    size = Image.open(io.BytesIO(png)).size
                except OSError:
                    raise UserError("the mask is no PNG") from None
                if size != self.size(i):
                    raise UserError(f"the mask is {size}, its picture {self.size(i)}")
                self.masks[i] = png
            self.version += 1

    def learn(self) -> None:
        with self._lock:
            self.calls["learn"] += 1
            if self.working:
                self._again = True
                return
        self._start("learning", self._learned)

    def finish(self) -> None:
        self._start("finishing", self._done)

    def _start(self, task: str, end: Callable[[], None]) -> None:
        def work() -> None:
            for done in range(10):
                with self._lock:
                    self.working = {"task": task, "done": done * self.n // 10, "of": self.n}
                time.sleep(self.seconds / 10)
            with self._lock:
                end()
                self._scores_anew = task == "learning"
                self.working = None
            if self._scores_anew:  # longer than the page waits between questions
                time.sleep(0.4)
                self._scored_anew()
            with self._lock:
                again, self._again = self._again, False
            if again:
                self.learn()

        self._threads.append(threading.Thread(target=work, daemon=True))
        self.working = {"task": task, "done": 0, "of": self.n}
        self._threads[-1].start()

    def _learned(self) -> None:
        self._alarms = [self._picture(i)["alarm"] for i in range(self.n)]
        self._before = self._estimate()
        self.generation += 1
        self._changed = {}

    def _scored_anew(self) -> None:
        with self._lock:
            now = [self._picture(i)["alarm"] for i in range(self.n)]
            words = {True: "now an alarm", False: "no alarm any more"}
            pairs = enumerate(zip(self._alarms, now, strict=True))
            self._changed = {i: words[new] for i, (old, new) in pairs if old != new}
            self._scores_anew = False

    def _done(self) -> None:
        folder = "/data/work <b>/review"
        self.finished = {
            "csv": f"{folder}/labels.csv",
            "detector": f"{folder}/detector",
            "report": f"{folder}/detector/report.html",
            "commands": [
                f"devnet predict --workdir='{folder}/detector' --input=NEW_PICTURES",
                f"devnet export --workdir='{folder}/detector'",
            ],
        }

    def close(self) -> None:
        for thread in self._threads:
            thread.join()
