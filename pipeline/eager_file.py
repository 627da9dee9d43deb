"""A file that goes to the disk while more of it is still made."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Self

PART = 1 << 26  # bytes that the disk is told to store at once
BUFFER = 1 << 18  # bytes copied at once where the kernel does not copy: they stay in the processor's cache
NOT_BY_KERNEL = (errno.ENOTSOCK, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # macOS; some file systems


class EagerFile:
    """A new file, written from its start to its end.

    Linux keeps in memory what is written until somebody asks for it to be stored. A thread asks part by part, so that
    whoever synchronises the file in the end waits for the last parts only. Elsewhere it is just a file.
    """

    def __init__(self, path: Path) -> None:
        self.file: BinaryIO = path.open("wb", buffering=0)
        self._disk = ThreadPoolExecutor(max_workers=1)
        self._stored = 0  # bytes from the start that the disk has been told to store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._disk.shutdown(cancel_futures=True)
        self.file.close()

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        rest = memoryview(data)
        while rest:
            rest = rest[self.file.write(rest) :]
        self._store()

    def copy(self, source: BinaryIO, start: int, count: int) -> int:
        """Append another file's bytes from byte `start` on; fewer than `count` only where that file ends."""
        done = 0
        while done < count and (copied := self._copy_some(source, start + done, count - done)):
            done += copied
        self._store()
        return done

    def _copy_some(self, source: BinaryIO, start: int, count: int) -> int:
        try:
            return os.sendfile(self.file.fileno(), source.fileno(), start, count)
        except OSError as error:
            if error.errno not in NOT_BY_KERNEL:
                raise
            return self.file.write(os.pread(source.fileno(), min(count, BUFFER), start))

    def _store(self) -> None:
        end = self.file.tell()
        if end - self._stored < PART or not hasattr(os, "posix_fadvise"):
            return
        # Told that it may drop these pages, Linux first writes them to the disk; only a second call would drop them.
        self._disk.submit(
            os.posix_fadvise, self.file.fileno(), self._stored, end - self._stored, os.POSIX_FADV_DONTNEED
        )
        self._stored = end
