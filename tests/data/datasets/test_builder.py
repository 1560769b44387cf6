"""Tests of the builders: reading raw layouts, verifying, fingerprints, shards."""

import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import train_test_split

from devnet_jax.data.datasets import DATASETS
from devnet_jax.data.datasets.brain_mri import BrainMri
from devnet_jax.data.datasets.builder import LazyBytes, RawDataset, RawExample, _shards
from devnet_jax.data.datasets.elpv import Elpv
from devnet_jax.data.datasets.image_folder import ImageFolder
from devnet_jax.data.datasets.mvtec_ad import MvtecAd
from devnet_jax.data.datasets.verify import verify
from devnet_jax.data.download import files_checksum
from devnet_jax.data.paths import list_files
from devnet_jax.errors import UserError


def write_image(path: Path, size=(6, 4), mode="RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, len(path.name)).save(path)
    return path


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A small image folder: 3 + 2 good images, 2 scratches with masks, 1 dent without a mask."""
    folder = tmp_path / "parts"
    for name in ("train/good/0.png", "train/good/1.png", "train/good/lot2/0.png"):
        write_image(folder / name)
    for name in ("test/good/0.png", "test/good/1.bmp"):
        write_image(folder / name)
    for name in ("test/scratch/0.png", "test/scratch/lot2/0.png", "test/dent/0.png"):
        write_image(folder / name)
    write_image(folder / "ground_truth/scratch/0_mask.bmp", mode="L")
    write_image(folder / "ground_truth/scratch/lot2/0.png", mode="L")
    return folder


def listed(folder: Path) -> list[tuple]:
    return [(e.path, e.split, e.label, e.defect) for e in ImageFolder.raw_examples(folder, None)]


def test_image_folder_lists_classes_and_finds_masks(parts):
    assert sorted(listed(parts)) == [
        ("test/dent/0.png", "test", 1, "dent"),
        ("test/good/0.png", "test", 0, "good"),
        ("test/good/1.bmp", "test", 0, "good"),
        ("test/scratch/0.png", "test", 1, "scratch"),
        ("test/scratch/lot2/0.png", "test", 1, "scratch"),
        ("train/good/0.png", "train", 0, "good"),
        ("train/good/1.png", "train", 0, "good"),
        ("train/good/lot2/0.png", "train", 0, "good"),
    ]
    masks = {e.path: e.mask for e in ImageFolder.raw_examples(parts, None) if e.mask}
    assert masks == {
        "test/scratch/0.png": parts / "ground_truth/scratch/0_mask.bmp",
        "test/scratch/lot2/0.png": parts / "ground_truth/scratch/lot2/0.png",
    }


MADE_BY_MACHINES = (".trash", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "@__thumb")
MADE_BY_MACHINES += ("@SynoResource", "TheVolumeSettingsFolder", "found.001", "FOUND.000", "~$1")


@pytest.mark.parametrize("name", MADE_BY_MACHINES)
def test_what_machines_make_is_no_image_and_no_class(parts, name):
    before = listed(parts)
    (parts / "test/good/.DS_Store").write_bytes(b"x")
    (parts / "test/good/desktop.ini").write_bytes(b"x")
    for folder in ("train", "train/good", "test", "ground_truth", "ground_truth/scratch"):
        write_image(parts / folder / name / "0.png")
    assert listed(parts) == before


@pytest.mark.parametrize("name", ["thumbs", "found.1", "found.0000", "~1", "lost", "a~$1"])
def test_what_people_may_name_is_a_class(parts, name):
    write_image(parts / "test" / name / "0.png")
    assert (f"test/{name}/0.png", "test", 1, name) in listed(parts)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("test/good", "test/Good"),
        ("train/good", "train/GOOD"),
        ("train", "Train"),
        ("test", "TEST"),
        ("ground_truth", "Ground_Truth"),
    ],
)
def test_names_of_folders_in_another_case(parts, right, wrong):
    expected = listed(parts)
    (parts / wrong).symlink_to(parts / right)  # as on a file system that ignores case
    assert listed(parts) == expected
    (parts / wrong).unlink()
    (parts / right).rename(parts / wrong)
    message = rf"folder '.*/{wrong}' differs .*: rename it to '.*/{right}'$"
    with pytest.raises(UserError, match=message):
        listed(parts)
    (parts / right).mkdir()
    with pytest.raises(UserError, match=message):
        listed(parts)


def masks_of(folder):
    examples = ImageFolder.raw_examples(folder, None)
    return {e.path: e.mask.name for e in examples if e.mask}


def test_annotations_beside_masks_are_left_out(parts, caplog):
    caplog.set_level("INFO")
    expected = masks_of(parts)
    scratch = parts / "ground_truth/scratch"
    (scratch / "0_mask.json").write_text("{}")
    (scratch / "0.txt").touch()
    (parts / "ground_truth/dent").mkdir()
    (parts / "ground_truth/dent/0.xml").write_text("<a/>")
    assert masks_of(parts) == expected
    assert any(
        re.match(r"2 files in .*no masks: '0\.txt', '0_mask\.json'$", m) for m in caplog.messages
    )
    (scratch / "0_mask.bmp").rename(scratch / "0_mask")
    assert masks_of(parts)["test/scratch/0.png"] == "0_mask"


def test_empty_annotations_are_skipped_and_empty_pictures_are_errors(parts, caplog):
    (parts / "train/good/0.txt").touch()
    with caplog.at_level("INFO"):
        assert len(verify(ImageFolder.read_raw(parts, None))) == 8
    assert "skipped 1 files that are not images" in caplog.text
    (parts / "train/good/5.PNG").touch()
    with pytest.raises(UserError, match=r"5\.PNG' is empty \(0 bytes\)"):
        verify(ImageFolder.read_raw(parts, None))


def test_names_of_masks_in_another_case(parts):
    scratch = parts / "ground_truth/scratch"
    (scratch / "0_mask.bmp").rename(scratch / "0_MASK.BMP")
    assert masks_of(parts)["test/scratch/0.png"] == "0_MASK.BMP"
    for name in ("A.png", "a.png", "b.png"):
        write_image(parts / "test/scratch" / name)
    for name in ("A_mask.png", "B_mask.png"):
        write_image(scratch / name)
    masks = masks_of(parts)
    assert masks["test/scratch/A.png"] == "A_mask.png"
    assert "test/scratch/a.png" not in masks  # the mask is that of A
    assert masks["test/scratch/b.png"] == "B_mask.png"
    write_image(scratch / "b_MASK.png")
    with pytest.raises(UserError, match="two masks for the image 'b': 'B_mask' and 'b_MASK'"):
        masks_of(parts)


def test_misplaced_pictures_are_named(parts, caplog):
    before = listed(parts)
    write_image(parts / "train/a.png")
    for n in range(12):
        write_image(parts / f"test/{n:02}.png")
    (parts / "test/notes.txt").touch()
    assert listed(parts) == before
    in_train, in_test = caplog.messages
    assert re.fullmatch(r"1 pictures lie .*/train': move .*/train/good': 'a\.png'", in_train)
    assert re.search(
        r"^12 pictures .*/test/good' or '.*/test/<defect>': '00.png', .* and 2 more$", in_test
    )
    for name in ("train", "."):
        (parts / "train/good").rename(parts / "moved")
        shutil.rmtree(parts / "train")
        write_image(parts / name / "b.png")
        with pytest.raises(UserError, match=r"no folder.*; 1 pictures lie.*train/good': 'b\.png'"):
            listed(parts)
        (parts / "train").mkdir(exist_ok=True)
        (parts / "moved").rename(parts / "train/good")


@pytest.mark.parametrize("name", ["masks", "mask", "GroundTruth", "ground-truth", "Ground Truth"])
def test_folders_of_masks_in_the_wrong_place_are_named(parts, caplog, name):
    (parts / "ground_truth").rename(parts / name)
    assert all(e.mask is None for e in ImageFolder.raw_examples(parts, None))
    (message,) = caplog.messages
    assert re.match(rf"2 masks in '.*/{name}' are not used, for example 'scratch/0_mask", message)
    for place in ("test", "train", "test/scratch", "train/good/lot2"):
        shutil.copytree(parts / name, parts / place / name)
        with pytest.raises(UserError, match=rf"{place}/{name}.* holds masks .*ground_truth/<def"):
            listed(parts)
        shutil.rmtree(parts / place / name)
    # A defect that is named so has masks, too.
    write_image(parts / "test" / name / "0.png")
    write_image(parts / "ground_truth" / name / "0.png")
    assert any(e.defect == name and e.mask for e in ImageFolder.raw_examples(parts, None))


def test_masks_that_fit_no_class_or_lie_beside_the_pictures_are_named(parts, caplog):
    write_image(parts / "ground_truth/0_mask.png")
    write_image(parts / "ground_truth/Scratch/0_mask.png")
    write_image(parts / "test/dent/0_mask.png")
    write_image(parts / "test/dent/_mask.png")
    listed(parts)
    flat, unknown, beside = caplog.messages
    assert re.match(r"1 masks lie directly in '.*ground_truth'.*'0_mask\.png'", flat)
    assert re.match(r"1 masks in '.*/Scratch' are not used", unknown)
    assert re.match(r"1 files in '.*dent' are named like masks .*: '0_mask\.png'$", beside)


def make_special(path: Path, kind: str) -> None:
    """Makes a pipe, a link to a device, or a link that leads nowhere, to itself, or to a folder."""
    if kind == "pipe":
        os.mkfifo(path)
    else:
        targets = {"device": "/dev/zero", "nowhere": "/nowhere/x", "loop": path.name}
        path.symlink_to(targets[kind])


@pytest.mark.parametrize("kind", ["pipe", "device", "nowhere", "loop"])
@pytest.mark.parametrize(
    "name", ["train/good/z.png", "test/dent/z", "test/hole", "ground_truth/scratch/lot2/0.png"]
)
def test_files_that_cannot_be_read_are_named(parts, kind, name):
    (parts / name).unlink(missing_ok=True)
    make_special(parts / name, kind)
    if name == "test/hole" and kind == "pipe":  # not in a class folder, and not named as a picture
        return
    reason = {"pipe": "a pipe", "device": "a device", "nowhere": "'/nowhere/x'", "loop": "itself"}
    with pytest.raises(UserError, match=rf"{name}': it is .*{reason[kind]}.*; restore or remove"):
        ImageFolder.read_raw(parts, None)


def test_many_files_that_cannot_be_read_are_one_error(parts):
    for n in range(13):
        make_special(parts / f"train/good/z{n:02}.png", "nowhere")
    with pytest.raises(UserError, match=r"^13 files cannot.*z00\.png.*z09.png'.* and 3 more$"):
        ImageFolder.read_raw(parts, None)


def test_a_folder_that_may_not_be_looked_at_is_named(parts, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"cannot read '.*parts.*': Permission denied; change"):
        ImageFolder.read_raw(parts, None)


def test_a_file_that_vanishes_is_named(parts, monkeypatch):
    raw = ImageFolder.read_raw(parts, None)
    (parts / "test/dent/0.png").unlink()
    with pytest.raises(UserError, match=r"dent/0\.png': No such file"):
        verify(raw)
    monkeypatch.setattr(ImageFolder, "raw_examples", lambda folder, category: raw.examples)
    with pytest.raises(UserError, match=r"dent/0\.png': No such file.*; restore or remove it"):
        ImageFolder.read_raw(parts, None)
    with pytest.raises(UserError, match=r"dent/0\.png': No such file"):
        list(_shards(raw.examples))


def remove_files(folder: Path) -> None:
    for file in list_files(folder):
        file.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "train").rename(f / "training"), r"no folder '.*train/good': expected"),
        (lambda f: remove_files(f / "test/good"), r"no images in '.*test/good'"),
        (lambda f: remove_files(f / "train/good"), r"no images in '.*train/good'"),
        (lambda f: remove_files(f / "test/dent"), r"no images in '.*test/dent'"),
        (
            lambda f: write_image(f / "ground_truth/scratch/0_mask.png"),
            r"two masks.*0_mask\.bmp' and '.*0_mask\.png",
        ),
    ],
)
def test_errors_of_wrong_layouts(parts, change, message):
    change(parts)
    with pytest.raises(UserError, match=message):
        listed(parts)


@pytest.mark.parametrize(
    ("removed", "counts"),
    [
        (["test/good"], {("train", 0): 3, ("test", 1): 3}),
        (["test/scratch", "test/dent"], {("train", 0): 3, ("test", 0): 2}),
        (["test"], {("train", 0): 3}),
    ],
)
def test_an_image_folder_needs_no_test_images(parts, removed, counts):
    for name in removed:
        shutil.rmtree(parts / name)
    examples = verify(ImageFolder.read_raw(parts, None))
    assert Counter((e.split, e.label) for e in examples) == counts


def test_defects_of_own_pictures_may_train(parts):
    write_image(parts / "train/dent/new.png")
    write_image(parts / "train/crack/0.png")
    write_image(parts / "ground_truth/dent/new_mask.png")
    raw = ImageFolder.raw_examples(parts, None)
    trained = {(e.path, e.label, e.defect) for e in raw if e.split == "train" and e.label}
    assert trained == {("train/dent/new.png", 1, "dent"), ("train/crack/0.png", 1, "crack")}
    with pytest.raises(UserError, match=r"train/crack'.*normal images only: move it to"):
        MvtecAd.raw_examples(parts.rename(parts.with_name("bottle")), "bottle")


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (["test/good"], r"no folder '.*test/good': expected train/good/, test/good/"),
        (["test/scratch", "test/dent"], "no folder of anomalous images in '.*test': expected"),
        (["test"], r"no folder '.*test/good': expected"),
    ],
)
def test_other_data_sets_need_test_images(parts, removed, message):
    for name in removed:
        shutil.rmtree(parts / name)
    with pytest.raises(UserError, match=message):
        MvtecAd.raw_examples(parts.rename(parts.with_name("bottle")), "bottle")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"train": 0, "test": 1}, "set: there are no normal images to test with: add some"),
        ({"train": 0, "test": 0}, "set: there are no anomalous images: add some"),
    ],
)
def test_a_part_of_the_test_may_be_missing_only_where_the_data_set_says_so(parts, labels, message):
    image = parts / "test/good/0.png"
    examples = [
        RawExample(split, label, ("good", "dent")[label], image, split=split)
        for split, label in labels.items()
    ]
    with pytest.raises(UserError, match=message):
        verify(RawDataset("set", examples, ""))
    assert len(verify(RawDataset("set", examples, "", needs_test_images=False))) == 2
    with pytest.raises(UserError, match="no normal images to train with"):
        verify(RawDataset("set", examples[1:], "", needs_test_images=False))


def test_masks_without_an_image_are_a_warning(parts, caplog):
    write_image(parts / "ground_truth/dent/7_mask.png")
    listed(parts)
    assert re.search(r"1 masks belong to no image.*dent.*7_mask\.png", caplog.text)


def test_mvtec_ad_reads_the_folder_of_the_data_set_or_of_the_category(parts):
    category = parts.rename(parts.with_name("bottle"))
    both = [MvtecAd.read_raw(folder, "bottle") for folder in (category, category.parent)]
    assert both[0].examples == both[1].examples
    assert len(both[0].examples) == 8
    with pytest.raises(UserError, match=r"no folder '.*/cable': expected.*mvtec"):
        MvtecAd.raw_examples(category.parent, "cable")


def test_brain_mri_as_published(shared):
    raw = BrainMri.read_raw(shared / "data/brain_mri", None)
    examples = verify(raw)
    assert Counter((e.split, e.label, e.defect) for e in examples) == {
        ("train", 0, "good"): 73,
        ("test", 0, "good"): 25,
        ("test", 1, "tumor"): 155,
    }
    names = sorted(f"no/{p.name}" for p in (shared / "data/brain_mri/no").iterdir())
    train, test = train_test_split(names, test_size=0.25, random_state=42)
    assert [e.path for e in examples if e.split == "train"] == sorted(train)
    assert [e.path for e in examples if (e.split, e.label) == ("test", 0)] == sorted(test)


def test_brain_mri_nested_as_in_the_archive(tmp_path):
    for name in ("no/1.png", "no/2.png", "yes/1.png"):
        write_image(tmp_path / "brain_tumor_dataset" / name)
    paths = [e.path for e in BrainMri.raw_examples(tmp_path, None)]
    assert paths == ["no/1.png", "no/2.png", "yes/1.png"]


def test_elpv_as_published(shared):
    examples = Elpv.raw_examples(shared / "data/elpv", None)
    assert Counter(e.defect for e in examples) == {"good": 588 + 920, "mono": 313, "poly": 402}


def test_elpv_checksum_is_that_of_its_files(shared):
    (archive,) = Elpv.DOWNLOAD
    assert archive.checksum == f"files:{files_checksum(shared / 'data/elpv')}"


def test_elpv_skips_uncertain_cells_and_checks_its_table(tmp_path):
    for i in range(4):
        write_image(tmp_path / f"images/{i}.png")
    table = tmp_path / "labels.csv"
    table.write_text(
        "images/0.png  0.0  mono\nimages/1.png 0.333 poly\n\nimages/2.png 1.0 poly\n"
        "images/3.png 1.0 mono\n"
    )
    examples = Elpv.raw_examples(tmp_path, None)
    assert [(e.path, e.label, e.defect) for e in examples] == [
        ("images/0.png", 0, "good"),
        ("images/2.png", 1, "poly"),
        ("images/3.png", 1, "mono"),
    ]
    table.write_text("images/0.png 0.0 mono\nimages/9.png 1.0 mono\n")
    with pytest.raises(UserError, match=r"labels\.csv', line 2: no file '.*9\.png'"):
        Elpv.raw_examples(tmp_path, None)
    table.write_text("images/0.png,0.0,mono\n")
    with pytest.raises(UserError, match=r"labels\.csv', line 1: expected a path"):
        Elpv.raw_examples(tmp_path, None)
    table.unlink()
    with pytest.raises(UserError, match=r"no file '.*labels\.csv'"):
        Elpv.raw_examples(tmp_path, None)


def test_a_quarter_of_normal_images_without_a_split_is_held_out(parts):
    image = parts / "test/good/0.png"
    raw = RawDataset(
        "set",
        [RawExample(f"n{i:02d}", 0, "good", image) for i in range(20)]
        + [RawExample("a", 1, "crack", image)],
        "",
    )
    examples = verify(raw)
    assert [e.split for e in examples] == ["train"] * 15 + ["test"] * 6
    for split in ("train", "test"):
        paths = [e.path for e in examples if e.split == split and e.label == 0]
        assert paths == sorted(paths)


def test_files_that_are_not_images_are_skipped_and_counted(parts, caplog):
    (parts / "train/good/notes.txt").write_text("not an image")
    (parts / "train/good/data.bin").write_bytes(b"\xd0\xcf\x11\xe0")
    with caplog.at_level("INFO"):
        examples = verify(ImageFolder.read_raw(parts, None))
    assert len(examples) == 8
    assert "skipped 2 files that are not images" in caplog.text
    assert "Thumbs.db" not in caplog.text


def test_digests_depend_on_the_pixels_only(parts, tmp_path):
    files = {
        "a": write_image(tmp_path / "1.png"),
        "b": write_image(tmp_path / "2.bmp"),
        "c": write_image(tmp_path / "3.png", size=(4, 6)),
        "d": write_image(tmp_path / "four.png"),
        "e": write_image(tmp_path / "5.png", mode="L"),
    }
    raw = RawDataset(
        "set",
        [RawExample(name, int(name == "a"), "good", file) for name, file in files.items()],
        "",
    )
    digest = {e.path: e.digest for e in verify(raw)}
    assert digest["a"] == digest["b"]
    assert len(set(digest.values())) == 4


def test_counts_other_than_the_published_ones_are_a_warning(parts, caplog, monkeypatch):
    counts = {None: {"good": 5, "scratch": 3, "dent": 1, "hole": 4}}
    monkeypatch.setattr(ImageFolder, "PUBLISHED_COUNTS", counts)
    assert len(verify(ImageFolder.read_raw(parts, None))) == 8
    (record,) = [r for r in caplog.records if "published" in r.getMessage()]
    assert record.getMessage().endswith(
        "the number of images differs from the published data set: 2 of class 'scratch'"
        " (published: 3), 0 of class 'hole' (published: 4)"
    )


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "test/dent/0.png").write_bytes(b""), r"test/dent/0\.png' is empty"),
        (lambda f: truncate(f / "test/dent/0.png"), r"test/dent/0\.png' is truncated"),
        (
            lambda f: write_image(f / "ground_truth/scratch/0_mask.bmp", size=(4, 6)),
            r"mask '.*0_mask\.bmp' is 4×6 .* '.*test/scratch/0\.png' is 6×4",
        ),
        (
            lambda f: (f / "ground_truth/scratch/0_mask.bmp").write_text("text"),
            r"0_mask\.bmp' is damaged",
        ),
        (
            lambda f: (f / "test/dent/0.png").rename(f / "test/dent/0").write_text("text"),
            r"none of the files of class 'dent' in test is an image",
        ),
    ],
)
def test_verification_errors(parts, change, message):
    change(parts)
    with pytest.raises(UserError, match=message) as error:
        verify(ImageFolder.read_raw(parts, None))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "is_different"),
    [
        (lambda f: None, False),
        (lambda f: (f / "readme.txt").write_text("not read"), False),
        (lambda f: write_image(f / "train/good/9.png"), True),
        (lambda f: (f / "train/good/0.png").unlink(), True),
        (lambda f: (f / "train/good/0.png").touch(), False),
        (lambda f: write_image(f / "train/good/0.png", mode="RGBA"), True),
        (lambda f: write_image(f / "ground_truth/scratch/0_mask.bmp", mode="RGB"), True),
        (lambda f: (f / "ground_truth/scratch/0_mask.bmp").unlink(), True),
        (lambda f: (f / "test/dent").rename(f / "test/hole"), True),
    ],
)
def test_fingerprint_depends_on_the_files_that_are_read(parts, change, is_different):
    before = ImageFolder.read_raw(parts, None).fingerprint
    change(parts)
    assert (ImageFolder.read_raw(parts, None).fingerprint != before) == is_different


def test_fingerprint_depends_on_tables_and_sources_of_lazy_images(tmp_path):
    strip = write_image(tmp_path / "strip.png")
    table = tmp_path / "table.csv"
    table.write_text("x")

    class Strips(ImageFolder):
        name = "strips"

        @classmethod
        def raw_examples(cls, folder, category):
            return [RawExample("strip-0", 0, "good", LazyBytes(strip.read_bytes, (strip,)))]

        @classmethod
        def index_files(cls, folder):
            return [table]

    fingerprints = {Strips.read_raw(tmp_path, None).fingerprint}
    for file in (strip, table):
        file.write_bytes(file.read_bytes() + b"0")
        fingerprints.add(Strips.read_raw(tmp_path, None).fingerprint)
    assert len(fingerprints) == 3


def test_lazy_images_are_made_once(parts):
    calls = []

    def make() -> bytes:
        calls.append(1)
        return (parts / "test/good/0.png").read_bytes()

    lazy = LazyBytes(make)
    raw = RawDataset(
        "set",
        [RawExample(f"n{i}", 0, "good", lazy) for i in range(4)]
        + [RawExample("a", 1, "crack", lazy, mask=lazy)],
        "",
    )
    examples = verify(raw)
    assert len(calls) == 6
    assert all(isinstance(e.image, bytes) for e in examples)


def test_shards_keep_the_order_and_the_size_limit():
    rng = np.random.default_rng(0)
    examples = [RawExample(str(i), 0, "good", bytes(rng.integers(1, 60))) for i in range(50)]
    shards = list(_shards(examples, 100))
    assert [e for shard in shards for e in shard] == examples
    assert all(len(s) == 1 or sum(len(e.image) for e in s) <= 100 for s in shards)
    assert len(shards) < 30


def test_every_builder_is_registered_by_name_and_has_a_layout():
    for name, builder in DATASETS.items():
        assert builder.name == name
        assert builder.LAYOUT or not builder.NEEDS_FOLDER
        assert list(builder.CATEGORIES) == [c.name for c in builder.BUILDER_CONFIGS]
    assert len(MvtecAd.CATEGORIES) == 15
