"""Fetch a published file once, and only whole: resumed, checked, moved into place.

What has arrived so far lies beside the goal as NAME.part, so that a later call goes on from there.
"""

import errno
import hashlib
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

CHUNK = 2**16  # bytes
TIMEOUT = 30  # seconds without a byte
NETWORK_ERRORS = (
    urllib.error.URLError,
    HTTPException,
    TimeoutError,
    ConnectionError,
    ssl.SSLError,
)
TRIES = 3  # broken connections in a row, from one mirror, without a byte gained


class DownloadError(OSError):
    """A file could not be fetched; the message says why and what to do."""


def fetch(name: str, mirrors: tuple[str, ...], md5: str, folder: Path) -> Path:
    """Return folder / name, fetched from the first mirror that has it if it is not there yet.

    mirrors are URLs of the folder above the file, tried in turn; md5 is the published checksum.
    Raises DownloadError when no mirror gives the right file, or the disk is full or read-only.
    """
    goal = folder / name
    if goal.is_file():
        check(goal, md5)
        return goal
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if not goal.is_file():  # another process may have been faster
                _try_mirrors(goal, mirrors, md5)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"cannot write {goal}: {error.strerror or error}") from error
    return goal


def check(path: Path, md5: str) -> None:
    """Raise DownloadError unless the file has this checksum."""
    found = _md5(path)
    if found != md5:
        raise DownloadError(
            f"{path} has the checksum {found}, but the published one is {md5}; "
            "delete the file and it will be fetched again"
        )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _try_mirrors(goal: Path, mirrors: tuple[str, ...], md5: str) -> None:
    part = goal.with_name(f"{goal.name}.part")
    failures = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{goal.name}"
        for _ in range(2):  # a wrong file may come of an old part: once more from the start
            resumed = part.exists()
            reason = _receive(url, part)
            if reason is None:
                found = _md5(part)
                if found == md5:
                    part.replace(goal)
                    return
                part.unlink()
                reason = f"wrong checksum {found}"
            if not (resumed and "checksum" in reason):
                break
        failures.append(f"{url}: {reason}")
    raise DownloadError(
        f"cannot fetch {goal.name}: {'; '.join(failures)}. Put the file with the MD5 {md5} "
        f"into {goal.parent}, or point MINIDALLE_DATA at a folder that has it"
    )


def _receive(url: str, part: Path) -> str | None:
    """Add to `part` until it is whole. Returns None, or why this mirror cannot give the rest."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _receive_some(url, part):
                return None
            reason = "the connection broke"
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # nothing is left to send: the checksum decides
                return None
            return f"the server answers {error.code} {error.reason}"
        except NETWORK_ERRORS as error:
            reason = str(getattr(error, "reason", error) or type(error).__name__)
        after = part.stat().st_size if part.exists() else 0
        failures = 0 if after > before else failures + 1
        if failures == TRIES:
            return reason
        time.sleep(0.1 * failures)


def _receive_some(url: str, part: Path) -> bool:
    """Ask for what is missing and write it. Returns whether all that was promised came."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "minidalle"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if answer.status != 206:  # this server knows no ranges and sends all
            start = 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        _check_space(part, total and total - start)
        with (
            tqdm(
                total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None
            ) as bar,
            _opened(part, "ab" if start else "wb") as file,
        ):
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                file.flush()  # what arrived must survive a kill
                bar.update(len(chunk))
    return total is None or part.stat().st_size >= total


@contextmanager
def _opened(part: Path, mode: str):
    """Open `part`; when the disk is full, give its space back before the error goes on."""
    try:
        with part.open(mode) as file:
            yield file
    except OSError as error:
        if error.errno == errno.ENOSPC:
            part.unlink(missing_ok=True)
            raise DownloadError(
                f"the disk is full: no room for {part.stem} in {part.parent}"
            ) from error
        raise


def _check_space(part: Path, needed: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed and needed > free:
        raise DownloadError(
            f"the disk is full: {part.stem} needs {needed / 2**20:.1f} MiB in {part.parent}, "
            f"{free / 2**20:.1f} MiB are free"
        )


@contextmanager
def _alone(folder: Path):
    """Let one process at a time fetch into a folder (torchrun starts many); the others wait."""
    try:
        import fcntl
    except ImportError:  # Windows: no lock; the checksum still guards the result
        yield
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
