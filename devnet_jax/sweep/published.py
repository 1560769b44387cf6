"""Published results, read from published_results.json."""

from __future__ import annotations

import functools
import importlib.resources
import json
from dataclasses import dataclass
from typing import Any, Literal

Setting = Literal["general", "hard", "unsupervised"]


@dataclass(frozen=True)
class Source:
    """A publication with results.

    Attributes:
      name: short name for headings.
      citation: authors, title, venue and tables.
      url: address of the publication.
      runs: number of runs that means and standard deviations are over.
    """

    name: str
    citation: str
    url: str
    runs: int


@dataclass(frozen=True)
class PublishedValue:
    """One published result.

    Attributes:
      method: name of the method in the publication, such as DevNet or FLOS.
      mean: mean over the publication's runs.
      std: standard deviation over these runs; None if not published.
      origin: origin of the value: the publication's own method, a re-run, or another source.
      protocol: image size, batch size and number of steps of the runs.
      source: publication.
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
) -> tuple[PublishedValue, ...]:
    """Returns all values published for one row of a table, in the order of the file.

    Args:
      dataset: name of the data set, such as mvtec_ad.
      category: category of the data set; "" for the mean over all categories, or for a data set
        without categories.
      setting: "general"; "hard", in which values are means over the known classes; or
        "unsupervised", with `n_anomaly` 0.
      n_anomaly: number of labelled anomalies (shots).
      metric: "image_auroc" or "pixel_auroc".
    """
    row = "/".join(filter(None, (dataset, category)))
    return _values_by_row().get((setting, n_anomaly, metric, row), ())


def published_known_classes() -> dict[str, list[str]]:
    """Returns the known classes that published means of the hard setting are over, by data set or
    "data set/category"."""
    return _read_file()["known_classes"]


@functools.cache
def _read_file() -> dict[str, Any]:
    file = importlib.resources.files(__package__).joinpath("published_results.json")
    return json.loads(file.read_text(encoding="utf-8"))


@functools.cache
def _values_by_row() -> dict[tuple[str, int, str, str], tuple[PublishedValue, ...]]:
    """Returns the values of the file by setting, number of shots, metric and row."""
    content = _read_file()
    sources = {
        name: Source(name, about["citation"], about["url"], about["runs"])
        for name, about in content["sources"].items()
    }
    values: dict[tuple[str, int, str, str], tuple[PublishedValue, ...]] = {}
    for table in content["tables"]:
        source = sources[table["source"]]
        methods = content["sources"][source.name]["methods"]
        for row, figures in table["rows"].items():
            key = (table["setting"], table["n_anomaly"], table["metric"], row)
            values[key] = values.get(key, ()) + tuple(
                PublishedValue(method, *_mean_and_std(figure), **methods[method], source=source)
                for method, figure in zip(table["methods"], figures, strict=True)
                if figure is not None
            )
    return values


def _mean_and_std(figure: float | list[float]) -> tuple[float, float | None]:
    if isinstance(figure, list):
        mean, std = figure
        return mean, std
    return figure, None
