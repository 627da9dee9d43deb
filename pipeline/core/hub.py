"""The Hub: what its client raises as one line that says what to do, and which commit a revision stands for.

A branch such as `main` moves. `make lock` writes the commits that the Hub has now to `configs/source/revisions.lock`;
from then on these are read, and a branch that has moved since is an error until somebody has looked at what changed. A
line of the file: `<dataset or model> <Hub id> <revision> <commit>`. Without a line for it, a revision is read where it
stands.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.artefact import replacing
from pipeline.core.console import log
from pipeline.core.errors import UserError, first_line

MIRROR = "or set mirror=<folder in the Hub's layout>"


@contextmanager
def hub_errors(name: str, where: str, key: str, otherwise: str = MIRROR) -> Iterator[None]:
    """Raise UserError for what the Hub refuses while the block reads from it or writes to it.

    `name` is what the user calls that which is read, `where` a Hub id and its revision, `key` the config key to mend,
    `otherwise` what to do instead where the network is not there. Other errors, such as those of a full disk, pass.
    """
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # whichever of the two clients is in use

    own = errors.HFValidationError, errors.EntryNotFoundError, errors.LocalTokenNotFoundError
    for client in ("httpx", "httpx2"):  # they log every request
        logging.getLogger(client).setLevel(logging.WARNING)
    try:
        yield
    except (*own, httpx.HTTPError, ConnectionError) as error:
        what, remedy = "the Hub can't be reached", f"check the network, {otherwise}"
        match error:
            case errors.HFValidationError():
                what, remedy = "neither a folder nor a Hub id", f"mend {key}"
            case errors.LocalTokenNotFoundError():
                what, remedy = "no Hub token", "log in with hf auth login"
            case errors.GatedRepoError():
                what, remedy = "access must be asked for", "accept the terms on its page and log in with hf auth login"
            case errors.RepositoryNotFoundError() | errors.RevisionNotFoundError():
                what, remedy = "no such repository or revision on the Hub", f"mend {key}, or log in if it is private"
            case errors.EntryNotFoundError() if not isinstance(error, errors.LocalEntryNotFoundError):
                what, remedy = f"no such file: {first_line(error)}", f"mend {key}"
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
    """The lock of this checkout, or the one that $REVISIONS_LOCK names."""
    default = Path(__file__).resolve().parents[2] / "configs" / "source" / "revisions.lock"
    return Path(os.environ.get("REVISIONS_LOCK") or default)


def read_lock() -> dict[Revision, str]:
    """The locked commits; raises UserError for a line that is none."""
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
    """Write the lock: what it held, with these commits in the place of their old ones."""
    entries = sorted((read_lock() | commits).items())
    lines = [f"{item.kind} {item.hub} {item.revision} {commit}\n" for item, commit in entries]
    with replacing(lock_file()) as path:
        path.write_text(LOCK_HEADER + "".join(lines), encoding="utf-8")


def locked_commit(wanted: Revision) -> str | None:
    """The commit that the lock holds for it; None where it holds none, or the revision is a commit itself."""
    return None if COMMIT.fullmatch(wanted.revision) else read_lock().get(wanted)


def readable_revision(wanted: Revision) -> str:
    """What to ask the Hub for: the locked commit, else the revision itself.

    Raises UserError where the Hub's branch has moved from the locked commit; without a network the locked commit may
    still be in the cache, and is read from there.
    """
    commit = locked_commit(wanted)
    if commit is None:
        return wanted.revision
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        now = commit_on_hub(wanted)
    except HfHubHTTPError:  # it answered: gone, gated or renamed
        raise
    except (HTTPError, OSError, OfflineModeIsEnabled):
        said = "%s: the Hub can't be asked whether %s has moved; reading the locked commit"
        log.info(said, wanted.hub, wanted.revision)
        return commit
    if now != commit:
        what = f"{wanted.hub} at {wanted.revision} is now {now[:12]}, not the locked {commit[:12]}"
        remedy = f"look at what changed, then make lock; or set its revision to {commit} to keep the old files"
        raise UserError(what, where=str(lock_file()), remedy=remedy)
    return commit


def commit_on_hub(wanted: Revision) -> str:
    """The commit that the revision stands for now; raises what the Hub's client raises."""
    from huggingface_hub import HfApi

    return str(HfApi().repo_info(wanted.hub, repo_type=wanted.kind, revision=wanted.revision).sha)


def lock_state(revisions: Iterable[Revision]) -> list[str]:
    """The locked commits of these revisions, for a fingerprint; empty where none is locked."""
    return [commit for item in revisions if (commit := locked_commit(item))]


def hub_model(wanted: str, revision: str = "main") -> Revision | None:
    """What a model's name, `<Hub id>` or `<Hub id>@<revision>`, asks of the Hub; None where it names a folder."""
    if Path(wanted).expanduser().is_dir():
        return None
    hub, _, own = wanted.partition("@")
    return Revision("model", hub, own or revision)


def local_model(wanted: str, mirror: str | None) -> Path | None:
    """The folder that a model's name means here: itself, or the mirror's; None where only the Hub may have it."""
    if (asked := hub_model(wanted)) is None:
        return Path(wanted).expanduser()
    folder = Path(mirror, asked.hub) if mirror else None
    return folder if folder and folder.is_dir() else None
