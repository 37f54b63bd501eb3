"""Writing files so that a reader sees the old or the new content, never half of it."""

import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray


def atomic_write_bytes(
    path: Path | str, content: bytes, *, mode: int = 0o666, durable: bool = True
) -> None:
    """Replace ``path`` by ``content``, durably, even if the process is killed in between.

    Written to a temporary name in the same folder, flushed to the disk, renamed, folder flushed.

    Args:
        path: the file.
        content: all of it.
        mode: permissions of the new file, less the process's umask; 0o600 is for its owner only.
        durable: false spares the flushes: after a loss of power the file may be old or empty.
    """
    path = Path(path)
    with _replacing(path, durable=durable) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)


def atomic_write_tensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and strings as one safetensors file; as of ``atomic_write_bytes``.

    The tensors are written from where they lie; none is copied that is contiguous.

    Raises:
        OSError: the file cannot be written.
    """
    # safetensors writes memory as it lies, and would scramble an array that is not contiguous.
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with _replacing(path) as temporary:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        try:
            safetensors.numpy.save_file(contiguous, temporary, metadata=dict(metadata or {}))
        except safetensors.SafetensorError as error:  # its word for a full disk, too
            raise OSError(f"{path}: {error}") from error
        temporary.chmod(mode)  # safetensors makes its files for their owner only


def atomic_copy(source: Path, target: Path) -> None:
    """Replace ``target`` by the content of ``source``, as of ``atomic_write_bytes``."""
    with _replacing(target) as temporary:
        shutil.copyfile(source, temporary)


@contextmanager
def _replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A name to write under; at the end of the block it replaces ``path``, at an error it goes."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        if durable:
            _flush_file(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        flush_folder(path.parent)


@contextmanager
def only_process(path: Path) -> Iterator[bool]:
    """Hold ``path`` as a lock while the block lasts; the system frees it however the process ends.

    Yields:
        False if another process, or another block of this one, holds it.
    """
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def exclusively(path: Path) -> Iterator[None]:
    """Hold ``path`` as a lock while the block lasts, after waiting for whoever holds it."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def append_line(path: Path | str, line: str) -> None:
    """Append ``line`` and a line feed to ``path``, durably; the file is made if it is missing.

    If a killed process left half a line at the end, the new line still starts on a line of its own.

    Raises:
        ValueError: ``line`` itself holds a line feed.
    """
    if "\n" in line:
        raise ValueError("a line must not hold a line feed")
    path = Path(path)
    is_new = not path.exists()
    with path.open("ab+") as stream:
        stream.write(_line_feed_if_torn(stream) + line.encode() + b"\n")
        _flush(stream)
    if is_new:
        flush_folder(path.parent)


def cut_torn_line(path: Path) -> None:
    """Remove what a process killed while appending has left of its last line; durable."""
    content = path.read_bytes() if path.exists() else b""
    complete = complete_lines(content)
    if complete != content:
        atomic_write_bytes(path, complete)


def complete_lines(content: bytes) -> bytes:
    """The content up to its last line feed: without a line that is being written."""
    return content[: content.rfind(b"\n") + 1]


def _line_feed_if_torn(stream: BinaryIO) -> bytes:
    if stream.seek(0, os.SEEK_END) == 0:
        return b""
    stream.seek(-1, os.SEEK_END)
    return b"" if stream.read(1) == b"\n" else b"\n"


def _flush(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _flush_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Write to the disk which files a folder holds."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
