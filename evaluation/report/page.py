"""A page and the blocks of its sections: each is HTML, and empty if it has no content."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from evaluation.report.format import FIGURE

HERE = Path(__file__).resolve().parent
LONG_NAME = 24  # characters; rows' names that are longer may wrap


@dataclass(frozen=True)
class Section:
    """A part of the page with its anchor and its title in the contents."""

    anchor: str
    title: str
    blocks: Sequence[Markup]


def text(content: str, style: str = "") -> Markup:
    """A paragraph; `style` is a class of the page's CSS, as in a group."""
    return _element("p", style, content)


def absent(stage: str) -> Markup:
    """The text of a section whose stage was not run."""
    return text(Markup("Not run: this part needs the stage <code>{}</code>.").format(stage), "absent")


def heading(content: str) -> Markup:
    """A heading inside a section."""
    return _element("h3", "", content)


def code(content: str) -> Markup:
    """Scrollable text in a fixed-width font."""
    return Markup('<pre class="scroll" tabindex="0">{}</pre>\n').format(content)


def facts(values: Iterable[tuple[str, Any]]) -> Markup:
    """Names with one value each."""
    return _element("dl", "facts", _each("<div><dt>{}</dt><dd>{}</dd></div>", values))


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markup:
    """Rows of cells, the first of which names the row; columns that hold figures only are aligned to the right."""
    if not rows:
        return Markup()
    by_column = zip(*rows, strict=True)
    figures = [place > 0 and all(FIGURE.match(str(cell)) for cell in cells) for place, cells in enumerate(by_column)]
    styles = [Markup(' class="n"' if figure else "") for figure in figures]
    body = []
    for name, *cells in rows:
        wraps = len(Markup(name).striptags()) > LONG_NAME
        head = Markup('<span class="head">{}</span>').format(name) if wraps else name
        body.append((head, _each("<td{}>{}</td>", zip(styles[1:], cells, strict=True))))
    html = '<div class="scroll" role="region" tabindex="0" aria-label="{0}">\n<table>\n'
    html += "<caption><span>{0}</span></caption>\n<thead><tr>{1}</tr></thead>\n"
    html += "<tbody>\n{2}</tbody>\n</table>\n</div>\n"
    titles = _each('<th scope="col"{}>{}</th>', zip(styles, columns, strict=True))
    return Markup(html).format(caption, titles, _each('<tr><th scope="row">{}</th>{}</tr>\n', body))


def picture(content: Markup, caption: str) -> Markup:
    """An inline picture with a caption that describes it."""
    return _element("figure", "", content and content + Markup("<figcaption>{}</figcaption>").format(caption))


def steps(groups: Iterable[Iterable[tuple[str, str, str]]]) -> Markup:
    """The picture of the chain: groups of (stage, CSS class, status); those of a group don't depend on each other."""
    stage = '<span class="stage {1}">{0}<small>{2}</small></span>'
    return _element("ol", "chain", _each("<li>{}</li>", ([_each(stage, group)] for group in groups)))


def group(style: str, blocks: Iterable[Markup]) -> Markup:
    """Blocks side by side, where there is room."""
    return _element("div", style, Markup().join(blocks))


def folded(summary: str, content: Markup, opened: bool = False) -> Markup:
    """A block folded behind a summary."""
    parts = Markup(" open" if opened else ""), summary, content
    return Markup("<details{}><summary>{}</summary>{}</details>\n").format(*parts) if content else Markup()


def render(title: str, kicker: str, head: Sequence[Markup], sections: Sequence[Section], source: str) -> str:
    """One HTML file without scripts or external resources; `source` is the folder of the artefacts behind it."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    style = Markup((HERE / "page.css").read_text(encoding="utf-8"))
    template = templates.get_template("page.html.j2")
    return template.render(title=title, kicker=kicker, source=source, style=style, head=head, sections=sections)


def _element(tag: str, style: str, content: str) -> Markup:
    attribute = Markup(' class="{}"').format(style) if style else ""
    return Markup("<{0}{1}>{2}</{0}>\n").format(tag, attribute, content) if content else Markup()


def _each(html: str, rows: Iterable[Iterable[Any]]) -> Markup:
    """The HTML with the values of each row, escaped in a fourth of the time that `Markup.format` takes."""
    return Markup("".join(html.format(*map(escape, row)) for row in rows))
