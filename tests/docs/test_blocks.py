"""Whatever README.md and docs/ tell a reader to type is run by a test, or says what it needs; and is typed right."""

import importlib.util
import re
from functools import cache
from typing import get_args, get_type_hints

import documents
import pytest
from ml_collections import config_dict
from runs import ROOT

import optimas_jax as oj
from optimas_jax.command import with_configuration
from optimas_jax.core.types import Outcome
from optimas_jax.loop.folder.proposals import Verdict
from optimas_jax.report.page.write import SECTIONS

PAGES = documents.pages()
COMMANDS = [command for page in PAGES for command in documents.commands(page)]
BLOCKS = [block for page in PAGES for block in documents.blocks(page)]
KNOWN_OTHERS = ("json", "randomize_variable")  # a file; a field of the released code
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("*.py")))


@cache
def flags_of(script):
    return set(re.findall(r"DEFINE_\w+\(\s*\"([\w-]+)\"", script.read_text(encoding="utf-8")))


@cache
def settings_of(configuration):
    """All settings of a configuration, FILE.py:VARIANT, by path."""
    name, _, variant = configuration.partition(":")
    path = ROOT / "configs" / name.rpartition("/")[2]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return frozenset(_paths(module.get_config(*[variant] * bool(variant)), ""))


def _paths(config, prefix):
    for name in config:
        value = config.get_oneway_ref(name).get() if isinstance(config, config_dict.ConfigDict) else config[name]
        yield prefix + name
        if isinstance(value, config_dict.ConfigDict):
            yield from _paths(value, f"{prefix}{name}.")


def faults(text):
    """What is wrong with a command: names of files, flags, settings, extras that do not exist."""
    for extras in re.findall(r"(?:\.|optimas_jax)\[([\w,-]+)\]", text):
        known = (ROOT / "setup.py").read_text(encoding="utf-8")
        yield from (f"extra {extra}" for extra in extras.split(",") if f'"{extra}": ' not in known)
    for part in re.findall(r"\.ci/long (\w+)", text):
        if f"  {part}) " not in (ROOT / ".ci" / "long").read_text(encoding="utf-8"):
            yield f"part {part}"
    yield from (
        name
        for name in re.findall(r"\b(?:tests|configs/sweeps|launch)/[\w/.-]+\.\w+", text)
        if not (ROOT / name).is_file()
    )
    script = documents.script_of(text)
    if script is None:
        return
    if not script.is_file():
        yield str(script)
    elif script.parent.name == "launch":
        yield from _wrong_flags(text, script)


def _wrong_flags(text, script):
    flags, config = flags_of(script), "hotpotqa.py"
    if found := re.search(r"--config=configs/([\w:.]+)", text):
        config = found[1]
    elif (found := re.search(r"optimas run ([\w:.]+)", text)) and not found[1].endswith(".py") and found[1].islower():
        config = with_configuration([found[1]])[0].rpartition("/")[2]
    settings = settings_of(config if (ROOT / "configs" / config.partition(":")[0]).is_file() else "hotpotqa.py")
    for flag in re.findall(r"(?:^|[\s\[])--([\w.-]+)", re.sub(r"'[^']*'", "", text)):
        path = flag.removeprefix("config.")
        if flag not in flags and flag not in ("help", "config") and not (path != flag and path in settings):
            yield f"--{flag}"
    for axes in re.findall(r"--sweep='([^']+)'", text):
        for axis in axes.split():
            if axis.partition("=")[0] not in settings:
                yield axis


def test_there_is_something_to_type():
    assert len(COMMANDS) > 80 and len(BLOCKS) > 40
    assert sum(not one.run_by and not one.needs and not one.is_form for one in COMMANDS) >= 10


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_typed_right(page):
    wrong = {one.text: list(faults(one.text)) for one in COMMANDS if one.page == page}
    assert not {text: found for text, found in wrong.items() if found}


def test_faults_of_commands_are_found():
    assert list(faults("python launch/gone.py --x=1")) == ["launch/gone.py", str(ROOT / "launch" / "gone.py")]
    assert list(faults("python launch/run.py --config=configs/amazon.py:smoke --stge=all")) == ["--stge"]
    assert list(faults("optimas run hotpotqa:tiny --config.optimize.gat.kind=none --workdir=a")) == [
        "--config.optimize.gat.kind"
    ]
    assert list(faults("python launch/sweep.py --sweep='optimize.pick=gap sed=0:3'")) == ["sed=0:3"]
    assert list(faults("pip install -e '.[compare,tpx]' && .ci/long nothing")) == ["extra tpx", "part nothing"]
    with pytest.raises(ValueError, match="unknown variant"):
        list(faults("python launch/run.py --config=configs/hotpotqa.py:smok"))


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_what_it_needs(page):
    for block in (one for one in BLOCKS if one.page == page):
        assert block.language in ("python", "bash", "text"), block
        if block.run_by:
            source = (ROOT / block.run_by).read_text(encoding="utf-8")
            known = (page.rpartition("/")[2], page.rpartition("/")[2].removesuffix(".md"), "recipes", "documents")
            assert block.run_by.startswith(".ci/") or any(name in source for name in known) or block.language == "bash"
        if block.language == "bash" and block.run_by.startswith("tests/"):
            scripts = [documents.script_of(one.text) for one in documents._lines(block)]
            assert any(script and script.stem in source for script in scripts) or "venv" in block.text


def test_every_script_that_is_named_is_run_by_some_test():
    named = {documents.script_of(one.text) for one in COMMANDS if not one.needs and not one.run_by} - {None}
    unknown = {
        path.name
        for path in named
        if path.parent.name == "launch" and path.name not in TEXT and f'"{path.stem}"' not in TEXT
    }
    assert not unknown


@pytest.mark.parametrize("page", PAGES)
def test_names_in_sentences_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for span in re.findall(r"`([^`\n]+)`", text):
        for name in re.findall(r"\boj\.(\w+)", span):
            assert name == "NAME" or hasattr(oj, name), span
        for path in re.findall(
            r"(?:^|[\s`=(])((?:tests|launch|examples|configs|optimas_jax|third_party)/[\w/.-]+\.\w+)", span
        ):
            assert "NAME" in path or (ROOT / path).exists(), span
        for path in re.findall(r"(?:^--|^)config\.([a-z_]+(?:\.[a-z_]+)*)(?:=|$)", span):
            known = [settings_of("hotpotqa.py:weights"), settings_of("amazon.py"), settings_of("bigcodebench.py")]
            assert any(path in settings for settings in known) or path in KNOWN_OTHERS, span


def test_the_quickstart_and_the_readme_have_the_same_program():
    [readme] = [block for block in BLOCKS if block.page == "README.md" and block.language == "python"]
    [first, *_] = [block for block in BLOCKS if block.page == "docs/quickstart.md" and block.language == "python"]
    assert readme.text.strip() == first.text.strip()
    assert len([line for line in readme.text.splitlines() if line.strip()]) <= 15


def test_reading_a_run_explains_every_section_verdict_and_outcome():
    page = (ROOT / "docs" / "reading-a-run.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    titles = ["Overview", *(title for title, _ in SECTIONS.values())]
    assert [title for title in titles if title not in headings] == []
    verdicts = get_args(get_type_hints(Verdict)["verdict"])
    assert verdicts and all(re.search(rf"^\| .*{verdict}.* \|", page, re.MULTILINE) for verdict in verdicts)
    assert all(f"| `{outcome}`" in page or f", `{outcome}` |" in page for outcome in Outcome if outcome != "ok")
    assert all(f"`{name}`" in page for name in ("demos", "opro", "copro", "mipro", "reflect", "feedback", "random"))
