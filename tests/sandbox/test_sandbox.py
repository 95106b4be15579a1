"""What a program can and cannot do in the sandbox. Programs here are hostile on purpose; each ends within seconds."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import pytest

from optimas_jax.sandbox import program as sandbox
from optimas_jax.sandbox.limits import Limits
from optimas_jax.sandbox.program import SandboxError, run_program

QUICK = Limits(seconds=120, cpu_seconds=10, memory_mb=512, file_mb=8, disk_mb=32, processes=32, output_bytes=2000)
needs_jail = pytest.mark.skipif(sandbox.wall_kind() != "jail", reason=f"no jail here: {sandbox._why_no_jail()}")
needs_limits = pytest.mark.skipif(bool(sandbox.lacking()), reason=sandbox.lacking())
needs_bubblewrap = pytest.mark.skipif(not sandbox._has_bubblewrap(), reason="no bubblewrap here")
JAIL = pytest.param("namespaces", id="jail", marks=needs_jail)
BUBBLEWRAP = pytest.param("bubblewrap", id="bubblewrap", marks=needs_bubblewrap)
LIMITED = pytest.param("limits", id="limits", marks=needs_limits)
jails = pytest.mark.parametrize("walls", [JAIL, BUBBLEWRAP])
all_walls = pytest.mark.parametrize("walls", [JAIL, BUBBLEWRAP, LIMITED])


def run(source, limits=QUICK, walls=None, **options):
    arguments = ("-s", "-P", "-c", textwrap.dedent(source))
    if walls:
        return sandbox._run_in(walls, arguments, {}, limits, **options)
    return run_program(arguments, {}, limits, **options)


@pytest.fixture
def temporary(monkeypatch):
    """A folder for temporary files that no other test uses, and that other users may pass through."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@all_walls
def test_a_program_reads_its_files_and_message_and_reports(walls):
    source = (
        "import sys, pathlib; text = pathlib.Path(sys.argv[1], 'a.txt').read_text()\n"
        "report = open(int(sys.argv[3]), 'w'); report.write(text + open(int(sys.argv[2])).read()); print('done')"
    )
    arguments = ("-c", source, "{program}", "{message}", "{report}")
    ended = sandbox._run_in(walls, arguments, {"a.txt": "file "}, QUICK, b"message")
    assert (ended.how, ended.code, ended.output, ended.report) == ("exited", 0, "done\n", b"file message")


@all_walls
@pytest.mark.parametrize(
    ("source", "how", "code"),
    [
        ("pass", "exited", 0),
        ("import sys; sys.exit(3)", "exited", 3),
        ("import os; os._exit(4)", "exited", 4),
        ("raise ValueError", "exited", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed", 9),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "killed", 15),
        ("import sys; sys.setrecursionlimit(10**9)\nclass A: __repr__ = lambda a: repr(a)\nrepr(A())", "killed", 11),
        ("def f(): f()\nf()", "exited", 1),
        ("x = bytearray(10**12)", "exited", 1),
        ("input()", "exited", 1),
    ],
)
def test_every_end_is_told_as_it_was(source, how, code, walls):
    ended = run(source, walls=walls)
    assert (ended.how, ended.code) == (how, code), ended.output


def test_limits_that_allow_nothing_are_refused():
    with pytest.raises(ValueError, match=r"limits are above 0, got seconds = -1, memory_mb = 0"):
        Limits(seconds=-1, memory_mb=0)


@all_walls
@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time; time.sleep(600)",
        "import signal, time\nfor s in (15, 2, 1, 24, 14): signal.signal(s, signal.SIG_IGN)\nwhile True: time.sleep(1)",
        "import os, time\nos.fork() or time.sleep(600)\nos.wait()",
    ],
)
def test_a_program_without_end_is_ended(source, walls):
    ended = run(source, dataclasses.replace(QUICK, seconds=1.0), walls=walls)
    assert ended.how == "timeout"


@all_walls
def test_computing_time_is_limited(walls):
    ended = run("while True: pass", dataclasses.replace(QUICK, cpu_seconds=1), walls=walls)
    assert ended.how == "killed"


@all_walls
def test_endless_output_neither_blocks_nor_fills_memory(walls):
    source = "import sys\nfor _ in range(2000): sys.stdout.write('x' * 10000); sys.stderr.write('y' * 10000)"
    ended = run(source, walls=walls)
    assert (ended.how, ended.code) == ("exited", 0)
    assert len(ended.output) == QUICK.output_bytes


@all_walls
def test_no_process_outlives_its_program(walls, tmp_path):
    # a grandchild in a session of its own, which holds the output open
    seconds = f"61.{os.getpid()}"  # other tests may run the same at the same time
    source = f"""
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv("/bin/sleep", ["sleep", "{seconds}"])
            os._exit(0)
        print("left", flush=True)
        time.sleep(0.3)
    """
    ended = run(source, walls=walls)
    assert (ended.how, ended.output) == ("exited", "left\n")
    assert f"sleep {seconds}" not in subprocess.run(["ps", "ax"], capture_output=True, text=True, check=False).stdout


@all_walls
def test_a_fork_bomb_runs_into_the_limit(walls):
    source = """
        import os, time
        started = 0
        try:
            while True:
                if os.fork() == 0:
                    time.sleep(60)
                started += 1
        except OSError as error:
            print(started, type(error).__name__)
    """
    ended = run(source, walls=walls)
    started, error = ended.output.split()
    assert int(started) < 2 * QUICK.processes
    assert error == "BlockingIOError"


@all_walls
def test_threads_count_as_processes(walls):
    source = """
        import threading, time
        for made in range(500):
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    """
    ended = run(source, walls=walls)
    assert (ended.how, ended.code) == ("exited", 1)
    assert "can't start new thread" in ended.output


@all_walls
def test_the_memory_of_all_processes_together_is_limited(walls):
    source = """
        import os, time
        for _ in range(8):
            if os.fork() == 0:
                held = bytearray(os.urandom(1)) * (150 * 2**20)
                time.sleep(60)
        time.sleep(60)
    """
    assert run(source, walls=walls).how == "memory"


@all_walls
def test_files_are_limited_in_size(walls):
    ended = run("open('big', 'wb').write(bytes(9 * 2**20))", walls=walls)
    assert (ended.how, ended.code) != ("exited", 0)


@jails
def test_files_are_limited_in_sum(walls):
    source = "for i in range(20): open(f'f{i}', 'wb').write(bytes(4 * 2**20))"
    ended = run(source, walls=walls)
    assert "No space left on device" in ended.output


@all_walls
def test_the_environment_is_stated_and_has_no_secrets(walls, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    ended = run("import json, os; print(json.dumps(dict(os.environ)))", walls=walls)
    environment = json.loads(ended.output)
    assert "sk-secret" not in str(environment)
    expected = {"PATH", "HOME", "TMPDIR", "LANG", "TZ", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "MPLBACKEND"}
    through_proc = {name for name, value in environment.items() if value.startswith("/proc/self/fd/")}
    assert not through_proc or (through_proc == {"PYTHONPATH", "LD_LIBRARY_PATH"} and walls == "limits")
    assert set(environment) - through_proc == {*expected, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}


@all_walls
def test_home_temporary_files_and_the_working_folder_are_scratch(walls, temporary):
    source = """
        import os, pathlib, tempfile
        for folder in (pathlib.Path.home(), tempfile.gettempdir(), os.getcwd()):
            pathlib.Path(folder, "mine").write_text("x")
            print(folder)
        print(os.listdir("."))
    """
    ended = run(source, walls=walls)
    assert ended.code == 0, ended.output
    *places, listing = ended.output.splitlines()
    assert listing == "['mine']"
    assert len(set(places)) == 3
    assert not any(os.path.exists(os.path.join(folder, "mine")) for folder in places)
    assert not [*temporary.iterdir()]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start programs as somebody else")
def test_without_a_jail_nobody_runs_what_root_closed_to_others(tmp_path):
    closed = tmp_path / "closed"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", closed / "venv"], check=True)
    packages = closed / "venv" / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
    (packages / "there.py").write_text("answer = 42")
    closed.chmod(0o700)
    program = (
        "import os, ssl, there\nprint(there.answer, os.geteuid() != 0)\n"
        f"try: os.listdir({str(closed)!r})\nexcept OSError as error: print(error.errno)"
    )
    caller = (
        f"import sys; sys.path.insert(0, {os.getcwd()!r})\n"
        "from optimas_jax.sandbox.program import Limits, run_program\n"
        f"print(run_program(('-s', '-P', '-c', {program!r}), {{}}, Limits(), jail=False).output)"
    )
    ran = subprocess.run([closed / "venv/bin/python", "-c", caller], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["42", "True", "13"]


def _jailed_in_an_environment_in(folder, program):
    """Output of a program in a jail that an environment in ``folder`` builds, and why there is none."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    caller = (
        f"import sys; sys.path.insert(0, {os.getcwd()!r})\n"
        "from optimas_jax.sandbox import program as sandbox\n"
        f"ended = sandbox.run_program(('-s', '-P', '-c', {program!r}), {{}}, sandbox.Limits(), jail=True)\n"
        "print(ended.output)"
    )
    ran = subprocess.run([folder / "venv/bin/python", "-c", caller], capture_output=True, text=True, check=False)
    return ran.stdout.split(), ran.stderr


@needs_jail
def test_an_environment_in_tmp_shows_in_a_jail_read_only_and_nothing_else_of_tmp_does():
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        (folder / "secret").write_text("secret")
        program = f"""
import os, pathlib, sys
print(sys.prefix == {str(folder / "venv")!r}, os.listdir({name!r}))
pathlib.Path("/tmp/mine").write_text("mine")
for path in ("venv/mine", "venv/bin/mine"):
    try: pathlib.Path({name!r}, path).write_text("x")
    except OSError as error: print(error.errno)
"""
        said, why = _jailed_in_an_environment_in(folder, program)
        assert said == ["True", "['venv']", "30", "30"], why
        assert not Path("/tmp/mine").exists()


@jails
def test_a_jail_shows_no_file_but_the_interpreters_and_the_systems(walls, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    os.chmod(secret, 0o666)
    source = f"""
        import os
        for path in ({str(secret)!r}, {os.path.expanduser("~/.bashrc")!r}, {__file__!r}, "/var", "/sys", "/etc/shadow"):
            try:
                open(path).close() if os.path.isfile(path) else os.listdir(path)
                print("reached", path)
            except OSError:
                pass
        for path in ("/mine", "/usr/mine", "/etc/mine", "/program/mine", "/dev/mine", "/proc/sys/kernel/hostname"):
            try:
                open(path, "w").close()
                print("wrote", path)
            except OSError:
                pass
    """
    ended = run(source, walls=walls)
    assert (ended.how, ended.code, ended.output) == ("exited", 0, "")


@jails
def test_a_jail_has_no_network_but_its_own(walls):
    source = """
        import socket
        for host in ("1.1.1.1", "10.0.0.1", "169.254.169.254"):
            try:
                socket.create_connection((host, 80), timeout=1)
                print("reached", host)
            except OSError as error:
                assert error.errno == 101, error  # unreachable, at once
        server = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(server.getsockname())
        client.sendall(b"x")
        print(server.accept()[0].recv(1))
    """
    assert run(source, walls=walls).output == "b'x'\n"


@jails
def test_a_jail_cannot_be_reached_into_from_within_nor_left(walls):
    source = """
        import ctypes, os, signal
        libc = ctypes.CDLL(None, use_errno=True)
        print(os.getuid() != 0, open("/proc/self/status").read().split("CapEff:")[1].split()[0])
        print([p for p in os.listdir("/proc") if p.isdigit()] == ["1", "2"])
        for flags in (0x10000000, 0x20000, 0x40000000):  # new user, mount, network namespaces
            print(libc.unshare(flags), end=" ")
        print(libc.mount(b"tmpfs", b"/tmp/work", b"tmpfs", 0, b""))
        for attempt in ("os.kill(1, signal.SIGKILL)", "os.setuid(0)", "os.chroot('/tmp')", "open('/proc/1/environ')",
                        "os.listdir('/proc/1/fd')", "os.mknod('/tmp/disk', 0o60600, 0x800)"):
            try:
                eval(attempt)
                print("done", attempt)
            except OSError:
                pass
        print("alive")
    """
    ended = run(source, walls=walls)
    # killing process 1 has no effect from within, whether or not the kernel says so
    lines = [line for line in ended.output.splitlines() if "os.kill" not in line]
    assert lines == ["True 0000000000000000", "True", "-1 -1 -1 -1", "alive"]


@all_walls
def test_what_a_set_user_id_program_would_gain_is_not_gained(walls):
    ended = run(
        "print([l for l in open('/proc/self/status') if l.startswith('NoNewPrivs')][0].split()[1])", walls=walls
    )
    assert ended.output == "1\n"


def test_a_program_is_stopped_when_asked():
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(SandboxError, match="stopped"):
        run("import time; time.sleep(600)", stop=stop)


@all_walls
def test_walls_that_cannot_be_built_are_an_error_and_not_a_verdict(walls, monkeypatch):
    make = sandbox.plans.make
    changes = {"root": "/nowhere", "cwd": "/nowhere", "folder": "/nowhere"}
    monkeypatch.setattr(sandbox.plans, "make", lambda *parts: {**make(*parts), **changes})
    with pytest.raises(SandboxError, match=r"could not be built.*nowhere"):
        run("pass", walls=walls)


def test_without_a_place_for_its_files_a_program_is_not_run(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(SandboxError, match=r"no place or process for the sandbox .*nowhere"):
        run("pass")


@needs_limits
def test_without_a_jail_limits_are_preferred_and_said_and_a_jail_can_be_required(monkeypatch):
    monkeypatch.setattr(sandbox, "_why_no_jail", lambda: "namespaces are forbidden")
    assert sandbox.wall_kind() == "limits"
    assert "in limits mode: no sockets" in sandbox.check_walls("preferred")
    assert run("pass").how == "exited"
    with pytest.raises(SandboxError, match=r"without a jail: namespaces are forbidden\. Allow user namespaces"):
        sandbox.check_walls("required")


@pytest.mark.parametrize("missing", ["landlock", "seccomp"])
def test_weak_walls_are_refused_unless_asked_for_by_name(missing, monkeypatch):
    monkeypatch.setattr(sandbox, "_why_no_jail", lambda: "namespaces are forbidden")
    if missing == "landlock":
        monkeypatch.setattr(sandbox.landlock, "version", lambda: 2)
    else:
        monkeypatch.setattr(sandbox.seccomp, "available", lambda: False)
    for isolation in ("required", "preferred"):
        with pytest.raises(SandboxError, match=r"isolation=weak runs programs all the same"):
            sandbox.check_walls(isolation)
    with pytest.raises(SandboxError, match=rf"programs would run with weak walls: .*(?i:{missing})"):
        run("pass")
    assert "run with WEAK walls: " in sandbox.check_walls("weak")
    assert run("pass", weak=True).how == "exited"


def test_bubblewrap_that_does_not_work_is_found_out(monkeypatch):
    monkeypatch.setattr(sandbox.plans, "bubblewrap", lambda: "/bin/false")
    assert "could not be built" in sandbox._why_not("bubblewrap")
    assert not sandbox._has_bubblewrap.__wrapped__()


@all_walls
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can raise a priority")
def test_no_program_has_a_higher_priority_than_usual(walls):
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, -5)
    try:
        ended = run("import os; print(os.getpriority(os.PRIO_PROCESS, 0))", walls=walls)
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)
    assert ended.output == "0\n"


@all_walls
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start programs as somebody else")
def test_every_program_of_root_has_a_user_of_its_own(walls):
    with sandbox.plans.user_of_its_own() as first, sandbox.plans.user_of_its_own() as second:
        assert first != second
        assert min(first, second) > 0
    ended = run("import os; print(os.getuid(), os.getgroups())", walls=walls)
    user, groups = ended.output.split(maxsplit=1)
    assert int(user) > 0
    assert groups == "[]\n"


@all_walls
def test_a_product_that_is_killed_leaves_no_program(walls, temporary):
    seconds = f"62.{os.getpid()}"
    program = f"import os; os.fork(); os.execv('/bin/sleep', ['sleep', '{seconds}'])"
    caller = (
        f"import sys; sys.path.insert(0, {os.getcwd()!r})\n"
        "from optimas_jax.sandbox import program as sandbox\n"
        f"sandbox._run_in({walls!r}, ('-c', {program!r}), {{}}, sandbox.Limits())"
    )
    process = subprocess.Popen([sys.executable, "-c", caller], env={**os.environ, "TMPDIR": str(temporary)})
    assert eventually(lambda: listed(f"sleep {seconds}") == 2)
    process.kill()
    process.wait()
    assert eventually(lambda: listed(f"sleep {seconds}") == 0)


def listed(command):
    lines = subprocess.run(["ps", "axo", "args"], capture_output=True, text=True, check=False).stdout.splitlines()
    return lines.count(command)


def eventually(holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


@all_walls
@pytest.mark.parametrize(
    "source",
    ["os.kill(os.getppid(), 9)", "os.kill(-1, 9)", "[os.mkdir('a') or os.chdir('a') for _ in range(1500)]"],
    ids=["parent", "everybody", "nested"],
)
def test_what_a_program_does_is_its_verdict(source, walls, temporary):
    assert run(f"import os; {source}", walls=walls).how in ("exited", "killed")
    assert not [*temporary.iterdir()]


@needs_limits
def test_a_program_whose_supervisor_was_killed_is_one_that_was_killed(monkeypatch):
    told = {"status": b'{"how": "started"}\n', "output": b"", "report": b""}
    assert sandbox._ended(told, 1.0, QUICK).how == "killed"
    assert sandbox._ended(told, QUICK.seconds + 1, QUICK).how == "timeout"


@all_walls
def test_memory_that_forked_processes_share_counts_once(walls):
    source = """
        import os, time
        held = bytearray(b"x") * (200 * 2**20)
        for _ in range(3):
            if os.fork() == 0:
                time.sleep(0.5)
                os._exit(0)
        for _ in range(3): os.wait()
    """
    assert run(source, walls=walls).how == "exited"


@needs_jail
def test_full_isolation_needs_no_words():
    assert sandbox.check_walls("required") == ""


def test_the_inside_needs_only_the_standard_library():
    code = "import sys; sys.path.insert(0, sys.argv[1]); from inside import walls, runner"
    folder = os.path.dirname(sandbox.__file__)
    assert subprocess.run([sys.executable, "-I", "-S", "-c", code, folder], check=False).returncode == 0
