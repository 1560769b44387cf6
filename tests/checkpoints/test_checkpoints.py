"""Checkpoints: after damage, a failed save or a kill, a run resumes from the newest intact one."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from devnet_jax.checkpoints.checkpoints import Checkpoints
from devnet_jax.checkpoints.checksums import FILENAME, find_fault, read_checksums
from devnet_jax.config import Config
from devnet_jax.distributed.sharding import abstract_replicated, replicated
from devnet_jax.errors import UserError
from devnet_jax.launchers.local import free_port
from tests.conftest import REPOSITORY

# Errors in threads of TensorStore must not go unnoticed.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")

SETTINGS = Config().to_dict()


def variables(value: float) -> dict[str, Any]:
    return {
        "params": {"kernel": np.full((2, 5), value, np.float32), "bias": np.float32(-value)},
        "batch_stats": {"mean": np.arange(3, dtype=np.float32) + np.float32(value)},
    }


def optimizer(step: int) -> dict[str, Any]:
    return {"state": ({"mu": np.full(4, step / 3, np.float32)},), "step": np.int32(step)}


def save(checkpoints: Checkpoints, step: int, **metrics: float) -> None:
    checkpoints.save(step, variables(step), optimizer(step), SETTINGS, metrics or None)


def assert_restores(checkpoints: Checkpoints, step: int, chosen: int | None = None) -> None:
    """Asserts that the restored arrays equal those saved at `step`, bit for bit.

    Args:
      checkpoints: folder to restore from.
      step: expected step.
      chosen: step to ask for; by default the newest.
    """
    want = {"variables": variables(step), "optimizer": optimizer(step)}
    abstract = {name: abstract_replicated(tree) for name, tree in want.items()}
    found = checkpoints.restore(Config(), chosen, **abstract)
    jax.tree.map(np.testing.assert_array_equal, found, want)
    for leaf in jax.tree.leaves(found):
        assert leaf.sharding == replicated()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints 10 and 20; do not write to it."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    with Checkpoints(epath.Path(folder)) as checkpoints:
        save(checkpoints, 10)
        save(checkpoints, 20)
    return folder


@pytest.fixture
def copy(two: Path, tmp_path: Path) -> Path:
    return shutil.copytree(two, tmp_path / "checkpoints")


@pytest.fixture
def only(copy: Path) -> Path:
    """A folder with checkpoint 20 only."""
    shutil.rmtree(copy / "10")
    return copy


def test_the_day_of_a_save_is_kept(copy: Path) -> None:
    file = copy / "20" / FILENAME
    saved = json.loads(file.read_text())["date"]
    assert abs(datetime.date.fromisoformat(saved) - datetime.date.today()).days <= 1
    with Checkpoints(epath.Path(copy)) as checkpoints:
        assert checkpoints.date(20) == saved
        content = json.loads(file.read_text())
        del content["date"], content["sha256"]  # as earlier versions wrote it
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        file.write_text(json.dumps({**content, "sha256": digest}))
        assert checkpoints.date(20) is None
        assert checkpoints.latest_step() == 20


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[Callable[[Path], None], str] = {
    truncate: "bytes instead of",
    zero: "has changed",
    flip: "has changed",
    Path.unlink: "is missing",
}


def damage_settings(folder: Path) -> None:
    flip(folder / "settings" / "metadata")


def test_restores_saved_arrays_after_their_buffers_were_donated(tmp_path: Path) -> None:
    step_on = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    state = jax.device_put((variables(3), optimizer(3)), replicated())
    with Checkpoints(epath.Path(tmp_path)) as checkpoints:
        assert checkpoints.latest_step() is None
        trained_on = threading.Event()
        checkpoints._background.submit(trained_on.wait)  # delays the save
        checkpoints.save(3, state[0], state[1], SETTINGS)
        for _ in range(3):
            state = step_on(state)
        jax.block_until_ready(state)
        trained_on.set()
        assert checkpoints.latest_step() == 3
        assert_restores(checkpoints, 3)


def test_a_checkpoint_with_a_damaged_file_is_skipped(
    two: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [name for name in files_of(two / "20") if name != FILENAME]
    assert len(names) > 15
    for i, (name, damage) in enumerate((n, d) for n in names for d in DAMAGES):
        copy = shutil.copytree(two, tmp_path / str(i))
        damage(copy / "20" / name)
        before = files_of(copy)
        caplog.clear()
        with Checkpoints(epath.Path(copy)) as checkpoints:
            assert checkpoints.latest_step() == 10
            (warning,) = caplog.messages
            assert warning.startswith(f"{copy}/20: checkpoint skipped: {name} ")
            assert DAMAGES[damage] in warning
            if name == "settings/metadata":  # once, to save time
                assert_restores(checkpoints, 10)
        assert files_of(copy) == before  # reading repairs and deletes nothing
        with (
            Checkpoints(epath.Path(copy)) as checkpoints,
            pytest.raises(UserError, match=r"/20: the checkpoint is damaged \(" + name),
        ):
            checkpoints.restore(Config(), 20, variables=abstract_replicated(variables(20)))
        shutil.rmtree(copy / "10")
        with Checkpoints(epath.Path(copy)) as checkpoints:
            with pytest.raises(UserError, match=f"/20: the checkpoint is damaged .{name} .*intact"):
                checkpoints.restore(Config(), variables=abstract_replicated(variables(20)))
            with pytest.raises(UserError, match=f"/20: the checkpoint is damaged .{name} "):
                checkpoints.latest_step()
        shutil.rmtree(copy)


def test_a_checkpoint_with_an_extra_file_is_skipped(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (copy / "20" / "variables" / "d" / "extra").touch()
    with Checkpoints(epath.Path(copy)) as checkpoints:
        assert checkpoints.latest_step() == 10
    assert "/20: checkpoint skipped: variables/d/extra is not listed" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [truncate, zero, flip, lambda path: path.write_text("[]"), lambda path: path.write_text("")],
)
def test_a_checkpoint_with_damaged_checksums_is_skipped(
    copy: Path, damage: Callable[[Path], None]
) -> None:
    damage(copy / "20" / FILENAME)
    with Checkpoints(epath.Path(copy)) as checkpoints:
        assert_restores(checkpoints, 10)
    shutil.rmtree(copy / "10")
    with (
        Checkpoints(epath.Path(copy)) as checkpoints,
        pytest.raises(UserError, match=r"/20: the checkpoint is damaged \(checksums.json cannot"),
    ):
        checkpoints.latest_step()


def test_a_flipped_bit_in_the_checksums_is_detected(copy: Path) -> None:
    path = copy / "20" / FILENAME
    content = path.read_bytes()
    for position in range(0, len(content), 5):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        assert read_checksums(epath.Path(copy / "20")) is None, (position, damaged)
    path.write_bytes(content)
    assert find_fault(epath.Path(copy / "20")) is None


def test_an_incomplete_checkpoint_does_not_count(
    only: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (only / "20" / FILENAME).unlink()  # as if killed just before it was written
    with Checkpoints(epath.Path(only)) as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(UserError, match=r"/20: .*checksums.json is missing.*train again"):
            checkpoints.restore(Config(), variables=abstract_replicated(variables(20)))
    assert f"{only}/20: checkpoint skipped: checksums.json is missing" in caplog.text
    with Checkpoints(epath.Path(only)) as checkpoints:
        save(checkpoints, 5)
        assert checkpoints.latest_step() == 5
        assert_restores(checkpoints, 5)
    assert f"{only}/20: checkpoint deleted: its steps are trained again" in caplog.text
    assert [path.name for path in only.iterdir()] == ["5"]


def test_training_replaces_a_damaged_checkpoint(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage_settings(copy / "20")
    with Checkpoints(epath.Path(copy), for_training=True) as checkpoints:
        assert checkpoints.latest_step() == 10
        assert {path.name for path in copy.iterdir()} == {"10", "20"}  # deleted by `save` only
        save(checkpoints, 20)
        checkpoints.wait()
        assert checkpoints.latest_step() == 20
    assert f"{copy}/20: checkpoint deleted: its steps are trained again" in caplog.text
    with Checkpoints(epath.Path(copy)) as checkpoints:
        assert_restores(checkpoints, 20)
        # A save of the same or an earlier step does nothing.
        before = (copy / "20" / FILENAME).stat().st_mtime_ns
        save(checkpoints, 20)
        save(checkpoints, 15)
    assert (copy / "20" / FILENAME).stat().st_mtime_ns == before
    assert {path.name for path in copy.iterdir()} == {"10", "20"}


def test_temporary_folders_are_ignored_and_deleted_when_training_begins(copy: Path) -> None:
    shutil.move(copy / "20", copy / "20.orbax-checkpoint-tmp")
    with Checkpoints(epath.Path(copy)) as checkpoints:
        assert checkpoints.latest_step() == 10
    assert {path.name for path in copy.iterdir()} == {"10", "20.orbax-checkpoint-tmp"}
    with Checkpoints(epath.Path(copy), for_training=True) as checkpoints:
        assert checkpoints.latest_step() == 10
    assert [path.name for path in copy.iterdir()] == ["10"]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    losses = {1: 0.5, 2: 0.25, 3: 0.75, 4: 0.25, 5: 0.5, 6: 1.0, 7: 2.0}
    kept: dict[int, set[str]] = {}
    with Checkpoints(epath.Path(tmp_path), keep=2, keep_best="loss") as checkpoints:
        for step, loss in losses.items():
            save(checkpoints, step, loss=loss, other=-step)
            checkpoints.wait()
            kept[step] = {path.name for path in tmp_path.iterdir()}
        assert checkpoints.best_step() == 4
        assert_restores(checkpoints, 4, chosen=4)
    assert kept[3] == {"2", "3"}
    assert kept[4] == {"3", "4"}
    assert kept[7] == {"4", "6", "7"}
    # A resumed run still knows the best checkpoint, which is verified like any other.
    with Checkpoints(epath.Path(tmp_path), keep=1, keep_best="loss") as checkpoints:
        save(checkpoints, 8, loss=0.5)
    assert {path.name for path in tmp_path.iterdir()} == {"4", "8"}
    damage_settings(tmp_path / "4")
    with Checkpoints(epath.Path(tmp_path), keep_best="loss") as checkpoints:
        assert checkpoints.best_step() == 8
    with Checkpoints(epath.Path(tmp_path), keep_best="auroc") as checkpoints:
        assert checkpoints.best_step() is None


def test_metrics_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with Checkpoints(epath.Path(tmp_path)) as checkpoints:
        with pytest.raises(ValueError, match="finite"):
            save(checkpoints, 1, loss=float("nan"))
        assert checkpoints.latest_step() is None


@contextlib.contextmanager
def file_sizes_limited(size: int) -> Iterator[None]:
    """Limits the size of written files; Python ignores SIGXFSZ, so writing more fails."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


TOO_LARGE = (
    r"/30: the checkpoint could not be saved \(File too large\); that of step 20 is intact; free "
    r"disk space .* then run the same command again"
)


def save_too_much(checkpoints: Checkpoints) -> None:
    noise = np.random.default_rng(0).random((40, 1 << 12))
    with file_sizes_limited(1 << 14):
        checkpoints.save(30, dict(enumerate(noise)), optimizer(30), SETTINGS)
        checkpoints.latest_step()  # waits for the save, and does not raise its error


def require_no_traceback(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "Traceback" not in caplog.text + capfd.readouterr().err


def assert_earlier_checkpoints_are_intact(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"10", "20"}
    with Checkpoints(epath.Path(folder), for_training=True) as checkpoints:
        assert_restores(checkpoints, 20)
        save(checkpoints, 30)
    with Checkpoints(epath.Path(folder)) as checkpoints:
        assert_restores(checkpoints, 30)


def test_the_error_of_a_failed_save_is_raised_by_the_next_save(
    copy: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with Checkpoints(epath.Path(copy)) as checkpoints:
        save_too_much(checkpoints)
        assert checkpoints.latest_step() == 20
        with pytest.raises(UserError, match=TOO_LARGE):
            save(checkpoints, 40)
    require_no_traceback(caplog, capfd)
    assert_earlier_checkpoints_are_intact(copy)


def test_the_error_of_a_failed_save_is_raised_on_exit(
    copy: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(UserError, match=TOO_LARGE),
        Checkpoints(epath.Path(copy)) as checkpoints,
    ):
        save_too_much(checkpoints)
    require_no_traceback(caplog, capfd)
    assert_earlier_checkpoints_are_intact(copy)


def test_a_failed_save_does_not_hide_another_error(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted() -> None:
        with Checkpoints(epath.Path(copy)) as checkpoints:
            save_too_much(checkpoints)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "/30: the checkpoint could not be saved (File too large)" in caplog.text


def test_a_full_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs permission to mount a tmpfs")
    try:
        with Checkpoints(epath.Path(disk / "checkpoints")) as checkpoints:
            save(checkpoints, 10)
            noise = np.random.default_rng(0).random((40, 1 << 12))  # more than the disk holds
            checkpoints.save(20, dict(enumerate(noise)), optimizer(20), SETTINGS)
            with pytest.raises(UserError, match=r"No space left on device.*step 10 is intact"):
                checkpoints.wait()
            # The half-written checkpoint was deleted, which freed space.
            save(checkpoints, 20)
            assert_restores(checkpoints, 20)
            # Neither the first folder nor the checksums can be written.
            content = bytes(1 << 20)
            with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                while content:
                    content = content[filler.write(content) :]
            save(checkpoints, 30)
            with pytest.raises(UserError, match=r"No space left on device.*step 20 is intact"):
                checkpoints.wait()
            assert_restores(checkpoints, 20)
        require_no_traceback(caplog, capfd)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_programming_error_is_not_reported_as_a_disk_error(tmp_path: Path) -> None:
    with Checkpoints(epath.Path(tmp_path)) as checkpoints:
        checkpoints.save(1, variables(1), optimizer(1), {"seed": object()})
        with pytest.raises(TypeError, match="JSON"):
            checkpoints.wait()
    assert not any(tmp_path.iterdir())


def test_restoring_does_not_unpickle(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, fail)
    with Checkpoints(epath.Path(two)) as checkpoints:
        assert_restores(checkpoints, 20)


SAVE_UNTIL_KILLED = """
    import sys
    from etils import epath
    from devnet_jax.checkpoints.checkpoints import Checkpoints
    from tests.checkpoints.test_checkpoints import assert_restores, save

    with Checkpoints(epath.Path(sys.argv[1]), keep_best="loss", for_training=True) as checkpoints:
        assert not list(checkpoints.folder.glob("*tmp*"))
        step = checkpoints.latest_step() or 0
        if step:
            assert_restores(checkpoints, step)
        print(step, flush=True)
        while True:
            step += 1
            save(checkpoints, step, loss=step % 5)
"""


def script(text: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(text)]


@pytest.mark.slow
def test_resumes_from_the_newest_checkpoint_after_a_kill_at_any_moment(tmp_path: Path) -> None:
    moments = random.Random(0)
    starts = []
    for _ in range(12):
        process = subprocess.Popen(
            [*script(SAVE_UNTIL_KILLED), str(tmp_path)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        time.sleep(moments.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert line, err
        starts.append(int(line))
        with Checkpoints(epath.Path(tmp_path)) as checkpoints:
            step = checkpoints.latest_step()
            if step is not None:
                assert step >= starts[-1]
                assert_restores(checkpoints, step)
    assert len(set(starts)) > 6  # the kills came during saves
    with Checkpoints(epath.Path(tmp_path), keep_best="loss", for_training=True) as checkpoints:
        last = checkpoints.latest_step()
        assert last is not None
        save(checkpoints, last + 1, loss=9)
    left = {int(path.name) for path in tmp_path.iterdir()}  # there are no other folders
    assert {last, last + 1} <= left
    assert len(left) <= 3
    assert all(find_fault(epath.Path(tmp_path) / str(step)) is None for step in left)


TWO_PROCESSES = """
    import os, sys
    import jax
    jax.distributed.initialize(
        coordinator_address=sys.argv[2], num_processes=2, process_id=int(sys.argv[3]),
        cluster_detection_method="deactivate",
    )
    import pathlib
    from etils import epath
    from devnet_jax.checkpoints import checkpoints as module
    from devnet_jax.checkpoints.checkpoints import Checkpoints
    from devnet_jax.distributed.cluster import barrier
    from devnet_jax.distributed.sharding import abstract_replicated, replicated
    from devnet_jax.errors import UserError
    from tests.checkpoints.test_checkpoints import *

    written = []
    write = module.write_checksums
    module.write_checksums = lambda *given: (written.append(given), write(*given))
    folder = pathlib.Path(sys.argv[1])
    assert jax.process_count() == 2 and jax.local_device_count() == 2 and jax.device_count() == 4
    with Checkpoints(epath.Path(folder), for_training=True) as checkpoints:
        assert checkpoints.latest_step() is None
        for step in (10, 20):
            state = jax.device_put((variables(step), optimizer(step)), replicated())
            checkpoints.save(step, *state, SETTINGS, {"loss": step})
        checkpoints.wait()
        assert (folder / "20" / "checksums.json").exists()
        assert_restores(checkpoints, 20)
    assert len(written) == (2 if jax.process_index() == 0 else 0), written

    barrier("before the damage")
    if jax.process_index() == 0:
        damage_settings(folder / "20")
    barrier("after it")
    with Checkpoints(epath.Path(folder)) as checkpoints:
        assert checkpoints.latest_step() == 10
        assert_restores(checkpoints, 10)
    try:
        with Checkpoints(epath.Path(folder)) as checkpoints:
            save_too_much(checkpoints)
    except UserError as error:
        print(error)
    if jax.process_index() == 0:
        damage_settings(folder / "10")
    with Checkpoints(epath.Path(folder)) as checkpoints:
        try:
            checkpoints.latest_step()
        except UserError as error:
            print(error)
    jax.distributed.shutdown()
"""


def test_with_two_processes_one_saves_and_both_restore(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [*script(TWO_PROCESSES), str(tmp_path / "checkpoints"), address, str(i)],
            cwd=REPOSITORY,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "2", "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    for process, (out, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
        assert "/30: the checkpoint could not be saved (File too large); that of step 10" in out
        assert "/10: the checkpoint is damaged (settings/metadata has changed)" in out
    assert "checkpoint skipped" in outputs[0][1]  # logged by rank zero only
    assert "checkpoint skipped" not in outputs[1][1]
