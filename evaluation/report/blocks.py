"""A page and its building blocks: sections of blocks, which the template draws; empty blocks are left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from evaluation.report.format import FIGURE

HERE = Path(__file__).resolve().parent


class Block:
    """An element of the page; the template draws it according to its kind."""

    content: Any

    def __bool__(self) -> bool:
        return any(self.content) if isinstance(self.content, list) else bool(self.content)

    @property
    def kind(self) -> str:
        """The name of the class."""
        return type(self).__name__


@dataclass(frozen=True)
class Text(Block):
    """A paragraph; `style` is a class of the page's CSS, as in a group."""

    content: str
    style: str = ""


@dataclass(frozen=True)
class Heading(Block):
    """A heading inside a section."""

    content: str


@dataclass(frozen=True)
class Code(Block):
    """Scrollable text in a fixed-width font."""

    content: str


@dataclass(frozen=True)
class Facts(Block):
    """Names with one value each."""

    content: list[tuple[str, Any]]


@dataclass(frozen=True)
class Table(Block):
    """Rows of cells, the first of which names the row."""

    caption: str
    columns: Sequence[str]
    content: list[list[Any]]

    @property
    def numeric(self) -> set[int]:
        """Positions of the columns that hold figures only; the first one names the rows."""
        columns = range(1, min(map(len, self.content), default=0))
        return {column for column in columns if all(FIGURE.match(str(row[column])) for row in self.content)}


@dataclass(frozen=True)
class Picture(Block):
    """An inline picture with a caption that describes it."""

    content: Markup
    caption: str


@dataclass(frozen=True)
class Steps(Block):
    """The picture of the chain: groups of (stage, CSS class, status); those of a group don't depend on each other."""

    content: list[list[tuple[str, str, str]]]


@dataclass(frozen=True)
class Group(Block):
    """Blocks side by side, where there is room."""

    style: str
    content: Sequence[Block]


@dataclass(frozen=True)
class Folded(Block):
    """A block folded behind a summary."""

    summary: str
    content: Block
    opened: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page with its anchor and its title in the contents."""

    anchor: str
    title: str
    blocks: Sequence[Block]


def absent(stage: str) -> Text:
    """The text of a section whose stage was not run."""
    return Text(Markup("Not run: this part needs the stage <code>{}</code>.").format(stage), "absent")


def render(title: str, kicker: str, head: Sequence[Block], sections: Sequence[Section], source: str) -> str:
    """One HTML file without scripts or external resources; `source` is the folder of the artefacts behind it."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    style = Markup((HERE / "page.css").read_text(encoding="utf-8"))
    template = templates.get_template("page.html.j2")
    return template.render(title=title, kicker=kicker, source=source, style=style, head=head, sections=sections)
