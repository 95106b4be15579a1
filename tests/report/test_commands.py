"""Files of the user's on the command line: their own frames are shown."""

import functools
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from absl import flags
from ml_collections import config_flags
from runs import run_config

from optimas_jax.benchmarks.modules import find_benchmark
from optimas_jax.loop.config import overridden
from optimas_jax.report.commands import exit_code, parse_flags

GOOD = """from ml_collections import config_dict


def get_config(variant=""):
    return config_dict.ConfigDict({"a": 1})
"""


def command(file, capsys, *changes, config=""):
    """The message of ``launch/run.py --config=FILE ...``."""
    sys.modules.pop("config_config", None)  # by which ml_collections knows the last file
    argv = ["run.py", *[f"--config={file}"] * bool(file), *changes]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    names = {"FLAGS": values, "Error": flags.Error, "UnrecognizedFlagError": flags.UnrecognizedFlagError}
    with pytest.raises(SystemExit):
        parse_flags(SimpleNamespace(**names), argv, config=config)
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


def test_a_field_that_is_refused_by_its_class_is_told_of_in_one_line(capsys):
    assert exit_code(lambda: overridden(run_config(), {"optimize.proposers": "xx"})) == 1
    shown = capsys.readouterr().err
    assert "proposers is 'xx'" in shown and len(shown.strip().splitlines()) == 1


FIELDS = """from ml_collections import config_dict


def get_config(variant=""):
    optimize = {"iterations": 3, "pick": config_dict.placeholder(str), "gate": {"level": 0.5}}
    return config_dict.ConfigDict({"optimize": optimize, "quiet": False})
"""


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--config.optimize.iteratoins=3", "config.optimize has no field 'iteratoins'; did you mean 'iterations'?"),
        ("--config.Optimize.iterations=3", "config has no field 'Optimize'; did you mean 'optimize'?"),
        ("--config.optimize.xyz=3", "config.optimize has no field 'xyz'; it has gate, iterations, pick. --settings"),
        ("--config.optimize.iterations.x=3", "config.optimize.iterations is a value, 3, and has no fields"),
        ("--config.optimize=3", "config.optimize has fields of its own, set one of them: --config.optimize.gate"),
        ("--config.optimize.iterations=three", "--config.optimize.iterations is 'three', expected int"),
        ("--config.optimize.iterations=", "--config.optimize.iterations is '', expected int"),
        ("--config.optimize.iterations", "--config.optimize.iterations has no value"),
        ("--config.optimize.gate.level=high", "--config.optimize.gate.level is 'high', expected float"),
        ("--config.quiet=maybe", "--config.quiet is 'maybe', expected true or false"),
        ("--noconfig.quite", "config has no field 'quite'; did you mean 'quiet'?"),
        ("--config.=3", "config has no field ''; it has "),
        ("--config.a[0]=3", "config has no field 'a[0]'; it has"),
        (f"--config.optimize.{'x' * 100_000}=3", "config.optimize has no field 'xxx"),
        ("--cofig=x", "unknown flag --cofig; did you mean '--config'? --help lists the flags"),
    ],
)
@pytest.mark.parametrize("named", [True, False])  # or the command's own configuration
def test_a_flag_that_names_no_field_or_has_another_type_is_told_of_in_one_line(
    tmp_path, capsys, change, message, named
):
    file = tmp_path / "mine.py"
    file.write_text(FIELDS)
    shown = command(file if named else "", capsys, change, config="" if named else str(file))
    assert shown.startswith("error: ") and message in shown and len(shown.splitlines()) == 1, shown
    assert len(shown) < 500


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "config.optimize.iteratoins = 3",
            "no field 'iteratoins'; did you mean 'iterations'? --settings lists all (mine.py, li",
        ),
        ("config.optimize.xyz = 3", "no field 'xyz'; --settings lists all (mine.py, line 5: config.optimize.xyz = 3)"),
        ("return None", "get_config of the configuration returned a value of type NoneType, expected a ConfigDict"),
        ("return [3]", "get_config of the configuration returned a value of type list, expected a ConfigDict"),
    ],
)
def test_a_configuration_file_that_names_no_field_is_told_of_in_one_line(tmp_path, capsys, line, message):
    file = tmp_path / "mine.py"
    start = "    config = config_dict.ConfigDict({'optimize': {'iterations': 3}}).lock()\n"
    file.write_text(
        f"from ml_collections import config_dict\n\ndef get_config(variant=''):\n{start}    {line}\n    return config\n"
    )
    shown = command(file, capsys)
    assert message in shown and len(shown.splitlines()) == 1, shown


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_work_is_done_ends_the_process_with_its_code(number):
    code = f"""
import atexit, os, sys, time
from optimas_jax.report.commands import exit_code
atexit.register(lambda: (os.kill(os.getpid(), {int(number)}), time.sleep(60)))
sys.exit(exit_code(lambda: print("done")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_callback_of_the_garbage_collector_is_not_lost(number):
    source = f"""
import gc, os, time
from optimas_jax.report.process import Terminated, interrupt_on_terminate
interrupt_on_terminate()
def callback(phase, info):
    gc.callbacks.clear()
    os.kill(os.getpid(), {int(number)})
    time.sleep(1)
gc.callbacks.append(callback)
try:
    gc.collect()
    time.sleep(20)
except KeyboardInterrupt as stopped:
    print(type(stopped).__name__)
"""
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout, ended.stderr) == ({signal.SIGTERM: "Terminated\n"}.get(number, "KeyboardInterrupt\n"), "")
