"""What all pages share: templates, style, script, and a policy that forbids everything else.

A page is one file. Its policy (Content-Security-Policy) allows the style and the script that it comes with, by their
digests, and no request: a text of a run that got past escaping could neither run nor send anything.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from optimas_jax.core.text.secrets import shareable
from optimas_jax.core.types import valid_text
from optimas_jax.report.page import text

FOLDER = Path(__file__).parent / "templates"
_FILTERS = ("number", "signed", "interval", "count", "dollars", "duration", "percent", "clip", "name", "plain", "slug")


def render(template: str, **fields: Any) -> str:
    """A page from a template below ``templates/`` that extends ``base.html``; every text in it is escaped.

    Args:
      template: path of the template.
      fields: its variables; ``title`` among them.
    """
    style, script = _shipped("style.css"), _shipped("page.js")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template(template)
    shared = {"style": Markup(style), "script": Markup(script), "policy": policy}  # noqa: S704  # files of this package
    return valid_text(shareable(page.render(**fields, **shared)))


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {name: getattr(text, name) for name in _FILTERS}
    environment.filters["plural"] = text.counted
    return environment


def _shown(value: Any) -> Any:
    """What ``{{ value }}`` writes: nothing for None, texts with pictures in place of control characters."""
    if value is None:
        return ""
    return text.visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


@functools.cache
def _shipped(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _digest(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
