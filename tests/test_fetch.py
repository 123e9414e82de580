"""Fetching: checked, continued where it ended, unpacked inside its folder, whole or not at all. Served from here."""

import hashlib
import io
import os
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lib.data import fetch
from lib.errors import UserError


def tar(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as content:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            content.addfile(entry, io.BytesIO(data))
    return path


def zipped(path: Path, *members: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as content:
        for name, data in members:
            content.writestr(name, data)
    return path


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- unpacking

SAFE = [
    ("./VOCdevkit/VOC2007/a b.txt", b"one"),
    ("VOCdevkit/VOC2007/deep/浣熊.txt", b"two"),
    ("VOCdevkit/VOC2007/a b.txt", b"last"),
]


@pytest.mark.parametrize("make", [tar, zipped])
def test_files_and_folders_are_unpacked(tmp_path, make):
    target = tmp_path / "out"
    target.mkdir()
    fetch.extract(make(tmp_path / "a", *SAFE), target)
    assert (target / "VOCdevkit/VOC2007/a b.txt").read_bytes() == b"last"
    assert (target / "VOCdevkit/VOC2007/deep/浣熊.txt").read_bytes() == b"two"


# --- fetching


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder with the two archives of a set "small", and their sizes known to `fetch`."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    one = tar(folder / "one.tar", ("VOCdevkit/VOC2007/Annotations/a.xml", os.urandom(3_000_000)))
    two = zipped(folder / "two.zip", ("VOCdevkit/VOC2007/Annotations/b.xml", b"<annotation/>"))
    made = [
        fetch.Archive(part, f"http://publisher.example/{path.name}", md5(path))
        for part, path in (("trainval", one), ("test", two))
    ]
    monkeypatch.setitem(fetch.SETS, "small", tuple(made))
    return folder


def quiet(_: str) -> None:
    """Fetch tells its steps to nobody."""


@pytest.mark.parametrize("as_url", [False, True])
def test_from_a_folder_without_the_network(mirror, tmp_path, as_url):
    before = everything(mirror)
    source = mirror.as_uri() if as_url else str(mirror)
    assert fetch.fetch("small", tmp_path / "set", source, tell=quiet) == 2
    found = [name for name in everything(tmp_path / "set") if "." in name]
    assert found == ["VOCdevkit/VOC2007/Annotations/a.xml", "VOCdevkit/VOC2007/Annotations/b.xml", "fetched.json"]
    assert everything(mirror) == before and sorted(path.name for path in tmp_path.iterdir()) == ["mirror", "set"]
    assert fetch.fetch("small", tmp_path / "set", source, tell=quiet) == 0
    with pytest.raises(UserError, match="is there already"):
        fetch.fetch("small", tmp_path / "set", source, ["test"], tell=quiet)


def test_some_parts(mirror, tmp_path):
    assert fetch.fetch("small", tmp_path / "set", str(mirror), ["test"], tell=quiet) == 1
    with pytest.raises(UserError, match="no part 'val'; its parts are trainval, test"):
        fetch.fetch("small", tmp_path / "other", str(mirror), ["val"], tell=quiet)


def test_a_folder_without_the_archive_or_with_another_one(mirror, tmp_path):
    (mirror / "two.zip").write_bytes(b"other")
    with pytest.raises(UserError, match="two.zip: has MD5 .*copy it again"):
        fetch.fetch("small", tmp_path / "set", str(mirror), tell=quiet)
    (mirror / "two.zip").unlink()
    with pytest.raises(UserError, match="two.zip: is not there"):
        fetch.fetch("small", tmp_path / "set", str(mirror), tell=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["mirror"]


HOSTILE = {
    "climbs": ("../evil.txt", tarfile.REGTYPE),
    "is absolute": ("/tmp/evil.txt", tarfile.REGTYPE),
    "is too long": ("n" * 300, tarfile.REGTYPE),
    "is too deep": ("a/" * 1500 + "b", tarfile.REGTYPE),
    "is a link": ("link", tarfile.SYMTYPE),
    "is a device": ("device", tarfile.CHRTYPE),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_of_another_archive_is_unpacked(mirror, tmp_path, name):
    """Whatever is in it: its bytes are not the published ones."""
    member = tarfile.TarInfo(HOSTILE[name][0])
    member.type, member.linkname = HOSTILE[name][1], "/etc/passwd"
    with tarfile.open(mirror / "one.tar", "w") as content:
        content.addfile(member)
    with pytest.raises(UserError, match="one.tar: has MD5 .*; copy it again"):
        fetch.fetch("small", tmp_path / "set", str(mirror), tell=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["mirror"] and not Path("/tmp/evil.txt").exists()


def test_the_published_sets_are_complete():
    assert fetch.SETS.keys() == {"voc2007", "voc2012", "coco2017"}
    every = [archive for archives_ in fetch.SETS.values() for archive in archives_]
    assert len({archive.md5 for archive in every}) == len({archive.url for archive in every}) == 6
    assert all(
        len(archive.md5) == 32 and int(archive.md5, 16) and archive.name.endswith((".tar", ".zip")) for archive in every
    )


@pytest.fixture
def server(mirror):
    """Serves the mirror -> (URL, its behaviour: `stop_after` bytes, whether it knows `ranges`, Range headers seen)."""

    class Handler(BaseHTTPRequestHandler):
        behaviour = {"stop_after": None, "ranges": True, "seen": []}

        def do_GET(self):
            path, asked, how = mirror / self.path.rpartition("/")[2], self.headers.get("Range"), self.behaviour
            how["seen"].append(asked)
            if not path.is_file():
                return self.send_error(404)
            data = path.read_bytes()
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and how["ranges"] else 0
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self.wfile.write(data[start : start + how["stop_after"]] if how["stop_after"] else data[start:])

        def log_message(self, *_):
            """Nothing on stderr."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}/voc", Handler.behaviour
    listening.shutdown()
    thread.join()
    listening.server_close()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_continues_where_it_ended(server, tmp_path, ranges):
    url, behaviour = server
    behaviour.update(stop_after=1_000_000, ranges=True, seen=[])
    part = tmp_path / "set.download/one.tar.part"
    kept = 1_000_000 // fetch.CHUNK * fetch.CHUNK
    for stopped in (kept, 2 * kept):
        with pytest.raises(UserError, match=f"stopped after {stopped} bytes.*run the same again to continue"):
            fetch.fetch("small", tmp_path / "set", url, tell=quiet)
        assert part.stat().st_size == stopped and not (tmp_path / "set").exists()
    behaviour.update(stop_after=None, ranges=ranges)
    assert fetch.fetch("small", tmp_path / "set", url, tell=quiet) == 2
    assert behaviour["seen"] == [None, f"bytes={kept}-", f"bytes={2 * kept}-", None]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mirror", "set"]
    whole = (tmp_path / "set/VOCdevkit/VOC2007/Annotations/a.xml").read_bytes()
    with tarfile.open(tmp_path / "mirror/one.tar") as content:
        assert whole == content.extractfile("VOCdevkit/VOC2007/Annotations/a.xml").read()


def test_a_complete_or_an_overlong_half_is_settled(server, tmp_path):
    url, behaviour = server
    behaviour.update(stop_after=None, ranges=True, seen=[])
    downloads = tmp_path / "set.download"
    downloads.mkdir()
    (downloads / "one.tar.part").write_bytes((tmp_path / "mirror/one.tar").read_bytes())
    (downloads / "two.zip.part").write_bytes(b"0" * 5000)
    with pytest.raises(UserError, match="run the same again"):
        fetch.fetch("small", tmp_path / "set", url, tell=quiet)
    assert fetch.fetch("small", tmp_path / "set", url, tell=quiet) == 2


def test_another_file_under_the_name_is_not_used_and_not_kept(server, tmp_path):
    url, behaviour = server
    behaviour.update(stop_after=None, ranges=True, seen=[])
    good = (tmp_path / "mirror/one.tar").read_bytes()
    (tmp_path / "mirror/one.tar").write_bytes(good[::-1])
    with pytest.raises(UserError, match="its MD5 differs; it was removed"):
        fetch.fetch("small", tmp_path / "set", url, tell=quiet)
    assert everything(tmp_path / "set.download") == [] and not (tmp_path / "set").exists()
    (tmp_path / "mirror/one.tar").write_bytes(good)
    assert fetch.fetch("small", tmp_path / "set", url, tell=quiet) == 2


def test_an_absent_file_and_an_absent_server_are_one_line(server, tmp_path):
    url, behaviour = server
    behaviour.update(stop_after=None, ranges=True, seen=[])
    (tmp_path / "mirror/one.tar").unlink()
    for source in (url, "http://127.0.0.1:1/"):
        with pytest.raises(UserError, match="stopped after 0 bytes") as caught:
            fetch.fetch("small", tmp_path / "set", source, tell=quiet)
        assert "\n" not in str(caught.value) and not (tmp_path / "set").exists()
