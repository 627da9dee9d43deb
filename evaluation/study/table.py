"""What a study writes after its last job: study.csv, study.md and study.svg for its README, and a page."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from evaluation.outcome import Measure, Outcome, read_outcome
from evaluation.report import page
from evaluation.report.charts import Interval, forest_plot, signed
from evaluation.report.format import DASH
from evaluation.significance import Resampling
from evaluation.study.comparison import NAN, REFERENCES, RETRIEVAL_METRIC, ArmScore, compare_arms
from evaluation.study.picture import draw_differences
from pipeline.core.artefact import read_json, read_manifest
from pipeline.core.console import log, markdown_table
from pipeline.core.errors import UserError

HEADLINE = "Mean S"  # of encodechka
DEV = "dev"  # suite of the rows by which an arm may be chosen
RESAMPLES = 2000
ALPHA = 0.05  # of differences in bold, after Holm's correction
GUARDS = "guards"  # the guard set that loses most against the first merged model: init, but for the soup
# Figures of the stage `merge` with their signs: a loss on the guards is negative, as in all differences.
DEV_FIGURES = {"dev": ("dev", 1), "dev_symmetric": ("symmetric dev", 1), "dev_asymmetric": ("asymmetric dev", 1),
               "guard_loss": (GUARDS, -1)}  # fmt: skip
SEED = "training.seed"  # its key in the sweep: data and init are the same for all


class Study(Callback):
    """Hydra callback of a sweep over arms and seeds; `configs/sweep/study.yaml` names it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Raise UserError for runs that the arms which read other arms' models would not find, and for other sweeps."""
        overrides: Any = OmegaConf.to_container(config.hydra.overrides.task)  # unresolved: run=…${swept:}
        for given in OverridesParser.create().parse_overrides(overrides):
            key, where = given.key_or_group, f"config key {given.key_or_group}"
            if key == "run":
                what = "a study names its runs itself: some arms find others by their names"
                raise UserError(what, where=where, remedy="leave RUN and run out; runs=<folder> keeps studies apart")
            if given.is_sweep_override() and key not in ("arm", SEED):
                remedy = "make each value an arm, a file in configs/arm"
                raise UserError("a study compares arms over training seeds alone", where=where, remedy=remedy)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        results = [read_json(path) for path in folder.glob("*/result.json")]
        done = [result for result in sorted(results, key=lambda result: result["job"]) if not result["error"]]
        chosen = [dict(item.split("=", 1) for item in result["overrides"]) for result in done]
        runs = [Path(config.runs) / result["run"] for result in done]
        jobs = {(item["arm"], int(item[SEED])): run for item, run in zip(chosen, runs, strict=True)}
        seeds = {seed for _, seed in jobs}
        if incomplete := {arm for arm, _ in jobs if any((arm, seed) not in jobs for seed in seeds)}:
            log.warning("study: left out, as not all of their seeds succeeded: %s", ", ".join(sorted(incomplete)))
        if jobs := {key: run for key, run in jobs.items() if key[0] not in incomplete}:
            write_study(folder, jobs)


def write_study(folder: Path, jobs: Mapping[tuple[str, int], Path]) -> list[ArmScore]:
    """Compare the runs of all arms and seeds, and write the table, its Markdown, picture and page to `folder`."""
    outcomes = {key: _outcomes(run / "evaluate") for key, run in jobs.items()}
    rows = [*_dev_rows(jobs), *compare_arms(outcomes, Resampling(RESAMPLES))]
    ArmScore.write(folder / "study.csv", rows)
    (folder / "study.md").write_text(markdown(rows), encoding="utf-8")
    draw_differences(folder / "study.svg", rows)
    html = page.render(f"Study of {len({arm for arm, _ in jobs})} arms", "Study", [], sections(rows), folder.as_posix())
    (folder / "index.html").write_text(html, encoding="utf-8")
    log.info("study: %s", folder / "index.html")
    return rows


def _outcomes(stage: Path) -> dict[str, Outcome]:
    """The scored model's outcomes by `<suite>/<task>`, with a suffix for modes other than dense."""
    manifest = read_manifest(stage)
    if manifest is None or manifest.status != "complete":
        raise UserError("an arm was not evaluated", where=str(stage), remedy="run the sweep again")
    (model,) = manifest.config["evaluation"]["chain"]
    folder = stage / "predictions" / model
    paths = sorted(folder.glob("*/*.parquet"))
    found = {path.relative_to(folder).with_suffix("").as_posix(): read_outcome(path) for path in paths}
    return {key + mode: own for key, outcome in found.items() for mode, own in by_mode(outcome).items()}


def by_mode(outcome: Outcome) -> dict[str, Outcome]:
    """The model's outcome in each of its modes, by suffix, such as `.sparse`; dense has none."""
    modes: dict[str, list[Measure]] = {}
    for measure in outcome.measures:
        if measure.by.startswith("{}"):
            modes.setdefault(measure.by.removeprefix("{}"), []).append(measure)
    return {mode: replace(outcome, measures=tuple(own)) for mode, own in modes.items()}


def _dev_rows(jobs: Mapping[tuple[str, int], Path]) -> list[ArmScore]:
    """The scores of the stage `merge` on dev rows and guard sets, for choosing; arms without a merge have none."""
    found: dict[tuple[str, str], list[float]] = {}
    for (arm, _), run in jobs.items():
        manifest = read_manifest(run / "merge")
        for figure, (name, sign) in DEV_FIGURES.items():
            if manifest and (value := manifest.metrics.get(figure)) is not None:
                found.setdefault((arm, name), []).append(sign * float(value))
    rows = []
    for (arm, name), values in found.items():
        metric = RETRIEVAL_METRIC if name == GUARDS else "score"
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else NAN
        rows.append(ArmScore(arm, "", DEV, name, metric, len(values), float(np.mean(values)), spread))
    return rows


def markdown(rows: Sequence[ArmScore]) -> str:
    """The table for its README: a row per arm, a column per headline score.

    Dev scores and the base's scores are shown as they are, the others as differences from the base, in bold if
    significant after Holm's correction.
    """
    arms, columns = list(dict.fromkeys(row.arm for row in rows if row.suite != DEV)), headline(rows)
    known = {(row.arm, row.against, row.suite, row.task): row for row in rows}
    cells = [
        [arm, *(_cell(known.get((arm, "", *column)), known.get((arm, REFERENCES[0], *column))) for column in columns)]
        for arm in arms
    ]
    return markdown_table(["arm", *(task for _, task in columns)], cells) + "\n"


def headline(rows: Sequence[ArmScore]) -> list[tuple[str, str]]:
    """(suite, task) of the columns: dev scores, encodechka's mean of sentence tasks, every held-out set."""
    named = list(dict.fromkeys((row.suite, row.task) for row in rows))
    means = {suite for suite, task in named if task == HEADLINE}
    return [(suite, task) for suite, task in named if suite not in means or task == HEADLINE]


def _cell(score: ArmScore | None, difference: ArmScore | None) -> str:
    if difference is not None:
        text = signed(difference.score, 3)
        return f"**{text}**" if difference.p_holm <= ALPHA else text
    if score is None:
        return DASH
    return signed(score.score, 3) if score.task == GUARDS else f"{score.score:.3f}"


def sections(rows: Sequence[ArmScore]) -> list[page.Section]:
    """The page: a plot of the differences from the base for each headline score, then all figures."""
    found = []
    for suite, task in headline(rows):
        against = [row for row in rows if (row.suite, row.task, row.against) == (suite, task, REFERENCES[0])]
        if against:
            caption = f"{task}: each arm minus {REFERENCES[0]}, mean over seeds with the interval over seeds and items"
            intervals = [Interval(row.arm, row.score, row.ci_low, row.ci_high) for row in against]
            plot = forest_plot(intervals, x_label=f"difference in {against[0].metric}", describe=caption)
            found.append(page.Section(f"{suite}-{task}".replace(" ", "-"), task, [page.picture(plot, caption)]))
    names = ["arm", "against", "suite", "task", "metric", "seeds", "score", "spread", "from", "to", "p (Holm)"]
    cells = [[_shown(value) for value in vars(row).values()] for row in rows]
    return [*found, page.Section("figures", "All figures", [page.table("Every figure of study.csv", names, cells)])]


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value) or DASH
    return f"{value:.4f}".replace("-", "−") if value == value else DASH
