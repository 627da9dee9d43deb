"""The merged model's results in the layout in which mteb takes submissions: <org__name>/<revision>/<Task>.json."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

from configs.schema.config import Config
from evaluation.models import chain_model
from evaluation.run_record import RunRecord


def mteb_folder(config: Config) -> Path:
    """Where mteb's results are kept across runs, a folder for each of its versions, whose scores differ."""
    return Path(config.runs, "cache", "mteb", version("mteb"))


def write_results(run: RunRecord, config: Config, folder: Path, name: str) -> int:
    """Copy the merge's cached results of mteb's own tasks below `folder`; returns how many there are.

    `name` is the model's id. The revision is the fingerprint of its contents: a commit does not exist before an
    upload, and whoever submits the files renames the folder to the commit. Tasks that mteb does not know, such as
    this project's samples, are left out.
    """
    model = chain_model(config, "merge")
    if model is None:
        return 0
    key = f"{model.fingerprint}-{config.evaluation.precision}"
    known = mteb_tasks(run)
    files = [path for path in sorted(mteb_folder(config).glob(f"results/*/{key}/*.json")) if path.stem in known]
    target = folder / name.replace("/", "__") / model.fingerprint[:40]
    for path in files:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.name)
    if files:
        meta = json.loads((files[0].parent / "model_meta.json").read_text(encoding="utf-8"))
        meta |= {"name": name, "revision": model.fingerprint[:40]}
        (target / "model_meta.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return len(files)


def mteb_tasks(run: RunRecord) -> set[str]:
    """Tasks of the run's scores that belong to suites of mteb."""
    return {score.task for score in run.scores if run.suite_kind(score.suite) == "mteb"}
