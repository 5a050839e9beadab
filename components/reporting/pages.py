"""Pages from templates."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Picture:
    """A figure on disk, with its words."""

    path: Path
    title: str
    caption: str

    @property
    def file(self) -> str:
        """The name of its file."""
        return self.path.name

    @property
    def data(self) -> str:
        """The PNG as a data URI, by which a page needs no other file."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()


def render(template: str, content: Mapping[str, Any]) -> str:
    """Fill one template; an unknown name in it is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content) + "\n"
