"""Tests of downloading raw data: failing servers, damaged archives, killed processes."""

import errno
import hashlib
import io
import logging
import os
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from devnet_jax.data import download as download_module
from devnet_jax.data.download import Archive, Download, fetch, files_checksum
from devnet_jax.errors import UserError

LAYOUT = "good/ and bad/, as unpacked from somewhere"
FILES = {"set/good/0.png": b"zero", "set/good/1.png": b"one" * 70_000, "set/bad/0.png": b""}


class Server(ThreadingHTTPServer):
    """A server of one archive.

    /whole sends all of it, /unsized without its length, /cut the first half. /held sends the first
    half and waits for `released`; /mute waits before it sends anything.
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.requests: list[str] = []
        self.holding, self.released = threading.Event(), threading.Event()

    def handle_error(self, *_: object) -> None: ...  # clients may be killed

    def url(self, path: str = "/whole") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path == "/missing":
            return self.send_error(404)
        if self.path == "/mute":
            return self.hold()
        content = self.server.content
        self.send_response(200)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        if self.path == "/held":
            self.wfile.flush()
            self.hold()
        if self.path != "/cut":
            self.wfile.write(content[len(content) // 2 :])
        return None

    def hold(self) -> None:
        self.server.holding.set()
        self.server.released.wait(60)

    def log_message(self, *_: object) -> None: ...


def make_zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def make_tar(
    files: dict[str, bytes], mode: str = "w", links: dict[str, str] | None = None
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server(make_tar(FILES, "w:gz")) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "prepared"


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def make_download(server: Server, path: str = "/whole") -> Download:
    """Returns the download of the server's archive."""
    return (Archive(server.url(path), sha256(server.content), "set"),)


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the content of all files below a folder by path, except lock files."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("folder", ["set", ""])
@pytest.mark.parametrize(
    "archive",
    [make_zip(FILES), *(make_tar(FILES, mode) for mode in ("w", "w:gz", "w:xz"))],
    ids=["zip", "tar", "tar.gz", "tar.xz"],
)
def test_downloads_once_and_leaves_only_the_files(server, root, archive, folder):
    server.content = archive
    download = (Archive(server.url(), sha256(archive), folder),)
    raw = fetch("parts", download, root, LAYOUT)
    assert contents(raw if not folder else raw.parent) == FILES
    assert len(contents(root)) == len(FILES)
    assert raw.is_relative_to(root / "downloads" / "parts")
    assert fetch("parts", download, root, LAYOUT) == raw
    assert server.requests == ["/whole"]


def test_a_new_archive_does_not_replace_the_earlier_one(server, root):
    first = fetch("parts", make_download(server), root, LAYOUT)
    server.content = make_zip({"set/good/0.png": b"new"})
    second = fetch("parts", make_download(server), root, LAYOUT)
    assert (first / "good/0.png").read_bytes() == b"zero"
    assert (second / "good/0.png").read_bytes() == b"new"


def checksums(server: Server, tmp_path: Path) -> dict[str, str]:
    """Returns the checksum of the server's archive of each kind."""
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return {
        "sha256": hashlib.sha256(server.content).hexdigest(),
        "md5": hashlib.md5(server.content).hexdigest(),
        "files": files_checksum(tmp_path / "set"),
    }


@pytest.mark.parametrize("kind", ["sha256", "md5", "files"])
def test_checksums_of_the_archive_and_of_the_files(server, root, tmp_path, kind):
    right = checksums(server, tmp_path)[kind]
    wrong = right[::-1]
    with pytest.raises(UserError) as raised:
        fetch("parts", (Archive(server.url(), f"{kind}:{wrong}", "set"),), root, LAYOUT)
    message = str(raised.value)
    assert "\n" not in message
    for part in (server.url(), f"expected {kind}:{wrong}", f"{kind}:{right}", "manual_dir", LAYOUT):
        assert part in message
    assert contents(root) == {}
    raw = fetch("parts", (Archive(server.url(), f"{kind}:{right}", "set"),), root, LAYOUT)
    assert (raw / "good/0.png").read_bytes() == b"zero"


def test_files_checksum_is_that_of_the_output_of_sha256sum(tmp_path):
    for name, content in {"b.txt": b"", "a/z.txt": b"1", ".hidden": b"2", "a/.git/c": b"3"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    printed = (
        b"6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b  a/z.txt\0"
        b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  b.txt\0"
    )
    assert files_checksum(tmp_path) == hashlib.sha256(printed).hexdigest()
    (tmp_path / "a/z.txt").rename(tmp_path / "a/y.txt")
    assert files_checksum(tmp_path) != hashlib.sha256(printed).hexdigest()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/missing", "404 Client Error: Not Found"),
        ("/mute", "timed out"),
        ("/held", "timed out"),
        ("/cut", "more expected"),
        ("http://127.0.0.1:{closed}/", "Connection refused"),
    ],
)
def test_a_failed_download_has_a_one_line_error_and_leaves_no_files(
    server, root, monkeypatch, capfd, path, reason
):
    monkeypatch.setattr(download_module, "_TIMEOUT", (0.3, 0.3))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    url = server.url(path) if path.startswith("/") else path.format(closed=closed)
    download = (Archive(url, sha256(server.content), "set"),)
    with pytest.raises(UserError) as raised:
        fetch("parts", download, root, LAYOUT)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(f"data set 'parts': {url}: cannot be downloaded (")
    assert reason in message
    assert message.endswith(
        f"unpack it and set config.dataset.manual_dir to a folder with {LAYOUT}"
    )
    assert contents(root) == {}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "content", [b"", b"<html>Log in</html>", make_zip(FILES)[:-50], make_tar(FILES, "w:gz")[:-50]]
)
def test_incomplete_archives_are_errors(server, root, content):
    server.content = content
    with pytest.raises(UserError, match=r"cannot be unpacked \(.+\); try again"):
        fetch("parts", make_download(server), root, LAYOUT)
    assert contents(root) == {}


UP = "../" * 5  # from the folder of the unpacked archive to above the data's root


@pytest.mark.parametrize(
    "archive",
    [
        make_tar({"set/0.png": b"0", f"{UP}evil": b"1"}),
        make_tar({"out/evil": b"1"}, links={"out": UP}),
    ],
    ids=["parent", "link"],
)
def test_tar_members_outside_the_folder_are_errors(server, root, tmp_path, archive):
    server.content = archive
    with pytest.raises(UserError, match="outside the destination"):
        fetch("parts", make_download(server), root, LAYOUT)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("pack", "name"),
    [(make_zip, f"{UP}evil"), (make_zip, "{outside}/evil"), (make_tar, "{outside}/evil")],
)
def test_members_outside_the_folder_are_written_inside(server, root, tmp_path, pack, name):
    server.content = pack({"set/0.png": b"0", name.format(outside=tmp_path): b"1"})
    raw = fetch("parts", make_download(server), root, LAYOUT)
    (evil,) = tmp_path.rglob("evil")
    assert evil.is_relative_to(raw.parent)
    assert contents(raw) == {"0.png": b"0"}


def test_a_full_disk_is_an_os_error(server, root, monkeypatch):
    def extractall(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", extractall)
    with pytest.raises(OSError, match="No space left") as raised:
        fetch("parts", make_download(server), root, LAYOUT)
    assert raised.value.errno == errno.ENOSPC
    assert contents(root) == {}


def test_a_read_only_folder_is_an_error(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write to .*set config\.dataset\.data_dir"):
        fetch("parts", make_download(server), tmp_path / "file", LAYOUT)
    assert server.requests == []


@pytest.mark.parametrize(
    ("path", "size"), [("/set%20of%20parts", "1.02kB"), ("/unsized", "size unknown")]
)
def test_the_log_has_the_url_the_size_and_the_folder(server, root, caplog, capfd, path, size):
    server.content = server.content.ljust(1020, b"\0")
    caplog.set_level(logging.INFO)
    raw = fetch("parts", make_download(server, path), root, LAYOUT)
    lines = [r.getMessage() for r in caplog.records if r.name == download_module.__name__]
    assert lines[0] == f"parts: downloading {server.url(path)} to '{raw.parent}': {size}"
    assert lines[-1] == f"parts: the raw files are in '{raw}'"
    assert capfd.readouterr().err == ""  # no progress bar without a terminal


# Logs to stdout; with "pausing", waits after unpacking.
FETCH = """
import logging, sys, time
from pathlib import Path
from devnet_jax.data import download

def pause(*arguments, unpack=download._unpack):
    unpack(*arguments)
    print("unpacked", flush=True)
    time.sleep(60)

url, checksum, root, pausing = sys.argv[1:]
logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
if pausing == "pausing":
    download._unpack = pause
raw = download.fetch("parts", (download.Archive(url, checksum, "set"),), Path(root), "")
print("raw", raw, flush=True)
"""


def start(download: Download, root: Path, pausing: str = "") -> subprocess.Popen[str]:
    repository = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, download[0].url, download[0].checksum, str(root), pausing],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(repository)},
    )


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Reads the process's output up to a line that contains `text`."""
    assert process.stdout is not None
    assert any(text in line for line in process.stdout)


def test_several_archives_have_a_folder_each(server, root):
    archives = (
        Archive(server.url("/train.zip"), sha256(server.content)),
        Archive(server.url("/test.zip"), sha256(server.content)),
    )
    raw = fetch("parts", archives, root, LAYOUT)
    assert contents(raw) == {
        f"{part}/{name}": content for part in ("train", "test") for name, content in FILES.items()
    }
    assert fetch("parts", archives, root, LAYOUT) == raw
    assert server.requests == ["/train.zip", "/test.zip"]
    wrong = (archives[0], Archive(server.url("/test.zip"), "sha256:00"))
    with pytest.raises(UserError, match=r"test\.zip: expected sha256:00"):
        fetch("parts", wrong, root, LAYOUT)
    assert len(contents(root)) == 2 * len(FILES)


@pytest.mark.parametrize("during", ["download", "unpacking"])
def test_a_killed_process_leaves_no_raw_folder(server, root, during):
    process = start(make_download(server, "/held"), root, "pausing")
    assert server.holding.wait(60)
    if during == "unpacking":
        server.released.set()
        read_until(process, "unpacked")
    process.kill()
    process.communicate()
    assert any(path.name != ".lock" for path in root.rglob("*"))  # a partial download
    raw = fetch("parts", make_download(server), root, LAYOUT)
    assert server.requests == ["/held", "/whole"]
    assert contents(raw.parent) == FILES
    assert len(contents(root)) == len(FILES)


def test_only_one_of_several_processes_downloads(server, root):
    first = start(make_download(server, "/held"), root)
    assert server.holding.wait(60)
    second = start(make_download(server, "/held"), root)
    read_until(second, "waiting for another process")
    server.released.set()
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in (first, second)]
    raw = fetch("parts", make_download(server), root, LAYOUT)
    assert [lines[-1] for lines in outputs] == [f"raw {raw}"] * 2
    assert server.requests == ["/held"]
    assert contents(raw.parent) == FILES
