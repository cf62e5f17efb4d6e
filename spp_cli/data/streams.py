"""Files as streams of bytes or of text, whatever they are compressed with or encoded in."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import pyarrow  # type: ignore[import-untyped]

from spp_cli.errors import DataError
from spp_cli.reading import check_regular

__all__ = [
    "compression_of",
    "head_of",
    "not_readable",
    "open_bytes",
    "open_text",
    "plain_name",
    "readable",
    "seekable",
    "seekable_lines",
]

_HEAD = 8192  # bytes at the start of a file that tell what it is
# How a file begins that is compressed, and how its name ends. Its first bytes decide.
_COMPRESSED = {
    "gzip": (b"\x1f\x8b", (".gz", ".gzip")),
    "zstd": (b"\x28\xb5\x2f\xfd", (".zst", ".zstd")),
    "xz": (b"\xfd7zXZ\0", (".xz",)),
    "bz2": (b"BZh", (".bz2",)),
    "lz4": (b"\x04\x22\x4d\x18", (".lz4",)),
}
# What nothing here reads: by how it begins, from which byte on.
_FOREIGN = (
    (0, b"PK\x03\x04", "a zip archive", "Unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it first"),
    (0, b"Rar!", "a rar archive", "Unpack it first"),
    (257, b"ustar", "a tar archive", "Unpack it first"),
    (0, b"%PDF-", "a PDF", "Save its text as a .txt file"),
)
# UTF-32 first: its mark begins as that of UTF-16 does.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def plain_name(path: Path) -> str:
    """Return the name of a file in lower case, without what says how it is compressed."""
    name = path.name.lower()
    endings = [ending for _, names in _COMPRESSED.values() for ending in names]
    return next((name.removesuffix(end) for end in endings if name.endswith(end)), name)


def compression_of(path: Path) -> str | None:
    """Return what a file is compressed with, by its first bytes or else its name; None: nothing."""
    try:
        check_regular(path)
    except OSError as error:
        if error.errno is not None:  # what any file may say
            raise
        raise DataError(f"{path}: {error}. Write its rows into a file") from None
    with path.open("rb") as stream:
        begin = stream.read(8)
    for name, (mark, _) in _COMPRESSED.items():
        if begin.startswith(mark):
            return name
    suffix = path.suffix.lower()
    return next((name for name, (_, names) in _COMPRESSED.items() if suffix in names), None)


def open_bytes(path: Path) -> BinaryIO:
    """Return a stream of what a file holds, uncompressed."""
    compression = compression_of(path)
    if compression is None:
        return path.open("rb")
    if compression == "gzip":
        return cast(BinaryIO, gzip.open(path))
    if compression == "xz":
        return cast(BinaryIO, lzma.open(path))
    if compression == "bz2":
        return cast(BinaryIO, bz2.open(path))
    return io.BufferedReader(pyarrow.input_stream(str(path), compression=compression))


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open a text file in UTF-8, or in what its mark of byte order says; errors as ``readable``."""
    with readable(path), open_bytes(path) as binary:
        stream = io.BufferedReader(cast(io.RawIOBase, binary))
        encoding = _encoding(stream.peek(4))
        with io.TextIOWrapper(stream, encoding=encoding, newline=newline) as text:
            yield text


def _encoding(begin: bytes) -> str:
    return next((name for mark, name in _MARKS if begin.startswith(mark)), "utf-8-sig")


def head_of(path: Path) -> bytes:
    """Return the first bytes of what a file holds, uncompressed.

    Raises:
        DataError: it cannot be read.
    """
    with readable(path), open_bytes(path) as stream:
        return stream.read(_HEAD)


def not_readable(head: bytes) -> tuple[str, str] | None:
    """Return what a file is that begins so, and what to do, if it is no text; None if it may be."""
    for place, mark, name, remedy in _FOREIGN:
        if head[place : place + len(mark)] == mark:
            return name, remedy
    has_mark = any(head.startswith(mark) for mark, _ in _MARKS)
    return ("a binary file, not text", "") if b"\0" in head and not has_mark else None


def seekable(path: Path, scratch: Path | None = None) -> BinaryIO:
    """Return a file's content as a file to jump about in: itself, or a copy that is uncompressed.

    The copy is an unnamed file in the folder ``scratch``, by default the system's temporary one.
    """
    with readable(path):
        if compression_of(path) is None:
            return path.open("rb")
        unpacked = cast(BinaryIO, tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115 - open as long as rows are asked for
        with open_bytes(path) as stream:
            shutil.copyfileobj(stream, unpacked, 1 << 16)
        unpacked.seek(0)
        return unpacked


def seekable_lines(path: Path, scratch: Path | None = None) -> BinaryIO:
    """Return what ``seekable`` does of a text, in UTF-8 whatever it was in."""
    stream = seekable(path, scratch)
    with readable(path):
        encoding = _encoding(stream.read(4))
        stream.seek(0)
        if encoding == "utf-8-sig":
            return stream
        recoded = cast(BinaryIO, tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115 - as above
        with io.TextIOWrapper(stream, encoding=encoding, newline="") as text:
            while part := text.read(1 << 16):
                recoded.write(part.encode())
        recoded.seek(0)
        return recoded


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn whatever says that ``path`` cannot be read into a DataError of one line."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file or folder") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"{path}: not {error.encoding.upper()} text: byte 0x{byte:02x}. Save it as UTF-8"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise _not_whole(path, error) from None
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a valid Parquet or Arrow file: {reason}") from None
    except OSError as error:
        if error.errno is None and compression_of(path):  # it comes from what uncompresses
            raise _not_whole(path, error) from None
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _not_whole(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not a whole {compression_of(path)} file: {error}")
