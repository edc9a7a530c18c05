"""Files of tensors; published files, fetched from a loopback server in place of their mirrors."""

import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pooch
import pytest
import torch
from safetensors.torch import save_file

from minidalle import files
from minidalle.files import CheckpointError, fetch, find, load_tensors, places, save_tensors

CONTENT = os.urandom(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Mirror(BaseHTTPRequestHandler):
    """/good serves the file; /breaks stops after 100 kB, at first; /wrong serves another."""

    def do_GET(self):
        kind = self.path.split("/")[1]
        self.server.asked.append(kind)
        if kind not in ("good", "breaks", "wrong"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        broken = kind == "breaks" and self.server.asked.count("breaks") == 1
        body = CONTENT[::-1] if kind == "wrong" else CONTENT
        self.wfile.write(body[:100_000] if broken else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(pooch.core.time, "sleep", lambda _: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        server.asked = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Two places: MINIDALLE_DATA/, and data/, where files are fetched to."""
    monkeypatch.setattr(files, "places", lambda: [tmp_path / "shared", tmp_path / "data"])
    return tmp_path


def get(server, *kinds):
    return fetch("set/file.bin", MD5, [f"{server.url}/{kind}" for kind in kinds])


def left(here):
    return [p.name for p in here.rglob("*") if p.is_file()]


def test_the_shared_folder_is_looked_in_first(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDALLE_DATA", str(tmp_path))
    assert places()[0] == tmp_path and places()[1].name == "data"
    (tmp_path / "a").write_text("")
    assert find("a") == tmp_path / "a" and find("no/such/file") is None
    monkeypatch.delenv("MINIDALLE_DATA")
    assert len(places()) == 1


@pytest.mark.parametrize("kind", ["good", "breaks"])
def test_the_file_arrives_whole_and_alone(server, here, kind):
    path = get(server, kind)
    assert path == here / "data" / "set" / "file.bin" and path.read_bytes() == CONTENT
    assert left(here) == ["file.bin"]


def test_mirrors_are_tried_in_turn(server, here):
    assert get(server, "missing", "wrong", "good").read_bytes() == CONTENT
    assert server.asked == ["missing", "missing", "wrong", "wrong", "good"]


def test_a_file_that_is_there_is_not_fetched_but_checked(server, here):
    (here / "shared" / "set").mkdir(parents=True)
    (here / "shared" / "set" / "file.bin").write_bytes(CONTENT)
    assert get(server, "good") == here / "shared" / "set" / "file.bin"
    (here / "shared" / "set" / "file.bin").write_bytes(b"damaged")
    with pytest.raises(OSError, match=f"{MD5}; delete the file"):
        get(server, "good")
    assert server.asked == []


def test_without_a_right_file_the_error_says_what_to_do_and_nothing_is_left(server, here):
    with pytest.raises(OSError, match=r"set/file\.bin: .*/wrong/file.bin: .*MiB are free") as error:
        get(server, "wrong")
    assert f"MD5 {MD5} into {here / 'data' / 'set'}" in str(error.value)
    assert "set MINIDALLE_DATA" in str(error.value) and left(here) == []


def test_without_a_network_the_error_names_every_mirror(here, monkeypatch):
    monkeypatch.setattr(pooch.core.time, "sleep", lambda _: None)
    monkeypatch.setenv("no_proxy", "*")
    mirrors = ("http://127.0.0.1:9", "http://127.0.0.1:1")  # nobody listens there
    with pytest.raises(OSError, match=r":9/f: .*:1/f: .*MINIDALLE_DATA"):
        fetch("set/f", MD5, mirrors)
    assert left(here) == []


def test_a_full_disk_is_named_and_leaves_nothing(server, here, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pooch.core.shutil, "move", full)
    with pytest.raises(OSError, match="No space left on device"):
        get(server, "good")
    assert left(here) == []


def test_many_threads_may_fetch_a_file_at_once(server, here):
    threads = [threading.Thread(target=get, args=(server, "good")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert find("set/file.bin").read_bytes() == CONTENT and left(here) == ["file.bin"]


def test_a_flipped_bit_inside_a_tensor_names_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {
        "a": torch.arange(6.0),
        "b": torch.ones(2, 2, dtype=torch.bfloat16),
        "c": torch.ones(()),
    }
    save_tensors(path, tensors, {"format": "pt"})
    found, metadata = load_tensors(path)
    assert metadata["format"] == "pt" and all(torch.equal(found[k], v) for k, v in tensors.items())
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_tensors(path)


def test_a_file_of_another_program_needs_no_checksum(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    assert load_tensors(tmp_path / "a.safetensors")[0]["a"].sum() == 3
