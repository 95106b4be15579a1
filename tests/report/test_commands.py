"""Files of the user's on the command line: their own frames are shown."""

import functools
import sys
from types import SimpleNamespace

import pytest
from absl import flags
from ml_collections import config_flags

from optimas_jax.benchmarks.modules import find_benchmark
from optimas_jax.report.commands import exit_code, parse_flags

GOOD = """from ml_collections import config_dict


def get_config(variant=""):
    return config_dict.ConfigDict({"a": 1})
"""


def command(file, capsys):
    """The message of ``launch/run.py --config=FILE``."""
    sys.modules.pop("config_config", None)  # by which ml_collections knows the last file
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    with pytest.raises(SystemExit):
        parse_flags(SimpleNamespace(FLAGS=values, Error=flags.Error), ["run.py", f"--config={file}"])
    return capsys.readouterr().err.strip()


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x = {}['key']\n" + GOOD,
            "error: KeyError: 'key'\n  File \"{file}\", line 1, in <module>\n    x = {{}}['key']",
        ),
        (
            "x = int('a')\n" + GOOD,
            "error: ValueError: invalid literal for int() with base 10: 'a'\n  File \"{file}\", lin",
        ),
        ("import json\n\njson.loads('{')\n" + GOOD, "error: JSONDecodeError: Expecting property name enclosed in"),
        (
            "open('my.jsonl')\n" + GOOD,
            "error: {file} opens a file that is not there: [Errno 2] No such file or directory",
        ),
        ("x = (\n" + GOOD, "error: {file}, line 1: SyntaxError: '(' was never closed"),
        (
            "import nothing_of_the_kind\n" + GOOD,
            "error: ModuleNotFoundError: No module named 'nothing_of_the_kind'\n  Fi",
        ),
        (
            GOOD.replace("return", "raise RuntimeError('no')\n    return"),
            'error: RuntimeError: no\n  File "{file}", line',
        ),
        (
            "import optimas_jax as oj\n\noj.program(3)\n" + GOOD,
            "error: the program is 3, expected a function that calls",
        ),
        ("x = 1\n", "error: the configuration has no function get_config(variant), which configs/own_system.py shows"),
    ],
)
def test_a_configuration_file_that_raises(tmp_path, capsys, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    shown = command(file, capsys)
    assert shown.startswith(message.format(file=file)), shown
    assert not [line for line in shown.splitlines() if "ml_collections" in line or "importlib" in line]


def test_a_benchmark_file_that_raises_shows_its_own_frames(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("def parse(text):\n    return {}[text]\n\n\nparse('key')\n")

    assert exit_code(functools.partial(find_benchmark, str(file))) == 1
    shown = capsys.readouterr().err.splitlines()[1:]
    assert [line for line in shown if "~" not in line] == [
        "error: KeyError: 'key'",
        f'  File "{file}", line 5, in <module>',
        "    parse('key')",
        f'  File "{file}", line 2, in parse',
        "    return {}[text]",
    ]


def test_a_fault_of_ours_keeps_its_frames(capsys):
    assert exit_code(functools.partial(divmod, 1, 0)) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback") and "commands.py" in shown and "ZeroDivisionError" in shown
