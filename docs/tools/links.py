"""Links of the documents: internal ones that lead nowhere are an error, external ones are listed, not fetched.

python docs/tools/links.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2[ \t]*$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)|(?:src|srcset|href)=\"([^\"]+)\"")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)


def pages(root: Path = ROOT) -> list[Path]:
    """README.md, what else is at the top, and all pages of docs/."""
    top = [root / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "llms.txt")]
    return [*top, *sorted((root / "docs").rglob("*.md"))]


def links(text: str) -> list[str]:
    """Targets of links and pictures in Markdown, code left out."""
    prose = _SPAN.sub("", _FENCE.sub("", text))
    return [markdown or html for markdown, html in _LINK.findall(prose)]


def anchors(text: str) -> set[str]:
    """Names that links may have behind ``#``, as MkDocs and GitHub make them from headings."""
    headings = _HEADING.findall(_FENCE.sub("", text))
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def external(text: str) -> list[str]:
    """Targets of other hosts."""
    return [target for target in links(text) if re.match(r"[a-z]+:", target)]


def broken(page: Path) -> Iterator[str]:
    """Internal targets of a page that do not exist, or whose heading does not."""
    text = page.read_text(encoding="utf-8")
    for target in sorted(set(links(text)) - set(external(text))):
        name, _, anchor = target.partition("#")
        file = page if not name else page.parent / name
        if not file.is_file():
            yield target
            continue
        known = file.suffix != ".md" or not anchor or anchor in anchors(file.read_text(encoding="utf-8"))
        if not known:
            yield target


def main() -> int:
    wrong = [f"{page.relative_to(ROOT)}: {target} leads nowhere" for page in pages() for target in broken(page)]
    for page in pages():
        for target in sorted(set(external(page.read_text(encoding="utf-8")))):
            print(f"{page.relative_to(ROOT)}: {target}")
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
