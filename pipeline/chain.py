"""The chain on one page: each stage's inputs, the settings that change its result, and the function that builds it.

    benchmarks ── data ─┬─ init ─┬─ symmetric ───┐                  ┌─ (export)
                        │        ├─ asymmetric ──┼─ merge ── heads ─┴─ evaluate ─┬─ report ── publish
              base ─────┘        └─ (joint) ─────┘                               └─ (calibrate)

If the run's own base mines negatives, data needs it too.

A stage's fingerprint covers its version, `settings`, what it `needs` (other stages) and what it `reads` (anything else:
files, packages, commits). These are evaluated whenever a command starts, so they import neither torch nor mteb; a
builder is given as module:function and imported when its stage is made. If you change a stage's results, raise its
version.
"""

from dataclasses import asdict

from configs.schema.config import SIDES, STAGES
from data.fingerprints import mining_settings
from evaluation.models import final_stage
from evaluation.published_scores import calibrated_name
from evaluation.report.record import reported
from merging.models import merged_states
from pipeline import inputs
from pipeline.stage import Stage
from training.bases.sources import base_state
from training.vocabulary.corpora import corpus_states


# fmt: off
def side(name: str) -> Stage:
    """One side's training; under `accelerate launch` each process takes its slice of every planned global batch."""
    return Stage(
        name, 8, "training.finetune:build", on_ranks=True, prepare="training.finetune:prepare",
        needs=lambda c: inputs.side_needs(c, name),
        reads=lambda c: inputs.side_reads(c, name),
        settings=lambda c: {"side": c.side(name), "arguments": c.training.arguments, "seed": c.training.seed,
                            "dev": inputs.dev_settings(c), "precision": c.precision, "attention": c.base.attention,
                            "compile": c.base.compile} | inputs.heads_settings(c),
    )


CHAIN = {stage.name: stage for stage in [
    Stage(
        "base", 3, "training.bases.make:build", implied=True,
        reads=base_state,
        settings=lambda c: {key: value for key, value in asdict(c.base).items() if key not in ("attention", "compile")},
    ),
    Stage(
        "benchmarks", 2, "evaluation.benchmark_texts:build", implied=True,
        reads=inputs.benchmark_reads,
        settings=inputs.benchmark_settings,
    ),
    Stage(
        "data", 7, "data.prepare:build", in_place=True,
        needs=inputs.data_needs,
        reads=inputs.data_reads,
        settings=lambda c: {"data": c.data, "mining": mining_settings(c)},
    ),
    Stage(
        "init", 4, "training.vocabulary.build:build",
        needs=lambda c: ["base", "data"] if c.init.counts_pairs else ["base"],
        reads=corpus_states,
        settings=lambda c: {"init": c.init, "languages": c.languages},
    ),
    *map(side, SIDES),
    Stage(
        "merge", 4, "merging.merge:build",
        needs=lambda c: [*(name for name in c.merging.models if name in STAGES), "data"],
        reads=merged_states,
        settings=lambda c: {"merging": c.merging, "dev": inputs.dev_settings(c),
                            "precision": c.precision, "attention": c.base.attention} | inputs.heads_settings(c),
    ),
    Stage(
        "heads", 3, "training.heads.fit:build", on_ranks=True, prepare="training.finetune:prepare",
        needs=lambda c: ["merge", "data"],
        settings=lambda c: {"heads": c.training.heads, "arguments": c.training.arguments, "seed": c.training.seed,
                            "precision": c.precision, "attention": c.base.attention},
    ),
    Stage(
        "export", 1, "evaluation.export.build:build",
        needs=lambda c: [final_stage(c)] + ["data"] * ("openvino-int8" in c.export.formats),
        settings=lambda c: {"export": c.export},
    ),
    Stage(
        "evaluate", 11, "evaluation.evaluate:build", in_place=True, assist="evaluation.evaluate:assist",
        needs=inputs.evaluate_needs,
        reads=inputs.evaluate_reads,
        settings=inputs.evaluate_settings,
    ),
    Stage(
        "report", 14, "evaluation.report.build:build", verified=2**24, extra_outputs=inputs.readme_of_merge,
        needs=lambda c: inputs.complete_stages(c, reported(c.training.heads.kind)),
        reads=inputs.report_reads,
        settings=inputs.report_settings,
    ),
    Stage(
        "publish", 11, "evaluation.publish:build",
        needs=lambda c: ["data", "init", "merge", "evaluate",  # and what else the report covers
                         *inputs.complete_stages(c, [*reported(c.training.heads.kind), "report"])],
        settings=lambda c: {"publish": c.evaluation.publish, "languages": c.languages},
    ),
    Stage(
        "calibrate", 2, "evaluation.calibrate:build",
        needs=lambda c: ["evaluate"],
        settings=lambda c: calibrated_name(c.evaluation),
    ),
]}
