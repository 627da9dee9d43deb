"""Errors that a user can cause, as opposed to bugs of this repository."""

from pipeline.secrets import redacted


class UserError(Exception):
    """Something the user can mend; shown as one line, and the process ends with status 2.

    Args:
        what: what is wrong, in a few words.
        where: the config key, file, set or row that it concerns.
        remedy: what to do about it.
    """

    def __init__(self, what: str, *, where: str, remedy: str) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(f"{what} ({where}); {remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are pickled by position when they cross a process; these arguments are keywords.
        return _rebuild, (self.what, self.where, self.remedy)

    @property
    def line(self) -> str:
        """The error as the one line that a user sees."""
        return "error: " + " ".join(redacted(str(self)).split())

    @classmethod
    def from_line(cls, line: str) -> "UserError":
        """The error that printed `line` in another process."""
        rest, _, remedy = line.removeprefix("error: ").rpartition("; ")
        what, _, where = rest.rpartition(" (")
        return cls(what, where=where.removesuffix(")"), remedy=remedy)


class Died(SystemExit):
    """A process that this one started ended without an error line; left uncaught, it gives this one its status."""

    def __init__(self, what: str, status: int, log: str) -> None:
        super().__init__(status)
        self.line = f"error: {what} ended with status {status} ({log}); see its last lines there and above"


def first_line(error: BaseException) -> str:
    """What a library's error says, short enough for one of ours; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _rebuild(what: str, where: str, remedy: str) -> UserError:
    return UserError(what, where=where, remedy=remedy)
