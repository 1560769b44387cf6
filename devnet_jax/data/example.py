"""`Example`, the description of an image of a data set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """An image of a data set, without its bytes.

    Attributes:
      path: posix path relative to the raw folder, or as in the list; it names the image.
      split: "train" or "test". In published data sets, all anomalies are in test.
      label: 0 for a normal image, 1 for an anomaly.
      defect: defect class; "good" for a normal image.
      digest: hash of the decoded pixels.
      height: height of the upright image in pixels.
      width: its width.
    """

    path: str
    split: str
    label: int
    defect: str
    digest: str
    height: int = 0
    width: int = 0
