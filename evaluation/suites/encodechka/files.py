"""encodechka's data files: from a local folder, or downloaded once from its repository at a pinned commit."""

import csv
import http.client
import json
import urllib.request
from pathlib import Path
from typing import Any

from filelock import FileLock

from configs.schema.config import Config
from pipeline.core.artefact import file_sha256, replacing
from pipeline.core.errors import UserError

COMMIT = "5e70bcad4de30ebeaa1725dcf5ef2e46f630dc76"
ADDRESS = f"https://raw.githubusercontent.com/avidale/encodechka/{COMMIT}/encodechka_eval/data"
SECONDS_TO_WAIT = 60

SHA256 = {
    "SentiRuEval2016_small_test.csv": "af6ef9a94dd68234e0c980c3bb112cc30d36363101c050c5e2da7092bb4b3b7b",
    "SentiRuEval2016_small_train.csv": "8147090ba42675047c5fcf0bdd48c89cfc46fdfa30b9e697dd21bbbe871bbfaf",
    "factru.json": "30a298bae76e931fad229c6160bf284132daadf6bd272041167de5469e53bb1a",
    "inappropriate_test.csv": "eff4c7b596b11ce55e20c1e346054b1698eb2082ac9be3e570bbf04608665e11",
    "inappropriate_train.csv": "f10e85c3ec434c85cece74837f9071019fd09cd39c239bb37206ac4f6affccb0",
    "intents_test.csv": "da6b214528af9bdfea9286dee45f1fbb4162b5082e876a4ead438913bc3a8d3e",
    "intents_train.csv": "21f6c4838340285efef048eb44a0adf9db650d0fae374e7ed841bb1f7685455d",
    "para_gold.csv": "4a7ba6065b6735a04699a06c9cdf602f08c34b047d6774f17c545ad6d400d37e",
    "rudrec.json": "11484d38217999fb04cf3c9a7edfdf1ad3ad40e70a1a7a6720576c1e4c3d07a0",
    "stsb_dev.csv": "a357bd10d302de03d064c7b295e1f5a6db75c043d41068896441be5b41fad967",
    "toxic_test.csv": "93c879f0abfdbb6050c7e595e06e7887ad2350dc6e9bfda324a9f77e4b375cb3",
    "toxic_train.csv": "34b67121bd33d30b44cda2d937ab568d3baf3a40c3dbbff87e29a9053959056c",
    "xnli_ru.csv": "a451c1061a000072bc01efa5e96f7bbbdf18b1f2c6be13d29045789d46372593",
}


class DataFiles:
    """The folder of the data files, each of which is checked against its sha256."""

    def __init__(self, folder: str | None, cache: Path) -> None:
        """`folder` holds the files; if it is None, they are downloaded to `cache`."""
        self.folder = Path(folder) if folder else cache
        self.download = folder is None

    def __call__(self, name: str) -> Any:
        """Contents of a JSON file, or the rows of a CSV file, whose suffix may be omitted."""
        path = self.path(file_name(name))
        with path.open(encoding="utf-8", newline="") as file:
            return json.load(file) if path.suffix == ".json" else list(csv.DictReader(file))

    def path(self, name: str) -> Path:
        """The path of a checked file; raises UserError if it is missing, altered, or can't be downloaded."""
        path = self.folder / name
        if not path.is_file() and (self.folder / "data" / name).is_file():
            path = self.folder / "data" / name  # the reference code's folder has its files one level deeper
        if not path.is_file():
            if not self.download:
                remedy = f"copy encodechka_eval/data of avidale/encodechka at {COMMIT[:7]} there"
                raise UserError(f"encodechka's data file {name} is missing", where=str(self.folder), remedy=remedy)
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):  # processes of several devices and runs may need it at once
                if not path.is_file():
                    _download(name, path)
        if file_sha256(path) != SHA256[name]:
            remedy = f"take it from avidale/encodechka at commit {COMMIT[:7]}"
            raise UserError(f"{name} differs from the benchmark's file (sha256)", where=str(path), remedy=remedy)
        return path


def file_name(name: str) -> str:
    """A data file's name, of which a CSV file's suffix may be omitted."""
    return name if Path(name).suffix else f"{name}.csv"


def data_files(config: Config) -> DataFiles:
    """The run's files: from the folder in the config or $ENCODECHKA_DATA_PATH, else from the runs' cache."""
    return DataFiles(config.evaluation.encodechka_folder, Path(config.runs, "cache", "encodechka"))


def _download(name: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(f"{ADDRESS}/{name}", timeout=SECONDS_TO_WAIT) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        what = f"encodechka's {name} can't be downloaded: {getattr(error, 'reason', error)}"
        remedy = "connect, or set evaluation.encodechka or $ENCODECHKA_DATA_PATH to a folder that holds the files"
        raise UserError(what, where=ADDRESS, remedy=remedy) from None
    with replacing(path) as temporary:
        temporary.write_bytes(content)
