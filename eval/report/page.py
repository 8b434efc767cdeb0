"""Page: what a report holds, and its HTML. One file without network: figures and pictures are inside it.

Everything that came from a file is escaped by the template; only `Plot.svg` and `Example.picture`, which our own code
draws, go in as they are.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from eval.tables import Table
from seg_backbone.io.atomic import replacing

LONG = 40  # letters of a cell that gets room to break its lines


@dataclass(frozen=True)
class Plot:
    """svg: markup of `inline_svg`. note: how to read it, one sentence."""

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class Example:
    """One case to look at. facts: (name, value) pairs. picture: markup of `draw_slice`. note: a caption, or why there
    is no picture."""

    title: str
    facts: list[tuple[str, str]]
    picture: str = ""
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page under its own heading; only what is given is shown."""

    title: str
    text: str = ""
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.tables or self.plots or self.examples)


@dataclass(frozen=True)
class Page:
    """facts: (name, value) pairs at the top: what was scored, by which rules. Empty sections are left out."""

    title: str
    facts: list[tuple[str, str]]
    sections: list[Section]


def render(page: Page) -> str:
    """The HTML. The page forbids itself every script but its own, and every address outside the file."""
    source = files("eval.report")
    script = (source / "sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["kinds"] = _kinds
    template = environment.from_string((source / "page.html").read_text(encoding="utf-8"))
    return template.render(
        page=page,
        sections=[section for section in page.sections if not section.empty],
        style=(source / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=digest,
    )


def write_page(page: Page, path: str | Path) -> Path:
    """Write the HTML atomically and return its path."""
    with replacing(path) as temporary:
        temporary.write_text(render(page), encoding="utf-8", errors="replace")
    return Path(path)


def _kinds(table: Table) -> list[str]:
    """The CSS class of each column: "words" where a cell is neither a number nor empty, "long" for sentences."""
    return [_kind(column) for column in zip(*table.rows, strict=True)] or [""] * len(table.columns)


def _kind(cells: Sequence[str]) -> str:
    if all(re.match(r"[<±+−-]?\.?\d|[–-]?$", cell) for cell in cells):
        return ""
    return "words long" if any(len(cell) > LONG for cell in cells) else "words"
