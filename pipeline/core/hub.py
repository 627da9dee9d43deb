"""The Hub: its client's errors as one line that says what to do, and the commits of revisions.

A branch such as `main` moves. `make lock` writes its present commit to `configs/source/revisions.lock`; from then on
this commit is read, and a branch that has moved since is an error until you have looked at what changed. A line of the
file: `<dataset or model> <Hub id> <revision> <commit>`. A revision without a line is read at its present commit.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.artefact import replacing
from pipeline.core.console import log
from pipeline.core.errors import UserError, first_line

MIRROR = "or set mirror=<folder in the Hub's layout>"


@contextmanager
def hub_errors(name: str, where: str, key: str, otherwise: str = MIRROR) -> Iterator[None]:
    """Raise UserError for errors of the Hub while the block reads from it or writes to it.

    `name` is the user's name for what is read, `where` a Hub id and its revision, `key` the config key to correct,
    `otherwise` an alternative if there is no network. Other errors, such as those of a full disk, are not caught.
    """
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # whichever of the two clients is installed

    own = errors.HFValidationError, errors.EntryNotFoundError, errors.LocalTokenNotFoundError
    for client in ("httpx", "httpx2"):  # they log every request
        logging.getLogger(client).setLevel(logging.WARNING)
    try:
        yield
    except (*own, httpx.HTTPError, ConnectionError) as error:
        what, remedy = "the Hub can't be reached", f"check the network, {otherwise}"
        match error:
            case errors.HFValidationError():
                what, remedy = "neither a folder nor a Hub id", f"correct {key}"
            case errors.LocalTokenNotFoundError():
                what, remedy = "no Hub token", "log in with hf auth login"
            case errors.GatedRepoError():
                what, remedy = "access must be requested", "accept the terms on its page and log in with hf auth login"
            case errors.RepositoryNotFoundError() | errors.RevisionNotFoundError():
                what, remedy = "no such repository or revision on the Hub", f"correct {key}, or log in if it is private"
            case errors.EntryNotFoundError() if not isinstance(error, errors.LocalEntryNotFoundError):
                what, remedy = f"no such file: {first_line(error)}", f"correct {key}"
            case errors.HfHubHTTPError():
                what, remedy = first_line(error), "check your access by hf auth login, or run again later"
        raise UserError(f"{name}: {what}", where=where, remedy=remedy) from error


COMMIT = re.compile(r"[0-9a-f]{40}")
LOCK_HEADER = "# Commits of the Hub that are read. Written by `make lock PROFILE=<name>`; see pipeline/core/hub.py.\n"


@dataclass(frozen=True, order=True)
class Revision:
    """A branch, tag or commit of a repository on the Hub."""

    kind: str  # dataset or model
    hub: str
    revision: str


def lock_file() -> Path:
    """The lock file of this checkout, or the one that $REVISIONS_LOCK names."""
    default = Path(__file__).resolve().parents[2] / "configs" / "source" / "revisions.lock"
    return Path(os.environ.get("REVISIONS_LOCK") or default)


def read_lock() -> dict[Revision, str]:
    """The locked commits; raises UserError for a malformed line."""
    file = lock_file()
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = {}
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        if len(fields) != 4 or fields[0] not in ("dataset", "model") or not COMMIT.fullmatch(fields[3]):
            where, remedy = f"{file}, line {number}", "a line is: dataset|model <Hub id> <revision> <commit>"
            raise UserError("not a locked revision", where=where, remedy=remedy)
        found[Revision(*fields[:3])] = fields[3]
    return found


def write_lock(commits: dict[Revision, str]) -> None:
    """Write the lock file: its old content, updated with these commits."""
    entries = sorted((read_lock() | commits).items())
    lines = [f"{item.kind} {item.hub} {item.revision} {commit}\n" for item, commit in entries]
    with replacing(lock_file()) as path:
        path.write_text(LOCK_HEADER + "".join(lines), encoding="utf-8")


def locked_commit(wanted: Revision) -> str | None:
    """The locked commit; None if there is none, or the revision is a commit itself."""
    return None if COMMIT.fullmatch(wanted.revision) else read_lock().get(wanted)


def readable_revision(wanted: Revision) -> str:
    """The revision to request from the Hub: the locked commit, else the revision itself.

    Raises UserError if the Hub's branch has moved from the locked commit. Without a network the locked commit is
    returned, as it may be in the local cache.
    """
    commit = locked_commit(wanted)
    if commit is None:
        return wanted.revision
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        now = commit_on_hub(wanted)
    except HfHubHTTPError:  # the Hub answered: gone, gated or renamed
        raise
    except (HTTPError, OSError, OfflineModeIsEnabled):
        message = "%s: the Hub can't be asked whether %s has moved; reading the locked commit"
        log.info(message, wanted.hub, wanted.revision)
        return commit
    if now != commit:
        what = f"{wanted.hub} at {wanted.revision} is now {now[:12]}, not the locked {commit[:12]}"
        remedy = f"look at what changed, then make lock; or set its revision to {commit} to keep the old files"
        raise UserError(what, where=str(lock_file()), remedy=remedy)
    return commit


def commit_on_hub(wanted: Revision) -> str:
    """The revision's present commit; raises the errors of the Hub's client."""
    from huggingface_hub import HfApi

    return str(HfApi().repo_info(wanted.hub, repo_type=wanted.kind, revision=wanted.revision).sha)


def mirrored(repository: str, mirror: str | None) -> Path | None:
    """The repository's folder in the mirror; None without a mirror or where it lacks the repository."""
    folder = Path(mirror, repository) if mirror else None
    return folder if folder and folder.is_dir() else None


def hub_model(wanted: str, revision: str = "main") -> Revision | None:
    """The revision on the Hub that `<Hub id>` or `<Hub id>@<revision>` names; None if the name is a folder."""
    if Path(wanted).expanduser().is_dir():
        return None
    hub, _, own = wanted.partition("@")
    return Revision("model", hub, own or revision)


def local_model(wanted: str, mirror: str | None) -> Path | None:
    """The folder that a model's name means here: itself, or the mirror's; None where only the Hub may have it."""
    if (asked := hub_model(wanted)) is None:
        return Path(wanted).expanduser()
    return mirrored(asked.hub, mirror)
