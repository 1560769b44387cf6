"""Tests of user ids without an account or a home folder."""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from devnet_jax.errors import UserError
from devnet_jax.runtime.accounts import do_without_accounts, expand_home
from devnet_jax.runtime.workdir import Workdir


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(key: object) -> Any:
        raise KeyError(f"uid not found: {key}")

    monkeypatch.setattr(pwd, "getpwuid", look_up)
    monkeypatch.setattr(pwd, "getpwnam", look_up)


def test_sizes_of_files_need_no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    do_without_accounts()
    do_without_accounts()
    with_account = epath.Path(tmp_path / "file").stat()
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    without = epath.Path(tmp_path / "file").stat()
    assert without.length == with_account.length == 5
    assert (without.mtime, without.mode) == (with_account.mtime, with_account.mode)
    assert without.owner is None
    assert epath.Path(tmp_path).stat().is_directory
    with pytest.raises(FileNotFoundError):
        epath.Path(tmp_path / "absent").stat()


@pytest.mark.usefixtures("no_account")
def test_a_home_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    with pytest.raises(UserError, match=r"^~/run: the home folder is not known; set HOME"):
        Workdir("~/run")
    assert expand_home("/data/~") == Path("/data/~")


def test_the_home_of_nobody() -> None:
    with pytest.raises(UserError, match="~no-such-user/run: the home folder is not known"):
        Workdir("~no-such-user/run")
