"""Lists and reads raw files, and names the files that are written after them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path, PurePath
from typing import NamedTuple

from devnet_jax.errors import UserError

logger = logging.getLogger(__name__)

# Names, in lower case, that only machines give: file servers, desktops, archives, interpreters.
# What such a folder contains (thumbnails, deleted and earlier versions) is not the user's data.
_MADE_BY_MACHINES = frozenset(
    {
        *("@eadir", "#recycle", "#snapshot", "@tmp", "@sharebin", "@synoresource"),  # Synology
        *("@recycle", "@recently-snapshot", "@__thumb"),  # QNAP
        *("thevolumesettingsfolder", "picasa.ini", "zbthumbnail.info"),  # Drobo, Picasa, Zoner
        *("$recycle.bin", "recycler", "system volume information"),  # Windows
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),
        *("__macosx", "network trash folder", "temporary items", "icon\r"),  # macOS
        *("lost+found", "~snapshot", "__pycache__"),  # Linux, NetApp, Python
    }
)

# The same, with a number or a name: folders of chkdsk, locks of Office.
_MADE_WITH_NAME = re.compile(r"found\.\d{3}|~\$.*", re.IGNORECASE | re.DOTALL)

_MAX_NAMED = 10  # names in one message
_MAX_NAME_BYTES = 240  # file systems allow 255, and temporary files have a longer name
_MAX_PATH_BYTES = 1024  # Linux allows 4096, with the folder that the files are written to

# The files and folders that listings have left out, for `log_left_out`.
_left_out: ContextVar[set[Path] | None] = ContextVar("left_out", default=None)


class UnreadableFileError(UserError):
    """Raised for a file that cannot be read.

    Attributes:
      file: path of the file.
      reason: the cause, such as "No such file or directory".
    """

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"cannot read '{file}': {reason}")
        self.file = file
        self.reason = reason


class FileState(NamedTuple):
    """The marks of a file that change when its content does.

    The change time is set by the system alone, so that it tells a file that was replaced together
    with its size and modification time, as by cp -p or rsync -t.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def is_made_by_machine(name: str) -> bool:
    """Returns True for hidden files and folders, and for those that only machines make."""
    return (
        name.startswith(".")
        or name.lower() in _MADE_BY_MACHINES
        or _MADE_WITH_NAME.fullmatch(name) is not None
    )


def leave_out(path: Path) -> bool:
    """Returns True if a listing leaves a file or folder out because of its name; notes it then."""
    if not is_made_by_machine(path.name):
        return False
    left_out = _left_out.get()
    if left_out is not None:
        left_out.add(path)
    return True


@contextlib.contextmanager
def log_left_out(where: object) -> Iterator[None]:
    """Logs at the end of the block, in one line, the names that listings in it have left out.

    Args:
      where: folder or arguments that were listed, for the message.
    """
    token = _left_out.set(set())
    try:
        yield
        names = Counter(
            "._*" if path.name.startswith("._") else path.name for path in _left_out.get() or ()
        )
    finally:
        _left_out.reset(token)
    if names:
        listed = [f"{name} ({count})" for name, count in sorted(names.items())]
        logger.info("%s: left out as hidden or made by a machine: %s", where, name_some(listed))


def name_some(names: Sequence[str]) -> str:
    """Returns at most ten names as text, and the number of the others."""
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def list_files(folder: Path) -> list[Path]:
    """Returns all files below a folder, sorted by their posix path; see `walk`.

    The list is empty if the folder does not exist.

    Raises:
      UserError: if a folder cannot be listed.
    """
    files = [parent / name for parent, names in walk(folder) for name in names]
    return sorted(files, key=Path.as_posix)


def walk(top: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yields a folder and all folders below it, each with its file names.

    Names that are hidden or made by machines are left out. Links to folders are followed, except to
    those above `top`. Each folder is visited once, so circular links are safe. Broken links count
    as files, so that reading them tells what is wrong.

    Raises:
      UserError: if a folder cannot be listed.
    """
    if top.is_symlink() and not os.path.exists(top):  # noqa: PTH110 (Path.exists may raise)
        file_state(top)  # raises
    visited = set()
    for folder in Path(os.path.realpath(top)).parents:
        with contextlib.suppress(OSError):
            visited.add(_inode(folder))
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            if (inode := _inode(folder)) in visited:
                continue
            visited.add(inode)
            with os.scandir(folder) as entries:
                is_folder = {entry.name: _is_folder(entry) for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UserError(f"cannot list the folder '{folder}': {error.strerror}") from error
        # Sorted: of several links to one folder, the same one is followed every time.
        names = [name for name in sorted(is_folder) if not leave_out(folder / name)]
        yield folder, [name for name in names if not is_folder[name]]
        waiting += [folder / name for name in reversed(names) if is_folder[name]]


def _inode(folder: Path) -> tuple[int, int]:
    """Returns the numbers that tell a folder from all others."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or to where nobody may look
        return False


def file_state(file: Path) -> FileState:
    """Returns the state of a file, without opening it.

    Raises:
      UnreadableFileError: if there is no such file, or it is no regular file. Reading a pipe or a
        device might never end.
    """
    try:
        status = file.stat()
    except OSError as error:
        raise UnreadableFileError(file, _reason(file, error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableFileError(file, f"it is {_kind(status.st_mode)}, not a file")
    return FileState(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def read_file(file: Path) -> bytes:
    """Returns the content of a file; raises `UnreadableFileError` if it cannot be read."""
    file_state(file)
    try:
        return file.read_bytes()
    except OSError as error:
        raise UnreadableFileError(file, _reason(file, error)) from error


def read_lines(table: Path) -> list[str]:
    """Returns the lines of a table in UTF-8; file names in it that are not valid keep their bytes.

    Raises:
      UnreadableFileError: if the file cannot be read.
    """
    text = read_file(table).decode("utf-8", "surrogateescape")
    return re.split(r"\r\n?|\n", text.removeprefix("\ufeff"))


def unreadable_files(errors: Sequence[UnreadableFileError]) -> UserError:
    """Returns one error for several files that cannot be read; it names at most ten."""
    if len(errors) == 1:
        return UserError(f"{errors[0]}; restore or remove it")
    named = [f"'{error.file}' ({error.reason})" for error in errors]
    return UserError(
        f"{len(errors)} files cannot be read; restore or remove them: {name_some(named)}"
    )


def _reason(file: Path, error: OSError) -> str:
    """Returns the cause of an error of the system; says where a broken link leads."""
    if error.errno == errno.ELOOP:
        return "it is a link that leads back to itself"
    with contextlib.suppress(OSError):
        if isinstance(error, FileNotFoundError):
            return f"it is a link to '{file.readlink()}', which does not exist"
    return error.strerror or type(error).__name__


def _kind(mode: int) -> str:
    """Returns the name of the kind of a file that is not a regular one."""
    kinds = {
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "a special file")


@contextlib.contextmanager
def permission_errors() -> Iterator[None]:
    """Raises `UserError` for files and folders in the block that this user may not look at."""
    try:
        yield
    except PermissionError as error:
        raise UserError(
            f"cannot read '{error.filename}': {error.strerror}; change the permissions"
        ) from error


def require_utf8(path: str | os.PathLike[str], setting: str) -> None:
    """Raises `UserError` for a path that is not valid UTF-8, which some libraries cannot open.

    Args:
      path: path of files that TensorStore or ArrayRecord write.
      setting: name of the setting or flag, for the message.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{setting} = '{path}': the path is not valid UTF-8; rename its folders or choose"
            " another"
        ) from None


def inner_folder(folder: Path, name: str) -> Path:
    """Returns `folder/name` if it exists, as in copies nested one level deeper, else `folder`."""
    return folder / name if (folder / name).is_dir() else folder


def output_name(name: str, suffix: str) -> PurePath:
    """Returns the relative path of a file that is written for an input file.

    Equal for equal names only. It is the name and the suffix, except that parts too long for a file
    system are replaced by their hashes, and so are folders that would lead out of the output's.

    Args:
      name: path of the input file, which tells it from all others.
      suffix: ending of the output's name, such as ".jpg".
    """
    *folders, file = PurePath(name).parts
    # There may be a folder a.png.jpg next to a.png, whose output is a.png.jpg. So "_" is appended
    # to the names of folders that end in the suffix.
    ending = re.compile(rf"({re.escape(suffix)}_*)\Z", re.IGNORECASE)
    renamed = [_shorten(ending.sub(r"\1_", folder)) for folder in folders]
    output = _shorten(f"{file}{suffix}", suffix)
    leads_out = PurePath(name).is_absolute() or ".." in folders
    if leads_out or len(os.fsencode(PurePath(*renamed, output))) > _MAX_PATH_BYTES:
        renamed = [_hash(renamed)]
    return PurePath(*renamed, output)


def _shorten(name: str, suffix: str = "") -> str:
    """Returns a file name, or if it is too long for a file system, its hash and a suffix."""
    return name if len(os.fsencode(name)) <= _MAX_NAME_BYTES else _hash([name]) + suffix


def _hash(names: Iterable[str]) -> str:
    return hashlib.sha256(b"/".join(map(os.fsencode, names))).hexdigest()
