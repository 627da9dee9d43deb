"""Bytes as lines of text: what is no UTF-8 is brought to it, and a line that can't be decoded stands as its error."""

import codecs
import contextlib
import io
from collections.abc import Iterator
from typing import IO, Any, cast

from data.sources.batch import LONGEST_ROW, RowErrors

UTF_8 = "utf-8"
PROOF = 4  # bytes of longer characters; so many right ones in a row are no other encoding by chance
Line = str | UnicodeDecodeError


class _Transcoded(io.BufferedIOBase):
    """Text in UTF-8; bytes that were wrong in its own encoding are wrong in UTF-8 too."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self.text = text

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        return self.text.read(size).encode(errors="surrogateescape")

    read1 = read


def in_utf8(stream: "io.BufferedReader[Any]", encoding: str, file: str, errors: RowErrors) -> IO[bytes]:
    """The stream's text in UTF-8; raises UserError where its beginning is so already, as it would become nonsense."""
    if codecs.lookup(encoding).name in (UTF_8, "utf-8-sig"):
        return stream
    head = stream.peek()
    with contextlib.suppress(UnicodeDecodeError):
        if len(head) - len(codecs.getincrementaldecoder(UTF_8)().decode(head)) >= PROOF:
            raise errors.refused("the file is in UTF-8", file, f"take {errors.key}.encoding out")
    text = io.TextIOWrapper(stream, encoding, "surrogateescape", newline="")
    return cast(IO[bytes], _Transcoded(text))


def text_lines(stream: IO[bytes], file: str, errors: RowErrors, block: int) -> Iterator[list[Line]]:
    """Lists of whole lines without their ends, of about `block` bytes each."""
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
    """Count a line that can't be decoded, or raise UserError, which names the setting."""
    name = "UTF-8" if encoding == UTF_8 else encoding
    place = len(error.object[: error.start].decode()) + 1  # no byte of the file, which may be in another encoding
    errors.bad(f"invalid {name}", f"{where}, character {place}", hint=encoding_hint(errors.key))


def encoding_hint(key: str) -> str:
    """What to do about bytes that are no UTF-8."""
    return f"or set {key}.encoding if it is in another one, such as cp1251"
