"""A review as the page's server sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Session(Protocol):
    """Pictures, their labels and scores, and the detector that learns from them.

    Methods are safe in threads, and quick except `image` and `map`. Pictures have numbers from 0.
    Dictionaries are JSON for the page.

    Attributes:
      n: number of pictures.
    """

    n: int

    def state(self) -> dict[str, Any]:
        """Returns what the page always shows: counts, the estimate, and what is going on."""

    def list(self, order: str, show: str, offset: int, limit: int) -> dict[str, Any]:
        """Returns a part of the pictures in an order, and how many there are.

        Args:
          order: "teach", "score" or "name".
          show: "all", "unseen", "good", "anomaly", "skipped", "changed" or "disagree".
          offset: number of pictures to pass over.
          limit: maximum number of pictures.
        """

    def picture(self, i: int) -> dict[str, Any]:
        """Returns a picture's name, label, score, size and history."""

    def label(self, ids: Sequence[int], label: str, defect: str, reviewer: str) -> None:
        """Labels pictures; raises `UserError` if it cannot be written."""

    def undo(self, reviewer: str) -> Sequence[int]:
        """Takes back the reviewer's last label; returns the pictures."""

    def image(self, i: int, size: int | None) -> tuple[bytes, str]:
        """Returns an image file of at most `size` pixels a side, and its media type."""

    def map(self, i: int) -> bytes | None:
        """Returns the heat map, a PNG file with transparency; `None` before it is scored."""

    def mask(self, i: int) -> bytes | None:
        """Returns the painted mask, a PNG file in grey of the image's size, or `None`."""

    def set_mask(self, i: int, png: bytes | None, reviewer: str) -> None:
        """Keeps or removes a mask; raises `UserError` for a wrong file or size."""

    def learn(self) -> None:
        """Begins to learn from the labels."""

    def finish(self) -> None:
        """Begins to write the table, the detector and its report."""

    def close(self) -> None:
        """Ends what is going on and writes the table of labels."""
