"""Bytes as lines of text: what is no UTF-8 is brought to it, and a line that can't be decoded stands as its error."""

import codecs
import io
from collections.abc import Iterator
from typing import IO, Any, cast

from data.sources.batch import LONGEST_ROW, RowErrors, too_long
from pipeline.core.errors import UserError

UTF_8 = "utf-8"
PROOF = 4  # bytes of longer characters; so many right ones in a row are no other encoding by chance
Line = str | UnicodeDecodeError


class _Transcoded(io.RawIOBase):
    """A stream of another encoding in UTF-8; its wrong bytes are wrong in UTF-8 too."""

    def __init__(self, stream: IO[bytes], encoding: str, file: str, set_name: str) -> None:
        self.stream, self.ready, self.begun = stream, b"", False
        self.file, self.set_name = file, set_name
        self.decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = b"more"
        while chunk and not self.ready:
            chunk = self.stream.read(len(buffer))
            if not self.begun:
                self._refuse_utf8(chunk)
            self.begun = True
            self.ready = self.decoder.decode(chunk, final=not chunk).encode(errors="surrogateescape")
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size

    def _refuse_utf8(self, chunk: bytes) -> None:
        """Such a file would come out as nonsense, and nothing else would tell."""
        try:
            characters = len(codecs.getincrementaldecoder(UTF_8)().decode(chunk))
        except UnicodeDecodeError:
            return
        if len(chunk) - characters >= PROOF:
            what = f"{self.set_name}: the file is in UTF-8"
            raise UserError(what, where=self.file, remedy=f"take data.sources.{self.set_name}.encoding out")


def in_utf8(stream: IO[bytes], encoding: str, file: str, set_name: str) -> IO[bytes]:
    """The stream's text in UTF-8."""
    if codecs.lookup(encoding).name in (UTF_8, "utf-8-sig"):
        return stream
    return cast(IO[bytes], io.BufferedReader(_Transcoded(stream, encoding, file, set_name), 2**16))


def text_lines(stream: IO[bytes], file: str, set_name: str, block: int) -> Iterator[list[Line]]:
    """Lists of whole lines without their ends, of about `block` bytes each."""
    first, number, rest = True, 1, b""
    while content := stream.read(block):
        whole, newline, rest = (rest + content).rpartition(b"\n")
        number += whole.count(b"\n") + len(newline)
        if len(rest) > LONGEST_ROW:
            raise too_long(set_name, f"{file}, line {number}")
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
    errors.bad(f"invalid {name}", f"{where}, byte {error.start + 1}", hint=encoding_hint(errors.set_name))


def encoding_hint(set_name: str) -> str:
    """What to do about bytes that are no UTF-8."""
    return f"or set data.sources.{set_name}.encoding if it is in another one, such as cp1251"
