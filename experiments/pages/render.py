"""The page as HTML: one file with its style and scripts, that needs nothing beside it."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from experiments.pages.page import Page
from experiments.pages.signs import visible

PARTS = Path(__file__).with_name("parts")
SCRIPTS = ("theme.js", "tables.js", "places.js", "answers.js", "examples.js", "start.js")


def render(page: Page) -> str:
    """The whole page. What stored files say is escaped everywhere; no script runs but the page's own, by its hash."""
    environment = Environment(
        loader=FileSystemLoader(PARTS),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    script = "\n".join((PARTS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (PARTS / "style.css").read_text(encoding="utf-8")
    template = environment.get_template("page.html")
    return template.render(page=page, script=script, style=style, hash=hashed(script))


def _shown(value: Any) -> Any:
    """What a template writes: texts without signs that are not seen."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def hashed(script: str) -> str:
    """A script's hash as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')}"
