"""Tracking: each stage that is made becomes a run in Weights & Biases or trackio, grouped by chain.

The two libraries share an interface. A run holds the stage's resolved config, the lines of its metrics.jsonl, its
final metrics, and an artefact `<stage>-<fingerprint>` with its manifest; metadata and config name the inputs in the
same way, so a chain can be traced by fingerprints, offline too. The outputs themselves are not uploaded.
"""

import hashlib
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from configs.schema.config import Config
from pipeline.core.artefact import MANIFEST, Manifest, StageFolder, untracked
from pipeline.core.console import log
from pipeline.core.errors import INSTALL, UserError, first_line, redacted

Track = Callable[[dict[str, Any]], None]  # takes one line of metrics.jsonl


@contextmanager
def tracked(config: Config, folder: StageFolder, manifest: Manifest) -> Iterator[Track]:
    """Track the stage that the block makes; raises UserError if the tracker is not installed or can't start.

    One that fails later, as its service dies, gets no more: hours of training must not end with it.
    """
    kind = config.tracking.kind
    if kind == "none":
        yield untracked
        return
    try:
        library = importlib.import_module(kind)
    except ImportError as error:
        where, remedy = "config key tracking.kind", f"{INSTALL} {kind}, or tracking=none"
        raise UserError(f"{kind} can't be imported: {error}", where=where, remedy=remedy) from error
    run, is_lost = _started(library, config, folder, manifest), False

    def attempt(send: Callable[..., None], *content: Any) -> None:
        nonlocal is_lost
        try:
            if not is_lost:
                send(*content)
        except Exception as error:
            is_lost = True
            log.warning("%s: %s failed, and gets no more of it: %s", manifest.stage, kind, first_line(error))

    def send_result() -> None:
        if metrics := _numbers(manifest.metrics):  # of the stage as a whole, not points on its curves
            run.summary.update(metrics) if kind == "wandb" else run.log(metrics)
        artefact = library.Artifact(
            link(manifest.stage, manifest.fingerprint), manifest.stage, metadata=_links(manifest)
        )
        artefact.add_file(str(folder.path / MANIFEST))
        run.log_artifact(artefact)

    status = {"exit_code": 1} if kind == "wandb" else {}
    try:
        yield partial(attempt, lambda line: run.log(_numbers(line), step=line["step"]))
        attempt(send_result)
        status = dict.fromkeys(status, 0)
    finally:
        attempt(partial(library.finish, **status))


def link(name: str, fingerprint: str) -> str:
    """The name of a stage's artefact in the tracker."""
    return f"{name}-{fingerprint[:16]}"


def _started(library: Any, config: Config, folder: StageFolder, manifest: Manifest) -> Any:
    name = f"{config.run}-{manifest.stage}"
    arguments: dict[str, Any] = {
        "project": config.tracking.project,
        "group": config.run,
        "name": name,
        "config": redacted(manifest.config) | _links(manifest),
        "resume": "allow" if folder.resuming else "never",
    }
    if config.tracking.kind == "wandb":
        arguments |= {
            "job_type": manifest.stage,
            "dir": config.run_folder,  # also for the base, which the runs share
            # A stage resumed after a kill continues its run.
            "id": hashlib.sha256(f"{name} {manifest.fingerprint}".encode()).hexdigest()[:16],
            "resume": "allow" if folder.resuming else None,
            "settings": library.Settings(silent=True, console="off", disable_git=True, save_code=False),
        }
    try:
        run = library.init(**arguments)
    except Exception as error:  # no account, network or disk space: whatever the service raises
        what = f"{config.tracking.kind} can't start: {first_line(error)}"
        remedy = "log in, work offline (WANDB_MODE=offline), or leave it out (tracking=none)"
        raise UserError(what, where="config key tracking.kind", remedy=remedy) from error
    online = config.tracking.kind == "wandb" and not run.offline
    log.info("%s: tracked by %s as %s", manifest.stage, config.tracking.kind, run.url if online else name)
    return run


def _links(manifest: Manifest) -> dict[str, Any]:
    inputs = {name: link(name, fingerprint) for name, fingerprint in manifest.inputs.items()}
    return {"fingerprint": manifest.fingerprint, "inputs": inputs}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    kept = {name: value for name, value in values.items() if isinstance(value, int | float) and name != "step"}
    return {name.replace(" ", "_"): value for name, value in kept.items()}
