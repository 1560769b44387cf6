"""The results folder of a review: the table of labels, and folders of pictures laid out by it."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from etils import epath

from devnet_jax.data.datasets.builder import GOOD
from devnet_jax.data.datasets.label_list import COLUMNS, UNLABELLED, UNNAMED
from devnet_jax.data.paths import is_made_by_machine, name_some
from devnet_jax.data.tables import read_table
from devnet_jax.errors import UserError, printable
from devnet_jax.review.journal import Journal, Label
from devnet_jax.runtime.io import read_json, write_csv, write_json
from devnet_jax.runtime.workdir import Workdir

logger = logging.getLogger(__name__)

FOLDER = "review"  # of the results, in the workdir
_MAX_NAME_BYTES = 240  # file systems allow 255, and masks have a longer name
_MAX_CUT_BYTES = 120  # of a name that is replaced, without its hash
_MAX_PATH_BYTES = 1024  # Linux allows 4096, with the folder
_MAX_SUFFIX = 10  # characters
# Names that Windows cannot have, also with a suffix: a share may be on such a server.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE | re.DOTALL)


class Row(NamedTuple):
    """A row of the table of labels.

    Attributes:
      path: path of the picture, relative to the folder of the pictures or absolute.
      label: "good", "anomaly", "unlabelled" for pictures that train as normal, or "".
      defect: kind of the defect, or "".
      split: "train", "test" or "".
      mask: path of the mask, as `path`, or "".
    """

    path: str
    label: str = ""
    defect: str = ""
    split: str = ""
    mask: str = ""


class Results:
    """Paths of the files in the results folder of a review."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / "journal.jsonl"
        self.labels = path / "labels.csv"
        self.masks = path / "masks"
        self.detector = path / "detector"
        self.address = path / ".address"
        self.pictures = path / "pictures.json"  # the folder that the table's paths start from

    @classmethod
    def of(cls, workdir: Workdir, output: str | None) -> Results:
        """Returns the folder of `--output`, by default review/ in the workdir."""
        chosen = Workdir(output, "--output") if output else Workdir(workdir.path / FOLDER)
        if not chosen.is_local:
            raise UserError(
                f"--output={chosen.path}: no folder of this machine; give one with --output"
            )
        return cls(Path(chosen.path))


def relative_path(path: Path, folder: Path) -> str:
    """Returns the path of a file as in the table: relative to a folder, or absolute outside it."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 (links stay)
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def write_labels(results: Results, folder: Path, rows: Iterable[Row]) -> None:
    """Writes the table of labels atomically; `label_list.read_list` reads it.

    Args:
      results: paths of the results folder.
      folder: absolute path of the folder that the rows' paths start from.
      rows: the pictures; those to skip have no label.
    """
    write_json(epath.Path(results.pictures), {"folder": str(folder)})
    write_csv(
        epath.Path(results.labels),
        COLUMNS,
        (
            (
                PurePosixPath(row.path),
                row.label,
                row.defect,
                row.split,
                PurePosixPath(row.mask) if row.mask else "",
            )
            for row in rows
        ),
    )


def read_labels(results: Results) -> tuple[Path, list[Row]]:
    """Returns the folder of the pictures and the rows of the table.

    If the review was killed, the table may lack the last labels; they come from the journal.

    Raises:
      UserError: if there is no review, it is at work, or a file is damaged.
    """
    if not results.labels.exists():
        raise UserError(
            f"--output={results.path}: no labels are there (no labels.csv); give the pictures to "
            "label as --input"
        )
    folder = Path(str(read_json(epath.Path(results.pictures)).get("folder", "")))
    cells = (row.cells for row in read_table(results.labels).rows)
    rows = [Row(*(row.get(name, "") for name in COLUMNS)) for row in cells]
    rows = [row._replace(path=str(PurePosixPath(row.path))) for row in rows]  # without "./"
    is_complete = not results.journal.exists() or (
        results.journal.stat().st_mtime_ns <= results.labels.stat().st_mtime_ns
    )
    if is_complete:
        return folder, rows
    with Journal(results.journal) as journal:
        by_path = {row.path: row for row in rows}
        labels, masks = journal.labels, journal.masks
        for name in journal.names:
            label, mask = labels.get(name, Label("")), masks.get(name)
            by_path[name] = by_path.get(name, Row(name))._replace(
                label="" if label.label == "skip" else label.label,
                defect=label.defect,
                mask=relative_path(results.path / mask, folder) if mask else "",
            )
    return folder, list(by_path.values())


def commands(results: Results) -> list[str]:
    """Returns the commands to go on with when the detector of a review is written."""
    program = ("python", "-m", "devnet_jax.main")
    workdir = f"--workdir={results.detector}"
    return [
        shlex.join((*program, *arguments))
        for arguments in (
            ("--mode=predict", workdir, "--input=PICTURES", "--output=predictions"),
            ("--mode=export", workdir, "--output=model.devnet"),
            ("--mode=review", workdir, "--input=NEW_PICTURES"),
        )
    ]


def require_empty(out: Path) -> None:
    """Raises `UserError` unless a folder is empty, or can be created."""
    Workdir(out, "--export_folders").require_writable()
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--export_folders={out}: the folder is not empty; choose another")


def export_folders(out: Path, folder: Path, rows: Sequence[Row], *, copies: bool = False) -> str:
    """Lays labelled pictures out as configs/folder.py reads them: train/good/, train/<kind>/.

    Rows of the split "test" go to test/, masks to ground_truth/. The files are links, or copies if
    the pictures are on another file system. Names that a file system or the data set `image_folder`
    would not take are replaced. Pictures that are gone and single pages of files are left out, and
    named in the log.

    Args:
      out: folder that is empty or does not exist.
      folder: folder that the rows' paths start from.
      rows: labelled pictures; those without a label are left out.
      copies: True for copies instead of links.

    Returns:
      One line that says what was laid out.

    Raises:
      UserError: if the folder is not empty or cannot be written; it is then as it was.
    """
    require_empty(out)
    out = Path(os.path.realpath(out))
    temporary = out.parent / f".{out.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process
    try:
        temporary.mkdir(parents=True)
        counts = _lay_out(temporary, folder, rows, copies)
        os.replace(temporary, out)  # noqa: PTH105 (an empty folder is replaced)
    except OSError as error:
        raise UserError(
            f"--export_folders={out}: {error.strerror}: {error.filename}; free disk space, or"
            " choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    listed = ", ".join(f"{place} ({n})" for place, n in sorted(counts.items()))
    return printable(f"{counts.total()} pictures are laid out in {out}: {listed or 'no labels'}")


def _lay_out(out: Path, folder: Path, rows: Sequence[Row], copies: bool) -> Counter[str]:
    """Writes the files; returns the number of pictures by their folder below `out`."""
    counts: Counter[str] = Counter()
    taken: set[str] = set()
    left_out = []
    for row in rows:
        if row.label in ("", UNLABELLED):
            continue
        picture, mask = folder / row.path, folder / row.mask
        if not os.path.isfile(picture):  # noqa: PTH113 (Path.is_file may raise)
            left_out.append(f"'{row.path}'")
            continue
        kind = GOOD if row.label == GOOD else safe_name(row.defect or UNNAMED, is_kind=True)
        name = _unique_name(row.path, kind, taken)
        place = f"{'test' if row.split == 'test' else 'train'}/{kind}"
        _put(picture, out / place / name, copies)
        counts[place] += 1
        if row.mask and kind != GOOD and os.path.isfile(mask):  # noqa: PTH113
            of_picture = out / "ground_truth" / kind / name
            _put(mask, of_picture.with_name(f"{of_picture.stem}_mask{mask.suffix}"), copies)
    if left_out:
        logger.warning(
            "%d pictures are left out, as they are gone or pages of files: %s",
            len(left_out),
            name_some(left_out),
        )
    return counts


def _put(source: Path, target: Path, copy: bool) -> None:
    """Links or copies a file; copies it if the target's file system is another or has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy and source.stat().st_dev == target.parent.stat().st_dev:
        try:
            target.symlink_to(os.path.abspath(source))  # noqa: PTH100 (links stay)
            return
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
    shutil.copy2(source, target)


def _unique_name(path: str, kind: str, taken: set[str]) -> PurePosixPath:
    """Returns the relative path of a picture in the folder of its kind.

    Args:
      path: path as in the table.
      kind: name of the folder.
      taken: earlier paths without suffixes, in lower case; the new one is added. Masks are told
        apart by the stems of their pictures, and some file systems ignore case.
    """
    given = PurePosixPath(path)
    name = PurePosixPath(*map(safe_name, given.parts))
    is_long = len(os.fsencode(name)) > _MAX_PATH_BYTES
    if given.is_absolute() or ".." in given.parts or is_long:
        name = PurePosixPath(_hash(str(given.parent)), name.name)
    if _stem(kind, name) in taken:
        name = name.with_name(f"{_cut(name.stem)}-{_hash(path)}{name.suffix}")
    taken.add(_stem(kind, name))
    return name


def _stem(kind: str, name: PurePosixPath) -> str:
    return f"{kind}/{name.with_suffix('')}".casefold()


def safe_name(name: str, *, is_kind: bool = False) -> str:
    """Returns a name for a folder or file, which is the name itself wherever possible.

    In others, wrong characters are replaced by "_", what is too long is cut, and a hash is added,
    so that different names stay different.

    Args:
      name: part of a path, or kind of a defect.
      is_kind: True for a kind, whose folder must not be that of the good pictures.
    """
    cleaned = "".join("_" if _is_wrong(char) else char for char in name).rstrip(" .")
    is_safe = (
        cleaned == name != ""
        and len(os.fsencode(name)) <= _MAX_NAME_BYTES
        and not is_made_by_machine(name)  # is not listed
        and not _DEVICES.fullmatch(name)
        and not (is_kind and name.lower() == GOOD)
    )
    if is_safe:
        return name
    suffix = "" if is_kind else PurePosixPath(cleaned).suffix
    suffix = suffix if len(suffix) <= _MAX_SUFFIX else ""
    stem = _cut(cleaned.removesuffix(suffix).lstrip(" .~$"))
    return f"{stem or '_'}-{_hash(name)}{suffix}"


def _is_wrong(char: str) -> bool:
    """True for separators, and characters that cannot be printed; bytes of other encodings stay."""
    return char in "/\\" or (printable(char) != char and not "\udc80" <= char <= "\udcff")


def _cut(name: str) -> str:
    return os.fsencode(name)[:_MAX_CUT_BYTES].decode("utf-8", "ignore")


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
