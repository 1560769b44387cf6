"""User ids without an account or a home folder, as containers have them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from etils import epath
from etils.epath import stat_utils

from devnet_jax.errors import UserError


def expand_home(path: epath.PathLike) -> Path:
    """Returns a path with a leading ~ replaced by the home folder.

    Raises:
      UserError: if the home folder is not known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"{os.fspath(path)}: the home folder is not known; set HOME, or give the path without ~"
        ) from None


def do_without_accounts() -> None:
    """Lets etils describe files whose owner or group has no account.

    Orbax, TFDS and our checksums ask etils for the sizes of files, but etils also looks up the
    names of the owner and the group, and raises KeyError if there are none
    (github.com/google/etils/issues/790). The call in TFDS cannot be avoided, so etils's method is
    replaced; where accounts exist it does what it did.
    """
    backend: Any = type(epath.backend.os_backend)
    stat = backend.stat
    if getattr(stat, "does_without_accounts", False):
        return

    def stat_without_accounts(self: Any, path: epath.PathLike) -> stat_utils.StatResult:
        try:
            return stat(self, path)
        except KeyError:
            status = Path(path).stat()
            return stat_utils.StatResult(
                is_directory=Path(path).is_dir(),
                length=status.st_size,
                mtime=int(status.st_mtime),
                mode=status.st_mode,
            )

    stat_without_accounts.does_without_accounts = True  # type: ignore[attr-defined]
    backend.stat = stat_without_accounts
