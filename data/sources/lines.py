"""Bytes as lines of text, converted to UTF-8 where needed; a line that can't be decoded is returned as its error."""

import codecs
import contextlib
import io
from collections.abc import Iterator
from typing import IO, Any, cast

from data.sources.batch import LONGEST_ROW, RowErrors

UTF_8 = "utf-8"
PROOF = 4  # bytes of valid multi-byte characters, which no other encoding has by chance
Line = str | UnicodeDecodeError


class _Transcoded(io.BufferedIOBase):
    """Text re-encoded as UTF-8; bytes invalid in its own encoding stay invalid."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self.text = text

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        return self.text.read(size).encode(errors="surrogateescape")

    read1 = read


def in_utf8(stream: "io.BufferedReader[Any]", encoding: str, file: str, errors: RowErrors) -> IO[bytes]:
    """The stream's text in UTF-8; raises UserError where it already starts with UTF-8, which would be garbled."""
    if codecs.lookup(encoding).name in (UTF_8, "utf-8-sig"):
        return stream
    head = stream.peek()
    with contextlib.suppress(UnicodeDecodeError):
        if len(head) - len(codecs.getincrementaldecoder(UTF_8)().decode(head)) >= PROOF:
            raise errors.refused("the file is in UTF-8", file, f"remove {errors.key}.encoding")
    text = io.TextIOWrapper(stream, encoding, "surrogateescape", newline="")
    return cast(IO[bytes], _Transcoded(text))


def text_lines(stream: IO[bytes], file: str, errors: RowErrors, block: int) -> Iterator[list[Line]]:
    """Lists of whole lines without line ends, of about `block` bytes each."""
    first, number, rest = True, 1, b""
    while content := stream.read(block):
        whole, newline, rest = (rest + content).rpartition(b"\n")
        number += whole.count(b"\n") + len(newline)
        if len(rest) > LONGEST_ROW:
            raise errors.too_long(f"{file}, line {number}")
        if newline:
            yield _decoded(whole, first)
            first = False
    if rest:
        yield _decoded(rest, first)


def _decoded(lines: bytes, first: bool) -> list[Line]:
    lines = lines.removeprefix(codecs.BOM_UTF8) if first else lines
    try:
        return cast(list[Line], lines.decode().split("\n"))
    except UnicodeDecodeError:
        return [_line(line) for line in lines.split(b"\n")]


def _line(line: bytes) -> Line:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        return error


def bad_encoding(error: UnicodeDecodeError, encoding: str, where: str, errors: RowErrors) -> None:
    """Count a line that can't be decoded, or raise a UserError that names the setting."""
    name = "UTF-8" if encoding == UTF_8 else encoding
    place = len(error.object[: error.start].decode()) + 1  # not the byte: the file may be in another encoding
    errors.bad(f"invalid {name}", f"{where}, character {place}", hint=encoding_hint(errors.key))


def encoding_hint(key: str) -> str:
    """What to do about bytes that are not UTF-8."""
    return f"or set {key}.encoding if it has another encoding, such as cp1251"
