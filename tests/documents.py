"""What README.md and docs/ tell a reader to type: blocks of Python and of shell, and commands within sentences.

A block or command is in one of three ways accounted for:

* ``<!-- run by tests/FILE.py -->`` above a block, or ``<!-- python: run by tests/FILE.py -->`` at the head of a page
  for all its Python: that test runs it.
* it says what it needs: a comment ``# needs ...`` in a block, from there to its end, or the word *needs* in the line
  of a command; ``<!-- needs: time -->`` at the head of a page that says so to its reader.
* neither: ``tests/long/test_documents.py`` runs it as it stands.

A command with a place to fill (``NAME``, ``[--flag]``, ``...``) is a form: its script, flags and settings must exist.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from runs import ROOT

PROGRAMS = ("python", "optimas", "pip", "mkdocs", "ray", "sbatch", "squeue", "scancel", "kubectl", "vllm", "curl")
_FORMS = ("pip ", "python -m pytest ", ".ci/", "ray start", "ray job", "optimas serve")  # what stands for many
_FENCE = re.compile(r"(?:<!-- run by (\S+) -->\n\n?)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_PLACE = re.compile(r"\.\.\.|[\[\]]|(?<!runs/)\b[A-Z][A-Z_]*\b(?![\w.])|=$")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
      page: that it stands on, relative to the repository.
      language: of the fence.
      text: as a reader sees it.
      run_by: the test that runs it, "" for none.
      needs: whether it says, or its page does, that it needs what a test does not have.
    """

    page: str
    language: str
    text: str
    run_by: str
    needs: bool


@dataclasses.dataclass(frozen=True)
class Command:
    """A line of a shell block, or a command within a sentence.

    Attributes:
      page: that it stands on.
      text: of the command.
      run_by, needs: as of ``Block``.
      inline: whether it stands within a sentence.
    """

    page: str
    text: str
    run_by: str
    needs: bool
    inline: bool

    @property
    def is_form(self) -> bool:
        """Whether it has places to fill."""
        return self.text.startswith(_FORMS) or bool(_PLACE.search(re.sub(r"'\{.*?\}'|'--[^']*'", "", self.text)))


def pages() -> list[str]:
    """All documents, relative to the repository; the generated list of settings has nothing to type."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path.relative_to(ROOT).as_posix() for path in found if path.name != "configuration.md"]


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    python = re.search(r"<!-- python: run by (\S+) -->", text)
    found = []
    for run_by, language, inside in _FENCE.findall(text):
        by = run_by or (python[1] if python and language == "python" else "")
        found.append(Block(page, language, inside, by, "# needs " in inside or _page_needs(text)))
    return found


def commands(page: str) -> list[Command]:
    """The commands of a page: of its shell blocks and its sentences, in their order within each."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for block in blocks(page):
        if block.language == "bash":
            found += _lines(block)
    for line in _FENCE.sub("", text).splitlines():
        spans = [span.replace("\\|", "|") for span in _SPAN.findall(line)]
        needs = _page_needs(text) or re.search(r"\bneeds?\b", line) is not None
        found += [Command(page, span, "", needs, True) for span in spans if _is_command(span)]
    return found


def _lines(block: Block) -> list[Command]:
    """Commands of a shell block; a comment says what it and those below it need."""
    found, needs = [], False
    for line in block.text.replace("\\\n", " ").splitlines():
        alone = line.strip().startswith("# needs ")
        needs = needs or alone
        if line.strip() and not line.strip().startswith("#"):
            found.append(Command(block.page, line.strip(), block.run_by, needs or " # needs " in line, False))
    return found


def _is_command(span: str) -> bool:
    return " " in span and (span.split(maxsplit=1)[0] in PROGRAMS or span.startswith((".ci/", "launch/pod/")))


def _page_needs(text: str) -> bool:
    return "<!-- needs: " in text[:600]


def script_of(command: str) -> Path | None:
    """The Python file of the repository that a command runs, also by ``optimas``; None for other programs."""
    found = re.search(r"\b(?:python|python3) ((?:launch|examples|tests|docs)/[\w/.]+\.py)", command)
    if found:
        return ROOT / found[1]
    found = re.search(r"(?:^|&& )optimas (\w+)", command)
    return ROOT / "launch" / f"{found[1]}.py" if found else None


if __name__ == "__main__":
    for page in pages():
        for block in blocks(page):
            if block.language == "python":
                print(f"{page}: python {block.run_by or ('needs' if block.needs else 'HERE')}")
        for one in commands(page):
            way = one.run_by or ("needs" if one.needs else "form" if one.is_form else "HERE")
            print(f"{page}: {way}: {one.text}"[:230])
