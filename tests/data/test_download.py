"""Fetching files from mirrors: a loopback server stands in for them."""

import errno
import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minidalle.data import download
from minidalle.data.download import DownloadError, fetch

CONTENT = os.urandom(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Mirror(BaseHTTPRequestHandler):
    """/good serves ranges; /plain knows none; /breaks stops after 100 kB of each answer; /wrong."""

    def do_GET(self):
        kind = self.path.split("/")[1]
        self.server.asked.append((kind, self.headers.get("Range")))
        if kind not in ("good", "plain", "breaks", "wrong", "nolength"):
            self.send_error(404)
            return
        start = 0
        asked = self.headers.get("Range")
        if asked and kind != "plain":
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(CONTENT):
                self.send_error(416)
                return
        body = (CONTENT if kind != "wrong" else CONTENT[::-1])[start:]
        self.send_response(206 if start else 200)
        if kind != "nolength":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:100_000] if kind == "breaks" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        server.asked = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server, folder, *kinds, md5=MD5):
    return fetch("file.bin", tuple(f"{server.url}/{kind}" for kind in kinds), md5, folder)


@pytest.mark.parametrize("kind", ["good", "plain", "breaks", "nolength"])
def test_the_file_arrives_whole_and_alone(server, tmp_path, kind):
    path = get(server, tmp_path / "new" / "folder", kind)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_a_broken_connection_is_resumed_where_it_broke(server, tmp_path):
    get(server, tmp_path, "breaks")
    assert server.asked == [("breaks", r) for r in (None, "bytes=100000-", "bytes=200000-")]


@pytest.mark.parametrize("kind", ["good", "plain"])
def test_an_earlier_part_is_gone_on_with(server, tmp_path, kind):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1234])
    assert get(server, tmp_path, kind).read_bytes() == CONTENT
    assert server.asked == [(kind, "bytes=1234-")]


def test_a_whole_part_is_only_checked(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert get(server, tmp_path, "good").read_bytes() == CONTENT


def test_a_foreign_part_is_thrown_away(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"something else")
    assert get(server, tmp_path, "good").read_bytes() == CONTENT
    assert [r for _, r in server.asked] == ["bytes=14-", None]


def test_mirrors_are_tried_in_turn(server, tmp_path):
    assert get(server, tmp_path, "missing", "wrong", "good").read_bytes() == CONTENT
    assert [kind for kind, _ in server.asked] == ["missing", "wrong", "good"]


def test_a_file_that_is_there_is_not_fetched_but_checked(server, tmp_path):
    get(server, tmp_path, "good")
    get(server, tmp_path, "good")
    assert len(server.asked) == 1
    (tmp_path / "file.bin").write_bytes(b"damaged")
    with pytest.raises(DownloadError, match="delete the file"):
        get(server, tmp_path, "good")


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(DownloadError, match=r"wrong checksum .* MD5 " + MD5):
        get(server, tmp_path, "wrong")
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_error_names_every_mirror_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    monkeypatch.setenv("no_proxy", "*")
    mirrors = ("http://127.0.0.1:9", "http://127.0.0.1:1")  # nobody listens there
    with pytest.raises(DownloadError, match=r":9/f: .*:1/f: .*MINIDALLE_DATA"):
        fetch("f", mirrors, MD5, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always-full device")
def test_a_disk_that_fills_up_leaves_nothing(server, tmp_path):
    (tmp_path / "file.bin.part").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match="disk is full"):
        get(server, tmp_path, "good")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_noticed_before_writing(server, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match=r"needs 0\.3 MiB"):
        get(server, tmp_path, "good")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match="cannot write"):
        get(server, tmp_path / "file", "good")


def test_an_error_while_writing_is_no_fault_of_the_mirror(server, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(download, "tqdm", refuse)
    with pytest.raises(DownloadError, match=r"cannot write .*Input/output error"):
        get(server, tmp_path, "good")


def test_many_processes_fetch_a_file_once(server, tmp_path):
    threads = [threading.Thread(target=get, args=(server, tmp_path, "good")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
