"""Tests of the synthetic textures: determinism, masks, and difficulty."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from devnet_jax.data.datasets import synthetic_textures
from devnet_jax.data.datasets.drawing import defects, surfaces
from devnet_jax.data.datasets.drawing.defects import DEFECTS
from devnet_jax.data.datasets.drawing.surfaces import FAMILIES, SIZE
from devnet_jax.data.datasets.synthetic_textures import SyntheticTextures


def examples(category):
    return {e.path: e for e in SyntheticTextures.raw_examples(None, category)}


def draw(part) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(part.make())))


def test_counts():
    listed = examples("wood").values()
    assert len(FAMILIES) >= 4
    assert len(DEFECTS) >= 4
    assert sum(e.split == "train" and e.label == 0 for e in listed) == 200
    assert sum(e.split == "test" and e.label == 0 for e in listed) == 40
    assert sum(e.split == "test" and e.label == 1 for e in listed) == 12 * len(DEFECTS)
    assert all((e.mask is None) == (e.label == 0) for e in listed)
    assert {e.defect for e in listed} == {"good", *DEFECTS}


def test_an_image_depends_on_its_name_only():
    names = ["train/good/000.png", "train/good/001.png", "test/good/000.png", "test/hole/000.png"]
    first = [examples("leather")[name].image.make() for name in names]
    synthetic_textures._draw.cache_clear()
    again = [examples("leather")[name].image.make() for name in reversed(names)]
    assert first == again[::-1]
    assert len(set(first)) == len(names)
    assert examples("wood")[names[0]].image.make() != first[0]


@pytest.mark.parametrize("category", FAMILIES)
def test_images_and_masks(category):
    drawn = examples(category)
    good = draw(drawn["train/good/000.png"].image)
    assert good.shape == (SIZE, SIZE, 3)
    # Neither over- nor underexposed, and with some texture.
    assert 30 < good.mean() < 225
    assert good.std() > 8
    for defect in DEFECTS:
        example = drawn[f"test/{defect}/000.png"]
        image, mask = draw(example.image).astype(float), draw(example.mask)
        assert mask.shape == (SIZE, SIZE)
        assert set(np.unique(mask)) == {0, 255}
        # Large enough to be visible at 96×96 pixels, small enough for a defect.
        assert 0.002 < (mask > 0).mean() < 0.25, defect
        assert image.std() > 8


@pytest.mark.parametrize("defect", DEFECTS)
def test_masks_cover_the_changed_pixels(defect):
    rng = np.random.default_rng(3)
    surface = surfaces.draw_surface("mesh", rng)
    changed, mask = defects.draw_defect(defect, surface, rng)
    difference = np.abs(changed - surface).max(-1)
    # Only the shadow of a thread and the faint margin of a stain may be outside the mask.
    assert difference[mask].mean() > 5 * difference[~mask].mean()
    assert difference[mask].mean() > 0.05


def test_simple_statistics_do_not_detect_the_defects():
    listed = examples("fabric").values()
    tested = [e for e in listed if e.split == "test"]
    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(lambda e: draw(e.image), tested))).astype(np.float32)
    labels = [e.label for e in tested]
    grey = images.mean(-1)
    gradient = np.hypot(*np.gradient(grey, axis=(1, 2)))
    statistics = {
        "mean": grey.mean((1, 2)),
        "standard deviation": grey.std((1, 2)),
        "darkest": grey.min((1, 2)),
        "brightest": grey.max((1, 2)),
        "steepest": gradient.max((1, 2)),
        "mean gradient": gradient.mean((1, 2)),
        "saturation": images.std(-1).mean((1, 2)),
    }
    for name, values in statistics.items():
        auroc = roc_auc_score(labels, values)
        assert 0.28 < auroc < 0.72, name
