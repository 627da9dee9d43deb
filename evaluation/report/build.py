"""The stage `report`: one page, the model's card, and the published card's claims next to what this run measured.

It reads the existing artefacts; a stage that has not run or has failed is shown as such.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from configs.schema.config import Config
from evaluation.report import about_cost, about_results, about_run, about_training
from evaluation.report.card import render_card
from evaluation.report.claims import VERDICTS, Claim, check_claims, claims_csv
from evaluation.report.page import render
from evaluation.report.record import RunRecord, read_run
from evaluation.report.usage_example import usage_similarities
from pipeline.core.artefact import StageFolder, replacing
from pipeline.core.console import log
from pipeline.core.errors import redacted


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Write index.html, model_card.md (also as the merged model's README.md) and, if there are claims, claims.csv."""
    run = read_run(config.run_folder, redacted(asdict(config)))
    if not stage.inputs:
        log.warning("report: nothing has been run yet; the page has no results")
    merged = "merge" in run.complete
    settings = config.evaluation.report
    claims = []
    if run.about_the_card:
        similarities = usage_similarities(run.model_folder("merge"), settings, config.mirror) if merged else {}
        claims = check_claims(run, similarities)
    outputs = {"index.html": render_page(run, claims)} | ({"claims.csv": claims_csv(claims)} if claims else {})
    if merged:
        outputs["model_card.md"] = render_card(run, config, model_id=run.model_folder("merge").as_posix())
        with replacing(run.model_folder("merge") / "README.md") as path:
            path.write_text(outputs["model_card.md"], encoding="utf-8")
    for name, text in outputs.items():
        with stage.replacing(name) as path:
            path.write_text(text, encoding="utf-8")
    model = f"; the model is {run.model_folder('merge')}" if merged else ""
    log.info("open %s%s", stage.path / "index.html", model)
    verdicts = VERDICTS if claims else ()
    counts = {f"claims {verdict}": sum(claim.verdict == verdict for claim in claims) for verdict in verdicts}
    return {"stages": f"{len(run.complete)} of {len(run.stages)} complete", **counts}


def render_page(run: RunRecord, claims: Sequence[Claim]) -> str:
    """The page's HTML; sections whose stage has not run say so, and those about the card appear only with claims."""
    sections = [
        about_run.chain(run),
        about_run.data(run),
        about_run.vocabulary(run),
        about_training.training(run),
        about_training.merge(run),
        about_results.scores(run),
        *about_cost.cost(run),
        *([about_results.published_card(run, claims), about_results.claims_by_group(claims)] if claims else []),
        about_run.environment(run),
    ]
    return render(run.folder.name, "Report of a run", about_run.head(run), sections, run.folder.as_posix())
