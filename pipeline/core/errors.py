"""Errors that a user can cause, as opposed to bugs in this repository, and the removal of secrets from texts."""

import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

INSTALL = f"{sys.executable} -m pip install"  # for remedies: into the environment that lacks the package
REDACTED = "***"
SECRET_NAMES = re.compile(r"(^|_)(TOKEN|API_KEY|ACCESS_KEY|SECRET|PASSWORD)$")  # of environment variables
SHORTEST_SECRET = 8  # characters of such a variable's value; shorter values would blank out ordinary words
SECRET_PATTERNS = (
    (re.compile(r"(://)[^/\s:@'\"]*:[^/\s@'\"]+@"), rf"\1{REDACTED}@"),  # user:password in an address
    (re.compile(r"([?&](?:access_token|api_key|key|password|sig|signature|token)=)[^&\s'\"]+"), rf"\1{REDACTED}"),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), REDACTED),  # the Hub's tokens
)


def redacted(value: Any) -> Any:
    """The value with every secret in its texts replaced: known patterns, and values of variables such as HF_TOKEN."""
    named = {secret for name, secret in os.environ.items() if SECRET_NAMES.search(name)}
    secrets = {secret for secret in named if len(secret) >= SHORTEST_SECRET}
    return _redacted(value, sorted(secrets, key=len, reverse=True))


def _redacted(value: Any, variables: list[str]) -> Any:
    if isinstance(value, str):
        for secret in variables:
            value = value.replace(secret, REDACTED)
        for pattern, replacement in SECRET_PATTERNS:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, dict):
        return {key: _redacted(item, variables) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(item, variables) for item in value]
    return value


class RedactingFormatter(logging.Formatter):
    """Removes secrets from log lines of any logger."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
# The same from libraries that write files themselves: safetensors, tokenizers and polars; numpy; torch, in three ways,
# the last one if another rank's failure removed the checkpoint's folder.
DISK_WORDS = (
    *("No space left on device", "Read-only file system", " requested and "),
    *("PytorchStreamWriter failed", "unexpected pos", "Parent directory"),
)


class UserError(Exception):
    """An error that the user can fix; shown as one line, and the process exits with status 2.

    Args:
        what: what is wrong, in a few words.
        where: the config key, file, set or row concerned.
        remedy: what to do about it.
    """

    def __init__(self, what: str, *, where: str, remedy: str) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(f"{what} ({where}); {remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are pickled with positional arguments; these are keywords.
        return partial(UserError, where=self.where, remedy=self.remedy), (self.what,)

    @property
    def line(self) -> str:
        """The error as the one line that a user sees."""
        return "error: " + " ".join(redacted(str(self)).split())

    @classmethod
    def from_line(cls, line: str) -> "UserError":
        """The error that printed `line` in another process."""
        rest, _, remedy = line.removeprefix("error: ").partition("); ")
        what, _, where = rest.rpartition(" (")
        return cls(what, where=where, remedy=remedy)


class Died(SystemExit):
    """A process started by this one ended without an error line; if uncaught, this one exits with its status."""

    def __init__(self, what: str, status: int, log: str) -> None:
        super().__init__(status)
        self.line = f"error: {what} ended with status {status} ({log}); see its last lines there and above"


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, or its type if there is no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class Stopped(SystemExit):
    """Ends the process after a signal; the exit status is 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@contextmanager
def disk_errors_explained(path: Path) -> Iterator[None]:
    """Raise UserError that names the file, or else `path`, for errors of a full, read-only or failing disk."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _disk_error(error)
        if reason is None:
            raise
        what = reason.strerror if isinstance(reason, OSError) and reason.strerror else "the disk is full or fails"
        where = getattr(reason, "filename", None) or path
        remedy = "make room or correct the permissions, then run again"
        raise UserError(f"can't write: {what}", where=str(where), remedy=remedy) from error


def _disk_error(error: BaseException | None) -> BaseException | None:
    """The disk error that `error` is or was caused by, or None."""
    while error is not None:
        coded = isinstance(error, OSError) and error.errno in DISK_ERRORS
        if coded or any(words in str(error) for words in DISK_WORDS):
            return error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None
