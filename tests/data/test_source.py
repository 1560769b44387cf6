"""Tests of preparing and opening data sets: when data is prepared again, failures, concurrency."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devnet_jax.data import digests as digests_module
from devnet_jax.data import source as source_module
from devnet_jax.data.datasets import builder as dataset_builder
from devnet_jax.data.datasets.image_folder import ImageFolder
from devnet_jax.data.datasets.verify import verify as verify_dataset
from devnet_jax.data.decode import load_images
from devnet_jax.data.download import Archive
from devnet_jax.data.example import Example
from devnet_jax.data.preprocessing import Preprocessing
from devnet_jax.data.source import DATASETS, open_source
from devnet_jax.errors import UserError


def write_image(path: Path, value: int, mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (4, 4), value).save(path)
    return path


def write_parts(folder: Path, value: int = 10) -> Path:
    for n, name in enumerate(
        ("train/good/b.png", "train/good/a.png", "test/good/a.png", "test/dent/a.bmp")
    ):
        write_image(folder / name, value + n)
    write_image(folder / "ground_truth/dent/a_mask.png", 255)
    return folder


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return write_parts(tmp_path / "parts")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "prepared"


@pytest.fixture
def verifications(monkeypatch) -> list[str]:
    """The names of the data sets that were verified, thus prepared."""
    names: list[str] = []

    def verify(raw):
        names.append(raw.name)
        return verify_dataset(raw)

    monkeypatch.setattr(source_module, "verify", verify)
    return names


def open_parts(parts: Path, data_dir: Path):
    return open_source("image_folder", manual_dir=str(parts), data_dir=str(data_dir))


def all_paths(folder: Path) -> set[str]:
    """Returns the relative paths of all files and folders, except lock files."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.name != ".lock"}


def test_examples_and_bytes(parts, data_dir):
    source = open_parts(parts, data_dir)
    assert [replace(example, digest="") for example in source.examples] == [
        Example("train/good/a.png", "train", 0, "good", "", 4, 4),
        Example("train/good/b.png", "train", 0, "good", "", 4, 4),
        Example("test/dent/a.bmp", "test", 1, "dent", "", 4, 4),
        Example("test/good/a.png", "test", 0, "good", "", 4, 4),
    ]
    for i, example in enumerate(source.examples):
        # The bitmap ends in zeros, which must not be stripped.
        assert source.image_bytes(i) == (parts / example.path).read_bytes()
    mask = (parts / "ground_truth/dent/a_mask.png").read_bytes()
    assert [source.mask_bytes(i) for i in range(4)] == [b"", b"", mask, b""]
    assert source.name == "parts"
    with pytest.raises(IndexError):
        source.image_bytes(4)
    images = load_images(source, range(4), Preprocessing(8, 8))
    assert images[:, 0, 0, 0].tolist() == [11, 10, 13, 12]


def test_a_folder_may_have_no_test_images(parts, data_dir, verifications):
    shutil.rmtree(parts / "test")
    for _ in range(2):
        source = open_parts(parts, data_dir)
        assert [e.path for e in source.examples] == ["train/good/a.png", "train/good/b.png"]
        assert source.image_bytes(1) == (parts / "train/good/b.png").read_bytes()
    assert len(verifications) == 1
    # Test images that come later are found.
    write_image(parts / "test/dent/c.png", 99)
    source = open_parts(parts, data_dir)
    assert [e.path for e in source.examples][2:] == ["test/dent/c.png"]
    assert source.image_bytes(2) == (parts / "test/dent/c.png").read_bytes()


def test_trailing_zeros_are_preserved(parts, data_dir):
    np.save(parts / "test/dent/z.npy", np.zeros((4, 4), np.uint8))
    source = open_parts(parts, data_dir)
    index = [e.path for e in source.examples].index("test/dent/z.npy")
    assert source.image_bytes(index) == (parts / "test/dent/z.npy").read_bytes()


def test_unchanged_folder_is_not_prepared_again(parts, data_dir, verifications):
    first, second = open_parts(parts, data_dir), open_parts(parts, data_dir)
    assert len(verifications) == 1
    assert first.fingerprint == second.fingerprint
    assert first.examples == second.examples


def test_changed_folder_is_prepared_again(parts, data_dir, verifications):
    before = open_parts(parts, data_dir)
    write_image(parts / "test/dent/b.png", 99)
    write_image(parts / "train/good/a.png", 200, mode="RGB")
    after = open_parts(parts, data_dir)
    assert len(verifications) == 2
    assert before.fingerprint != after.fingerprint
    assert len(after.examples) == 5
    assert after.image_bytes(0) == (parts / "train/good/a.png").read_bytes()
    # The source opened earlier still reads the data that its index describes.
    assert before.image_bytes(0) != after.image_bytes(0)
    assert len(before.examples) == 4


def test_a_file_replaced_with_its_size_and_time_is_prepared_again(
    parts, data_dir, verifications, monkeypatch
):
    monkeypatch.setattr(digests_module, "_SETTLED_NS", -1)
    before = open_parts(parts, data_dir)
    path = parts / "test/dent/a.bmp"
    other = write_image(parts.parent / "other.bmp", 99)
    shutil.copystat(path, other)
    assert (other.stat().st_size, other.stat().st_mtime_ns) == (
        path.stat().st_size,
        path.stat().st_mtime_ns,
    )
    other.rename(path)
    after = open_parts(parts, data_dir)
    assert len(verifications) == 2
    assert before.fingerprint != after.fingerprint
    assert after.image_bytes(2) == path.read_bytes() != before.image_bytes(2)


def test_a_touched_or_copied_folder_has_the_same_fingerprint(parts, data_dir, verifications):
    before = open_parts(parts, data_dir)
    (parts / "train/good/a.png").touch()
    assert open_parts(parts, data_dir).fingerprint == before.fingerprint
    assert len(verifications) == 1
    shutil.copytree(parts, parts.parent / "copy/parts")
    assert open_parts(parts.parent / "copy/parts", data_dir).fingerprint == before.fingerprint
    assert len(verifications) == 2  # prepared data belongs to the path


def test_unchanged_files_are_not_read(parts, data_dir, monkeypatch):
    monkeypatch.setattr(digests_module, "_SETTLED_NS", -1)
    open_parts(parts, data_dir)
    monkeypatch.setattr(digests_module, "read_file", lambda file: pytest.fail(f"read {file}"))
    assert len(open_parts(parts, data_dir).examples) == 4


def test_names_that_are_not_utf8(parts, data_dir, caplog):
    caplog.set_level("INFO")
    folder = parts.rename(parts.with_name("parts \udcff"))
    names = ["train/good/gut_\udce4.png", "test/kr\udce4tzer/new\nline \udcff.png"]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        write_image(folder / "new.png", 99).rename(folder / name)
    (folder / "test/@eaDir").mkdir()
    for _ in range(2):
        source = open_parts(folder, data_dir)
        assert {*names} < {example.path for example in source.examples}
        assert "kr\udce4tzer" in {example.defect for example in source.examples}
    assert (
        sum("left out" in message and "@eaDir (1)" in message for message in caplog.messages) == 2
    )
    assert sum("prepared" in message for message in caplog.messages) == 1
    with pytest.raises(UserError, match=r"data_dir = .*: the path is not valid UTF-8"):
        open_parts(folder, data_dir / "\udcff")


def test_a_verification_error_leaves_no_files(parts, data_dir):
    (parts / "test/dent/a.bmp").write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        open_parts(parts, data_dir)
    assert not [p for p in all_paths(data_dir) if (data_dir / p).is_file()]


def test_a_failure_keeps_the_earlier_data(parts, data_dir, monkeypatch):
    before = open_parts(parts, data_dir)
    paths = all_paths(data_dir)
    write_image(parts / "test/dent/b.png", 99)

    def fail(self, example):
        raise OSError("no space left on device")

    monkeypatch.setattr(dataset_builder.AnomalyDatasetBuilder, "_record", fail)
    with pytest.raises(OSError, match="no space"):
        open_parts(parts, data_dir)
    assert all_paths(data_dir) == paths
    monkeypatch.undo()
    (parts / "test/dent/b.png").unlink()
    assert open_parts(parts, data_dir).fingerprint == before.fingerprint


def test_a_full_disk_is_named(parts, data_dir, monkeypatch):
    def fail(self, fingerprint, white_level):
        self.data_dir_root.mkdir(parents=True)
        raise RuntimeError(f"write() failed: No space left on device; writing {self.data_dir}")

    monkeypatch.setattr(dataset_builder.AnomalyDatasetBuilder, "write", fail)
    with pytest.raises(UserError, match=r"in '.*' \(No space left on device\).*data_dir") as raised:
        open_parts(parts, data_dir)
    assert f"'{data_dir}" in str(raised.value)
    assert not [p for p in all_paths(data_dir) if (data_dir / p).is_file()]


def test_without_a_home_the_data_dir_must_be_given(parts, data_dir, monkeypatch):
    monkeypatch.setattr(source_module.tfds.core.constants, "DATA_DIR", "~nobody-at-all/data")
    with pytest.raises(UserError, match=r"home folder is not known.*config\.dataset\.data_dir"):
        source_module.open_source("image_folder", manual_dir=str(parts))
    assert open_parts(parts, data_dir)


def test_files_that_change_while_they_are_read_are_an_error(parts, data_dir, monkeypatch):
    def verify(raw):
        examples = verify_dataset(raw)
        write_image(parts / "test/dent/a.bmp", 77)
        return examples

    monkeypatch.setattr(source_module, "verify", verify)
    with pytest.raises(UserError, match="changed while they were read"):
        open_parts(parts, data_dir)


PREPARE = """
import sys, time
from devnet_jax.data import source
from devnet_jax.data.datasets import builder as dataset_builder
record = dataset_builder.AnomalyDatasetBuilder._record
def slow(self, example):
    print("writing", flush=True)
    time.sleep(float(sys.argv[3]))
    return record(self, example)
dataset_builder.AnomalyDatasetBuilder._record = slow
opened = source.open_source("image_folder", manual_dir=sys.argv[1], data_dir=sys.argv[2])
print(len(opened.examples), "tensorflow" in sys.modules)
"""


def start(parts: Path, data_dir: Path, pause: float) -> subprocess.Popen:
    command = [sys.executable, "-c", PREPARE, str(parts), str(data_dir), str(pause)]
    repository = Path(source_module.__file__).parents[2]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(repository)}
    )


def test_a_killed_process_leaves_the_earlier_data(parts, data_dir, verifications):
    open_parts(parts, data_dir)
    write_image(parts / "test/dent/b.png", 99)
    process = start(parts, data_dir, pause=60)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.kill()
    process.communicate()
    (prepared,) = data_dir.glob("image_folder/*/[0-9]*")
    assert '"test/dent/b.png"' not in (prepared / "metadata.json").read_text()
    # The next process neither waits for the dead process's lock nor fails on its files.
    assert len(open_parts(parts, data_dir).examples) == 5
    assert not list(prepared.parent.glob(".preparing*"))


def test_data_of_a_process_killed_between_the_renames_is_restored(parts, data_dir, verifications):
    open_parts(parts, data_dir)
    (prepared,) = data_dir.glob("image_folder/*/[0-9]*")
    prepared.rename(prepared.with_name(f".{prepared.name}.replaced"))
    assert len(open_parts(parts, data_dir).examples) == 4
    assert len(verifications) == 1


def test_concurrent_processes_prepare_once(parts, data_dir):
    processes = [start(parts, data_dir, pause=0.05) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert sorted(len(lines) for lines in outputs) == [1, 1, 5]
    assert {lines[-1] for lines in outputs} == {"4 False"}


def test_two_folders_of_the_same_name_share_a_data_dir(tmp_path, data_dir, verifications):
    folders = [write_parts(tmp_path / parent / "parts", 10 * n) for n, parent in enumerate("ab")]
    for _ in range(2):
        for n, folder in enumerate(folders):
            source = open_parts(folder, data_dir)
            assert load_images(source, [1], Preprocessing(4, 4))[0, 0, 0, 0] == 10 * n
    assert len(verifications) == 2


def test_prepared_data_is_used_without_the_raw_folder(tmp_path, data_dir):
    for name in ("no/1.png", "no/2.png", "yes/1.png"):
        write_image(tmp_path / "raw" / name, 5)
    with pytest.raises(UserError, match=r"brain_mri.*manual_dir to a folder with no/ and yes/"):
        open_source("brain_mri", data_dir=str(data_dir))
    prepared = open_source("brain_mri", manual_dir=str(tmp_path / "raw"), data_dir=str(data_dir))
    opened = open_source("brain_mri", data_dir=str(data_dir))
    assert opened.examples == prepared.examples
    assert opened.image_bytes(0) == prepared.image_bytes(0)
    (target,) = data_dir.glob("brain_mri/[0-9]*")
    target.rename(target.with_name(f".{target.name}.replaced"))
    assert len(open_source("brain_mri", data_dir=str(data_dir)).examples) == 3


def test_home_and_working_directory(parts, data_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(parts.parent))
    source = open_source("image_folder", manual_dir="~/parts", data_dir="~/prepared")
    monkeypatch.chdir(parts.parent)
    relative = open_source("image_folder", manual_dir="parts", data_dir="prepared")
    assert relative.name == source.name
    monkeypatch.chdir("/")
    assert relative.image_bytes(0) == source.image_bytes(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "mvtecad"},
            r"'mvtecad': no such data set; did you mean mvtec_ad",
        ),
        ({"name": "mvtec_ad"}, "'mvtec_ad' needs a category: one of bottle, cable"),
        (
            {"name": "mvtec_ad", "category": "botle"},
            r"'botle': no such category of mvtec_ad; did you mean bottle",
        ),
        ({"name": "elpv", "category": "mono"}, "'elpv' has no categories"),
        ({"name": "image_folder"}, "manual_dir to a folder with train/good/"),
        (
            {"name": "image_folder", "manual_dir": "/nowhere/parts"},
            r"'/nowhere/parts': no such folder; expected a folder with train/good/",
        ),
        (
            {"name": "synthetic_textures", "category": "wood", "manual_dir": "/tmp"},
            "'synthetic_textures' has no raw files",
        ),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        open_source(**arguments, data_dir=str(tmp_path))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_error_of_damaged_data_names_the_folder_to_delete(parts, data_dir):
    open_parts(parts, data_dir)
    (shard,) = data_dir.rglob("*test.array_record*")
    shard.unlink()
    with pytest.raises(
        UserError, match=r"cannot open the prepared data in '.*image_folder.*'.*delete"
    ):
        open_parts(parts, data_dir)


def test_data_dir_must_be_writable(parts, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to '.*file.*data_dir"):
        open_parts(parts, tmp_path / "file")


def test_real_data_from_many_threads(shared, data_dir):
    folder = shared / "data/brain_mri"
    source = open_source("brain_mri", manual_dir=str(folder), data_dir=str(data_dir))
    assert Counter(e.label for e in source.examples) == {0: 98, 1: 155}
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.image_bytes, range(253)))
    assert read == [(folder / e.path).read_bytes() for e in source.examples]


def test_prepared_elpv_opens_fast(shared, data_dir):
    arguments = {"manual_dir": str(shared / "data/elpv"), "data_dir": str(data_dir)}
    source = open_source("elpv", **arguments)
    assert Counter((e.split, e.label) for e in source.examples) == {
        ("train", 0): 1508 - 377,
        ("test", 0): 377,
        ("test", 1): 715,
    }
    begin = time.monotonic()
    open_source("elpv", **arguments)
    assert time.monotonic() - begin < 2  # it reads no images


def test_synthetic_textures_need_no_folder(data_dir, monkeypatch):
    synthetic = DATASETS["synthetic_textures"]
    listed = synthetic.raw_examples(data_dir, "mesh")
    monkeypatch.setattr(synthetic, "raw_examples", lambda folder, category: listed[::20])
    source = open_source("synthetic_textures", category="mesh", data_dir=str(data_dir))
    assert source.name == "synthetic_textures/mesh"
    assert len(source.examples) == len(listed[::20])
    assert all(bool(source.mask_bytes(i)) == bool(e.label) for i, e in enumerate(source.examples))


def test_default_data_dir_is_that_of_tfds(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(source_module.tfds.core.constants, "DATA_DIR", str(tmp_path / "home"))
    open_source("image_folder", manual_dir=str(parts))
    assert list((tmp_path / "home/image_folder").iterdir())


def test_public_raw_data_is_downloaded_once(parts, data_dir, monkeypatch, tmp_path):
    archive = Path(shutil.make_archive(str(tmp_path / "parts"), "zip", parts))
    checksum = "sha256:" + hashlib.sha256(archive.read_bytes()).hexdigest()
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(archive.read_bytes())

    class Public(ImageFolder):
        name = "public"
        NAME_IDENTIFIES_DATA = True

        @classmethod
        def config_name(cls, folder, category):
            return None

    monkeypatch.setitem(DATASETS, "public", Public)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/parts.zip"
        monkeypatch.setattr(Public, "DOWNLOAD", (Archive(url, checksum),))
        source = open_source("public", data_dir=str(data_dir))
        assert [example.path for example in source.examples] == [
            "train/good/a.png",
            "train/good/b.png",
            "test/dent/a.bmp",
            "test/good/a.png",
        ]
        open_source("public", data_dir=str(data_dir))
        assert requests == ["/parts.zip"]
        server.shutdown()
    monkeypatch.setattr(Public, "DOWNLOAD", (Archive(url, checksum),))
    with pytest.raises(
        UserError, match=r"cannot be downloaded .*manual_dir to a folder with train/go"
    ):
        open_source("public", data_dir=str(tmp_path / "elsewhere"))
