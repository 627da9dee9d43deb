"""The stage `publish`: the merged model's folder for the Hub, and its upload.

The run's folder `publish/` holds everything to upload: `model/` (weights, tokenizer, modules, heads, id map and exports
if there are any, card, licence, and under `provenance/` the artefacts behind the card's figures) and `results/`, scores
in mteb's layout for submissions. By default nothing is uploaded; with `dry_run=false`, `model/` is.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi

from configs.schema.config import SIDES, Config, remake
from evaluation.models import chain_model, read_model_facts
from evaluation.report.card import render_card
from evaluation.report.hub_metadata import OPEN, licence, terms
from evaluation.report.record import RunRecord, outdated_inputs, read_run
from evaluation.suites.mteb_run import results_folder
from pipeline.core.artefact import StageFolder, files_under, link_tree, read_json, read_manifest, write_json
from pipeline.core.console import console, log, quiet, show_table
from pipeline.core.errors import UserError
from pipeline.core.hub import hub_errors
from pipeline.core.model_folder import EXPORT_FOLDERS, EXPORT_PATTERNS, HUB_FILES, TORCH_FILES
from pipeline.core.models import load_folder

PROVENANCE = {  # stage -> the files that the card's figures come from
    "data": ["ledger.json", "ledger.md"],
    "init": ["certificate.json"],
    **{side: ["plan.json"] for side in SIDES},
    "merge": ["weights.json", "search.csv"],
    "heads": ["plan.json"],
    "export": [],
    "evaluate": ["scores.csv", "comparison.csv"],
    "report": ["claims.csv"],
}
LICENCE = Path(__file__).resolve().parents[1] / "LICENSE"
NO_LICENCE = "No one licence covers this model. The terms of its training sets rule out some uses:"
# Deleted from an earlier upload if this one lacks them; not LICENSE, which may have been added there by hand.
REPLACED = [*HUB_FILES, TORCH_FILES, *EXPORT_PATTERNS, "vocabulary/*", "provenance/*"]
TOLERANCE = 1e-5  # between the embeddings of the two libraries


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Write the folder and verify it.

    Raises UserError if the artefacts don't belong together, or the two libraries disagree on its embeddings.
    """
    require_one_piece(stage)
    run, settings = read_run(config.run_folder, asdict(config)), config.evaluation.publish
    model_id = settings.repo or (stage.path / "model").as_posix()
    if restricted := terms(run):
        what = "publish: licence %s; the terms of training sets rule out some uses, and may apply to the model: %s"
        log.warning(what, licence(run, config), restricted)
    with stage.replacing("model") as folder:
        write_model(run, config, folder, model_id)
        write_provenance(stage.inputs, folder / "provenance")
        with quiet():
            difference = largest_difference(folder)
        if "export" in stage.inputs:
            for name in EXPORT_FOLDERS:
                if (stage.inputs["export"] / name).is_dir():
                    link_tree(stage.inputs["export"] / name, folder / name, without="README.md")
    with stage.replacing("results") as folder:
        folder.mkdir()
        tasks = write_results(run, config, folder, settings.repo or f"local/{config.run}")
    rows = [
        (path.relative_to(stage.path / "model").as_posix(), path.stat().st_size)
        for path in files_under(stage.path / "model")
    ]
    show_table(f"files to upload to {settings.repo or '<repo>'}", ["file", "bytes"], rows)
    counts = {"files": len(rows), "bytes": sum(size for _, size in rows), "result files": tasks}
    made = counts | {"largest difference of embeddings": difference}
    if settings.dry_run:
        console.print("Dry run: nothing was uploaded. Upload with ARGS=evaluation.publish.dry_run=false.")
        return made
    assert settings.repo
    return made | {"commit": upload(stage.path / "model", settings.repo, settings.private)}


def require_one_piece(stage: StageFolder) -> None:
    """Raise UserError if the merge, or what describes it, was built from artefacts that have since been rebuilt."""
    manifests = {name: manifest for name in stage.inputs if (manifest := read_manifest(stage.inputs[name]))}
    for name in (*manifests["merge"].inputs, "merge", "heads", "export", "evaluate", "report"):
        if earlier := outdated_inputs(name, manifests):
            what = f"{name} was built from an earlier {' and '.join(earlier)}"
            raise UserError(what, where=str(stage.inputs[name]), remedy=f"bring it up to date: {remake([name])}")


def write_model(run: RunRecord, config: Config, folder: Path, model_id: str) -> None:
    """Write the final model with its card and licence."""
    link_tree(run.model_folder("merge"), folder, without="README.md")
    (folder / "README.md").write_text(render_card(run, config, model_id), encoding="utf-8")
    listed = terms(run)
    texts = {OPEN: LICENCE.read_text(encoding="utf-8"), "other": listed and f"{NO_LICENCE}\n\n{listed}\n"}
    if text := texts.get(licence(run, config)):
        (folder / "LICENSE").unlink(missing_ok=True)  # a hard link to the merge's
        (folder / "LICENSE").write_text(text, encoding="utf-8")
    elif not (folder / "LICENSE").exists():
        what = "publish: no LICENSE is uploaded for licence %s; an existing one is kept: check that it fits"
        log.warning(what, licence(run, config))


def write_provenance(made: Mapping[str, Path], folder: Path) -> None:
    """Copy the files behind the card's figures, and record which stage made them, from what, on which machine."""
    stages = {}
    for name, files in PROVENANCE.items():
        if name not in made or not (manifest := read_manifest(made[name])):
            continue
        kept = ("fingerprint", "inputs", "metrics", "environment", "seconds", "peak_rss_bytes", "peak_gpu_bytes")
        stages[name] = {key: getattr(manifest, key) for key in kept}
        for file in files:
            if (made[name] / file).is_file():
                (folder / name).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(made[name] / file, folder / name / file)
    write_json(folder / "stages.json", stages)


def write_results(run: RunRecord, config: Config, folder: Path, name: str) -> int:
    """Copy the merge's cached results on mteb's own tasks to `folder`; returns their number.

    `name` is the model's id. The revision is the fingerprint of its contents, as there is no commit before the upload;
    rename the folder to the commit before submitting the files. Tasks unknown to mteb, such as this project's samples,
    are left out, and results of other subsets or splits, as another run may have scored the model on these since.
    """
    model = chain_model(config, "merge")
    if model is None:
        return 0
    key = f"{model.fingerprint}-{config.evaluation.precision}"
    scored = {(score.task, score.suite) for score in run.scores if run.suite_kind(score.suite) == "mteb"}
    parts = [(task, run.notes.get(f"{suite}/{task}", {}).get("parts") or {}) for task, suite in sorted(scored)]
    files = []
    for path in sorted(results_folder(config).glob(f"results/*/{key}/*.json")):
        if wanted := [own.keys() for task, own in parts if task == path.stem]:
            by_split = read_json(path)["scores"].items()
            held = {f"{entry['hf_subset']}/{split}" for split, entries in by_split for entry in entries}
            if any(own <= held for own in wanted):
                files.append(path)
            else:
                what = "publish: mteb's results of %s are of other subsets or splits; make evaluate PROFILE=%s RUN=%s "
                log.warning(what + "ARGS=force=true", path.stem, config.profile, config.run)
    target = folder / name.replace("/", "__") / model.fingerprint[:40]
    for path in files:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.name)
    if files:
        meta = read_json(files[0].parent / "model_meta.json")
        write_json(target / "model_meta.json", meta | {"name": name, "revision": model.fingerprint[:40]})
    return len(files)


def largest_difference(folder: Path) -> float:
    """Between the embeddings of sentence-transformers and those of transformers with manual pooling.

    Raises UserError if it exceeds 1e-5.
    """
    facts, texts = read_model_facts(folder), ["Река замерзает в ноябре.", "Рецепт борща"]
    encoder = load_folder(folder, "cpu")
    ours = torch.as_tensor(encoder.encode(texts, prompt="", show_progress_bar=False))
    batch = encoder.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        loader = getattr(transformers, facts.loader)
        model = loader.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    if facts.pooling == "mean":
        pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    else:
        pooled = hidden[:, 0] if facts.pooling == "cls" else hidden[torch.arange(len(texts)), mask.sum(dim=1)[:, 0] - 1]
    theirs = torch.nn.functional.normalize(pooled) if facts.normalize else pooled
    difference = float((ours - theirs).abs().max())
    if not difference <= TOLERANCE:
        what = f"sentence-transformers and transformers differ by {difference:.2g} on the folder's embeddings"
        raise UserError(what, where=str(folder), remedy="rebuild the merge: make merge ARGS=force=true")
    return difference


def upload(folder: Path, repo: str, private: bool) -> str:
    """Upload `folder` as one commit, creating the repository if it is missing; returns the commit's URL.

    Raises UserError if the Hub can't be reached or refuses the upload.
    """
    api, message = HfApi(), "Merged model with its card and the provenance of every figure"
    with hub_errors("publish", repo, "evaluation.publish.repo", "then run again"):
        api.create_repo(repo, private=private, exist_ok=True)
        return api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=message, delete_patterns=REPLACED
        ).commit_url
