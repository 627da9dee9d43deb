"""The report stage: one page, the model's card, and the published card's claims beside what this run measured.

It reads the artefacts that are there; a stage that has not run, or failed, is shown as such.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.run_record import CHAIN, read_run
from pipeline.artefact import is_complete, read_manifest
from pipeline.config import Config
from pipeline.console import log
from pipeline.secrets import redacted
from pipeline.stage import Stage, StageFolder, application


def inputs(config: Config) -> dict[str, Path | str]:
    """Every complete artefact of the run; of the others their state, so that a change of it makes the page anew."""
    found: dict[str, Path | str] = {}
    for name in CHAIN:
        manifest = read_manifest(config.folder(name))
        if manifest and manifest.status == "complete":
            found[name] = config.folder(name)
        elif manifest:
            found[name] = f"{manifest.status} {manifest.fingerprint}"
    return found


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Write index.html, model_card.md (also as the merged model's README.md) and claims.csv."""
    from evaluation.claims import VERDICTS, check_claims, claims_csv
    from evaluation.model_card import render_card, write_readme
    from evaluation.report_page import render_page
    from evaluation.usage_example import usage_similarities

    run = read_run(config.folder("report").parent, redacted(asdict(config)))
    if not stage.inputs:
        log.warning("report: nothing has been run yet, and the page says so")
    merged = run.stages["merge"].complete
    settings = config.evaluation.report
    similarities = usage_similarities(run.model_folder("merge"), settings, config.mirror) if merged else {}
    claims = check_claims(run, similarities)
    outputs = {"claims.csv": claims_csv(claims), "index.html": render_page(run, claims)}
    if merged:
        outputs["model_card.md"] = render_card(run, config, model_id=run.model_folder("merge").as_posix())
        write_readme(run, outputs["model_card.md"])
    for name, text in outputs.items():
        with stage.replacing(name) as path:
            path.write_text(text, encoding="utf-8")
    counts = {f"claims {verdict}": sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS}
    complete = sum(part.complete for part in run.stages.values())
    return {"stages": f"{complete} of {len(run.stages)} complete", **counts}


def _settings(config: Config) -> Mapping[str, Any]:
    return {
        "report": config.evaluation.report,
        "licence": config.evaluation.publish.licence,
        "languages": config.languages,
        "base": config.base,
    }


def _beside(config: Config) -> list[Path]:
    """The merged model's README.md, which goes when the merge is made anew, be it byte for byte the same."""
    merge = config.folder("merge")
    return [merge / "model" / "README.md"] if is_complete(merge) else []


STAGE = Stage(name="report", version=2, settings=_settings, inputs=inputs, build=build, verified=2**24, beside=_beside)
main = application(STAGE)

if __name__ == "__main__":
    main()
