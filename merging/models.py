"""Which models are merged: those of this run's stages, and others given by path or pattern."""

from glob import glob
from pathlib import Path

from configs.schema.config import STAGES, Config
from pipeline.core.artefact import folder_state, json_sha256, read_manifest
from pipeline.core.errors import UserError


def merged_models(config: Config) -> dict[str, Path]:
    """The folders of `merging.models` by name, the base first; another run's model is called `<run>-<stage>`.

    Raises UserError: a path or pattern that matches no folder, a model that is named twice, fewer than two models,
    one weight for several models.
    """
    return {name: folder for name, (_, folder) in _found(config).items()}


def merged_weights(config: Config) -> dict[str, float]:
    """The configured weights by the same names; raises UserError as `merged_models` does."""
    given = config.merging.weights
    return {name: given[wanted] for name, (wanted, _) in _found(config).items() if wanted in given}


def _found(config: Config) -> dict[str, tuple[str, Path]]:
    """By name, a model's entry in `merging.models` and its folder."""
    found: dict[str, tuple[str, Path]] = {}
    for wanted in config.merging.models:
        is_stage = wanted in STAGES
        given = config.model_folder(wanted) if is_stage else Path(wanted).expanduser()
        folders = [given] if is_stage or given.is_dir() else sorted(map(Path, glob(str(given))))
        for folder in folders:
            name = wanted if is_stage else "-".join(folder.parts[: -1 if folder.name == "model" else None][-2:])
            if name in found:
                raise _wrong(f"two merged models are called {name}", wanted)
            found[name] = wanted, folder
        if len(folders) > 1 and wanted in config.merging.weights:
            raise _wrong(f"one weight is given for {len(folders)} models", wanted)
        if not folders:
            raise _wrong("there is no such model folder", wanted)
    if len(found) < 2:
        raise _wrong(f"a merge needs at least two models, not {len(found)}", ", ".join(config.merging.models))
    return found


def merged_states(config: Config) -> dict[str, str]:
    """Fingerprints of the merged models from outside this run: of their artefact, else of their files."""
    others = {name: folder for name, folder in merged_models(config).items() if name not in STAGES}
    return {f"model:{name}": _state(folder) for name, folder in others.items()}


def _state(folder: Path) -> str:
    manifest = read_manifest(folder) or read_manifest(folder.parent)
    if manifest and manifest.status == "complete":
        return manifest.fingerprint
    return json_sha256(folder_state(folder))


def _wrong(what: str, where: str) -> UserError:
    return UserError(what, where=where, remedy="fix merging.models: stages of this run, paths or patterns")
