"""Tests of HyperKvasir: examples of its folders."""

from pathlib import Path

import pytest
from PIL import Image

from devnet_jax.data.datasets.hyper_kvasir import HyperKvasir
from devnet_jax.data.datasets.verify import verify
from devnet_jax.errors import UserError

FILES = (
    "upper-gi-tract/anatomical-landmarks/pylorus/a.jpg",
    "upper-gi-tract/anatomical-landmarks/pylorus/b.jpg",
    "upper-gi-tract/anatomical-landmarks/z-line/c.jpg",
    "upper-gi-tract/pathological-findings/barretts/d.jpg",
    "upper-gi-tract/pathological-findings/esophagitis-b-d/e.jpg",
    "upper-gi-tract/pathological-findings/esophagitis-b-d/f.jpg",
)


def write_images(folder: Path) -> None:
    for name in (*FILES, "lower-gi-tract/pathological-findings/polyps/g.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4)).save(folder / name)
    (folder / "image-labels.csv").write_text("Video file,Organ,Finding,Classification\n")


@pytest.mark.parametrize("nested", ["", "labeled-images"])
def test_landmarks_are_normal_and_findings_are_classes(tmp_path, nested):
    write_images(tmp_path / nested)
    raw = HyperKvasir.read_raw(tmp_path, None)
    classes = ["good", "good", "good", "barretts", "esophagitis-b-d", "esophagitis-b-d"]
    assert [(e.path, e.defect) for e in raw.examples] == list(zip(FILES, classes, strict=True))
    assert [e.label for e in raw.examples] == [0, 0, 0, 1, 1, 1]
    assert {e.split for e in raw.examples} == {None}
    assert len(verify(raw)) == len(FILES)


def test_files_outside_the_class_folders_are_skipped(tmp_path):
    write_images(tmp_path)
    (tmp_path / "upper-gi-tract/pathological-findings/Thumbs.db").write_bytes(b"\xd0\xcf")
    assert [e.path for e in HyperKvasir.raw_examples(tmp_path, None)] == list(FILES)


@pytest.mark.parametrize("group", ["anatomical-landmarks", "pathological-findings"])
def test_errors_of_wrong_layouts(tmp_path, group):
    write_images(tmp_path)
    (tmp_path / "upper-gi-tract" / group).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"no images .*{group}': expected .*simula"):
        HyperKvasir.raw_examples(tmp_path, None)
