"""Pages: what one says, and its two forms, one self-contained HTML file and Markdown with PNG figures beside it."""

import base64
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.reporting.tables import Table

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Picture:
    """A figure on disk, with its words."""

    kind: ClassVar = "picture"
    path: Path
    title: str
    caption: str = ""

    @property
    def data(self) -> str:
        """The PNG as a data URI, by which a page needs no other file."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()


@dataclass(frozen=True)
class Notes:
    """Short remarks, one line each."""

    kind: ClassVar = "notes"
    lines: Sequence[str]


Block = Table | Picture | Notes


@dataclass(frozen=True)
class Section:
    """A heading, how to read what follows, and what follows (None for nothing). A folded section opens on demand."""

    title: str
    blocks: Sequence[Block | None]
    words: str = ""
    folded: bool = False

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """headlines: what a hurried reader takes away, first of all; facts: what was run, on what."""

    title: str
    lead: str
    sections: Sequence[Section]
    headlines: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    footer: str = ""

    def write(self, *paths: Path) -> Path:
        """Write it as .html or .md, by the paths' suffixes; returns the first."""
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._render(path))
        return paths[0]

    def _render(self, path: Path) -> str:
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            undefined=StrictUndefined,
            autoescape=path.suffix == ".html",
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["beside"] = lambda picture: os.path.relpath(picture.path, path.parent)
        sections = [section for section in self.sections if any(section.blocks) or section.words]
        return environment.get_template(f"page{path.suffix}.j2").render(page=self, sections=sections) + "\n"
