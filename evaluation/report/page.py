"""The report page: one HTML file without scripts or external resources."""

from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from evaluation.report import about_cost, about_results, about_run, about_training
from evaluation.report.blocks import Block, Section
from evaluation.report.claims import Claim
from evaluation.report.record import RunRecord

HERE = Path(__file__).resolve().parent


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


def render(title: str, kicker: str, head: Sequence[Block], sections: Sequence[Section], source: str) -> str:
    """A page of these sections; `source` is the folder of the artefacts behind them."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    style = Markup((HERE / "page.css").read_text(encoding="utf-8"))
    template = templates.get_template("page.html.j2")
    return template.render(title=title, kicker=kicker, source=source, style=style, head=head, sections=sections)
