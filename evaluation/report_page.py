"""The report page: one HTML file without scripts and without anything from outside."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from evaluation import report_chain as chain
from evaluation import report_results as results
from evaluation import report_training as training
from evaluation.claims import Claim
from evaluation.report_format import numeric_columns
from evaluation.run_record import RunRecord

HERE = Path(__file__).resolve().parent
CONTENTS = [
    ("chain", "The chain"),
    ("data", "Data"),
    ("vocabulary", "Vocabulary"),
    ("training", "Plan and training"),
    ("merge", "Merge"),
    ("scores", "Scores"),
    ("card", "The published card"),
    ("claims", "Claims"),
    ("environment", "Environment"),
]


def render_page(run: RunRecord, claims: Sequence[Claim]) -> str:
    """The page's HTML; parts whose stage has not run say so."""
    page = {
        "run": run.folder.name,
        "folder": run.folder.as_posix(),
        "style": (HERE / "report_page.css").read_text(encoding="utf-8"),
        "contents": CONTENTS,
        **_about_the_run(run),
        **_about_training(run),
        **_about_results(run, claims),
    }
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    templates.filters["numeric_columns"] = numeric_columns
    return templates.get_template("report_page.html.j2").render(page=page)


def _about_the_run(run: RunRecord) -> dict[str, Any]:
    dropped_columns, dropped = chain.dropped_rows(run)
    return {
        "lede": chain.lede(run),
        "caution": chain.caution(run),
        "headline": chain.headline(run),
        "chain_groups": chain.chain_groups(run),
        "chain_columns": chain.CHAIN_COLUMNS,
        "chain": chain.chain_rows(run),
        "chain_notes": list(chain.chain_notes(run)),
        "ledger_facts": chain.ledger_facts(run),
        "ledger_columns": chain.LEDGER_COLUMNS,
        "ledger": chain.ledger_rows(run),
        "held_out": chain.held_out_rows(run),
        "sources": chain.source_rows(run),
        "dropped_columns": dropped_columns,
        "dropped": dropped,
        "certificate": bool(run.certificate),
        "guarantee": (run.certificate or {}).get("guarantee"),
        "certificate_sizes": chain.certificate_sizes(run),
        "certificate_facts": chain.certificate_facts(run),
        "certificate_tables": chain.certificate_tables(run),
        "environment_columns": chain.ENVIRONMENT_COLUMNS,
        "environment": chain.environment_rows(run),
        "config": yaml.safe_dump(run.config, allow_unicode=True, sort_keys=False) if run.config else None,
    }


def _about_training(run: RunRecord) -> dict[str, Any]:
    plan_columns, plan = training.plan_table(run)
    compared_columns, compared = training.compared_table(run)
    search_columns, search = training.search_table(run)
    picture, words = training.simplex(run)
    return {
        "plan_columns": plan_columns,
        "plan": plan,
        "sides": training.side_views(run),
        "weights": training.merge_facts(run),
        "simplex": picture,
        "simplex_alt": words,
        "compared_columns": compared_columns,
        "compared": compared,
        "search_columns": search_columns,
        "search": search,
    }


def _about_results(run: RunRecord, claims: Sequence[Claim]) -> dict[str, Any]:
    return {
        "suites": results.suite_tables(run),
        "forests": results.forests(run),
        "comparison_columns": results.COMPARISON_COLUMNS,
        "comparison": results.comparison_rows(run),
        "card_tables": results.card_tables(run, claims),
        "claims_summary": f"Of the card's {len(claims)} figures: {results.verdict_counts(claims)}.",
        "claim_groups": results.claim_groups(claims),
    }
