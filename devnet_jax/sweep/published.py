"""Published results to compare with: the figures are in published_results.json, with sources."""

from __future__ import annotations

import functools
import importlib.resources
import json
from dataclasses import dataclass
from typing import Any, Literal

Setting = Literal["general", "hard", "unsupervised"]


@dataclass(frozen=True)
class Source:
    """Where figures were published.

    Attributes:
      name: short, for headings.
      citation: authors, title, place, tables.
      url: of the publication.
      runs: how many runs a mean and its standard deviation are over.
    """

    name: str
    citation: str
    url: str
    runs: int


@dataclass(frozen=True)
class Published:
    """One published figure.

    Attributes:
      method: as the source calls it, such as DevNet or FLOS.
      mean: over the source's runs.
      std: over the source's runs; None where it was not published.
      origin: how the source came by it: its own method, a re-run, taken over from elsewhere.
      protocol: image size, batch and steps that it was measured with.
      source: where it was published.
    """

    method: str
    mean: float
    std: float | None
    origin: str
    protocol: str
    source: Source


def published_values(
    dataset: str,
    category: str = "",
    *,
    setting: Setting,
    n_anomaly: int,
    metric: str = "image_auroc",
) -> tuple[Published, ...]:
    """All figures published for one row of a table, in the order of the file; () if there are none.

    Args:
      dataset: its name, such as mvtec_ad.
      category: of a data set that is divided; "" is the mean over all categories, or the whole of
        an undivided data set.
      setting: in the hard one the figures are means over the known classes; the unsupervised one
        has 0 labelled anomalies.
      n_anomaly: labelled anomalies (shots).
      metric: image_auroc or pixel_auroc.
    """
    row = "/".join(filter(None, (dataset, category)))
    return _tables().get((setting, n_anomaly, metric, row), ())


def published_known_classes() -> dict[str, list[str]]:
    """The known classes that the hard setting's published means are over, by data set or data
    set/category."""
    return _content()["known_classes"]


@functools.cache
def _content() -> dict[str, Any]:
    file = importlib.resources.files(__package__).joinpath("published_results.json")
    return json.loads(file.read_text(encoding="utf-8"))


@functools.cache
def _tables() -> dict[tuple[str, int, str, str], tuple[Published, ...]]:
    """The file's figures by setting, shots, metric and row."""
    content = _content()
    sources = {
        name: Source(name, about["citation"], about["url"], about["runs"])
        for name, about in content["sources"].items()
    }
    values: dict[tuple[str, int, str, str], tuple[Published, ...]] = {}
    for table in content["tables"]:
        source = sources[table["source"]]
        methods = content["sources"][source.name]["methods"]
        for row, figures in table["rows"].items():
            key = (table["setting"], table["n_anomaly"], table["metric"], row)
            values[key] = values.get(key, ()) + tuple(
                Published(method, *_mean_and_std(figure), **methods[method], source=source)
                for method, figure in zip(table["methods"], figures, strict=True)
                if figure is not None
            )
    return values


def _mean_and_std(figure: float | list[float]) -> tuple[float, float | None]:
    if isinstance(figure, list):
        mean, std = figure
        return mean, std
    return figure, None
