"""What the Hub's client raises, as one line that says what to do."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import UserError, first_line

UNREACHABLE = "the Hub can't be reached", "check the network, or set mirror=<folder in the Hub's layout>"


@contextmanager
def hub_errors(name: str, where: str, key: str) -> Iterator[None]:
    """Raise UserError for what the Hub refuses while the block reads from it.

    `name` is what the user calls that which is read, `where` a Hub id and its revision, `key` the config key to mend.
    Other errors, such as those of a full disk, pass.
    """
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # whichever of the two clients is in use

    for client in ("httpx", "httpx2"):  # they log every request
        logging.getLogger(client).setLevel(logging.WARNING)
    try:
        yield
    except (errors.HFValidationError, errors.EntryNotFoundError, httpx.HTTPError, ConnectionError) as error:
        what, remedy = _explained(error, key)
        raise UserError(f"{name}: {what}", where=where, remedy=remedy) from error


def _explained(error: Exception, key: str) -> tuple[str, str]:
    """What is wrong, and what to do about it."""
    from huggingface_hub import errors

    match error:
        case errors.HFValidationError():
            return "neither a folder nor a Hub id", f"mend {key}"
        case errors.GatedRepoError():
            return "access must be asked for", "accept the terms on its page and log in with hf auth login"
        case errors.RepositoryNotFoundError() | errors.RevisionNotFoundError():
            return "no such repository or revision on the Hub", f"mend {key}, or log in if it is private"
        case errors.LocalEntryNotFoundError():
            return UNREACHABLE
        case errors.EntryNotFoundError():
            return f"no such file: {first_line(error)}", f"mend {key}"
        case errors.HfHubHTTPError():
            return first_line(error), "check your access, or run again later"
    return UNREACHABLE
