"""Digests of the contents of raw files, kept on disk so that unchanged files are read once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from devnet_jax.data.decode import map_in_threads
from devnet_jax.data.paths import (
    FileState,
    UnreadableFileError,
    file_state,
    read_file,
    unreadable_files,
)

# A file may change again within one tick of the file system's clock, which is at most two seconds.
# The state of a file that has just changed is therefore not trusted.
_SETTLED_NS = 2_000_000_000


class FileDigests:
    """Digests of files by name; a file is read again only if its state has changed.

    The content decides, not the state: a folder that was copied or touched, and a network drive
    that numbers its files anew, cost one more reading but change no digest.
    """

    def __init__(self, store: Path | None = None) -> None:
        """Reads the digests that an earlier process has stored.

        Args:
          store: file that `save` has written; None, or a missing or damaged one, gives none.
        """
        self._known: dict[str, tuple[FileState, str]] = {}
        self._is_saved = False
        if store is not None:
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
                stored = json.loads(store.read_text()).items()
                self._known = {
                    name: (FileState(*state), str(digest)) for name, (state, digest) in stored
                }
                self._is_saved = True

    def of(self, files: Iterable[Path], folder: Path) -> dict[str, str]:
        """Returns the digest of each file by its posix path relative to the folder, sorted.

        Raises:
          UserError: if files cannot be read; it names them.
        """
        named = {Path(os.path.relpath(file, folder)).as_posix(): file for file in files}
        states: dict[str, FileState] = {}
        errors: dict[Path, UnreadableFileError] = {}
        for name, file in sorted(named.items()):
            try:
                states[name] = file_state(file)
            except UnreadableFileError as error:
                errors[file] = error
        now = time.time_ns()

        def digest(name: str) -> str | UnreadableFileError:
            try:
                return hashlib.blake2b(read_file(named[name]), digest_size=16).hexdigest()
            except UnreadableFileError as error:
                return error

        known = {name: self._known.get(name) for name in states}
        changed = [name for name, entry in known.items() if not entry or entry[0] != states[name]]
        digests = {name: entry[1] for name, entry in known.items() if entry}
        results = map_in_threads(digest, changed, "reading images")
        for name, result in zip(changed, results, strict=True):
            if isinstance(result, str):
                digests[name] = result
            else:
                errors[named[name]] = result
        if errors:
            raise unreadable_files([errors[file] for file in sorted(errors)])
        settled = {
            name: (state, digests[name])
            for name, state in states.items()
            if now - state.ctime_ns > _SETTLED_NS
        }
        self._is_saved = self._is_saved and settled == self._known
        self._known = settled
        return {name: digests[name] for name in states}

    def save(self, store: Path) -> None:
        """Stores the digests if they are new; does nothing if the file cannot be written."""
        if self._is_saved:
            return
        text = json.dumps(self._known, separators=(",", ":"))
        # No folder is created: another process may be replacing it.
        with contextlib.suppress(OSError):
            descriptor, temporary = tempfile.mkstemp(prefix=f".{store.name}.", dir=store.parent)
            try:
                with os.fdopen(descriptor, "w") as file:
                    file.write(text)
                Path(temporary).chmod(0o644)
                Path(temporary).replace(store)
            except OSError:
                Path(temporary).unlink(missing_ok=True)
            self._is_saved = True
