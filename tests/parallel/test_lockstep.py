"""The rules of leader and followers, with a link inside one process; ``tests/long/test_processes.py`` has real ones."""

import dataclasses
import queue
import re
import socket
import threading
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jax.sharding import SingleDeviceSharding

from optimas_jax.core.types import StopRun
from optimas_jax.parallel import link as links
from optimas_jax.parallel.distributed import join
from optimas_jax.parallel.link import LAG, SILENCE, Pulse, _Heard, _lost
from optimas_jax.parallel.lockstep import Leader, OutOfStep, Shared, follow, open_shared, together
from optimas_jax.parallel.mesh import MeshConfig, make_mesh
from optimas_jax.parallel.sharding import cut_along, place_shards
from optimas_jax.parallel.transfer import fetch, put, put_read
from optimas_jax.parallel.wire import decode, encode


class Point(NamedTuple):
    x: np.ndarray
    y: int


@dataclasses.dataclass(frozen=True)
class Words:
    texts: tuple[str, ...]
    inner: tuple[tuple[int, ...], ...] = ()


TYPES = {"Point": Point, "Words": Words}


class FakeLink:
    """Both ends of a link, without processes."""

    index, count = 0, 2

    def __init__(self):
        self.commands = queue.Queue()
        self.begun = self.ended = self.heard = 0
        self.error = ""

    def send(self, command):
        self.begun += 1
        self.commands.put(command)

    def receive(self):
        self.begun += 1
        return self.commands.get(timeout=30)

    def end_command(self, error=""):
        self.error, self.ended = error, self.begun

    def hear_all(self):
        self.heard += 1

    def wait_for_all(self, seconds):
        return True

    def wait_until_seen(self):
        pass

    def close(self):
        pass


class Counter:
    """Counts together with the other processes."""

    def __init__(self, start, shared=None):
        self.shared, self.total, self.calls = shared, start, []

    @together
    def add(self, number):
        self.calls.append(number)
        self.total += number
        if number < 0:
            raise ValueError(f"{number} is negative")
        return self.total

    @together
    def add_twice(self, number):
        self.add(number)
        return self.add(number)

    def alone(self):
        self.total = 0


def pair():
    """A leader, the counter of its process, and a function that returns the follower's after it has followed."""
    there, here = FakeLink(), FakeLink()
    there.commands = here.commands
    made = []

    def make(start):
        made.append(Counter(start))
        return made[-1]

    leader = Leader(here, TYPES)
    counter = open_shared(leader, "counter", "counter", (3,), lambda shared: Counter(3, shared))

    def followed():
        leader.close(7)
        assert follow(there, {"counter": make}, TYPES) == 7
        return made[-1]

    return leader, counter, followed


def test_plain_data_comes_back_as_it_was():
    arrays = {3: np.arange(6, dtype=np.float32).reshape(2, 3), "b": [np.float32(1.5), None, True, 0.1, ()]}
    value = (Words(("a", "ü"), ((1, 2), ())), Point(np.zeros((0, 2), np.int8), -1), arrays, {"x": (1.0, "y")})
    message, large = encode(value, TYPES, 1 << 20)
    assert large == []
    words, point, back, rest = decode(message, TYPES, lambda shapes: [])
    assert words == value[0]
    assert rest == value[3]
    assert (point.x.shape, point.x.dtype, point.y) == ((0, 2), np.int8, -1)
    np.testing.assert_array_equal(back[3], arrays[3])
    assert back["b"][0] == np.float32(1.5) and back["b"][1:] == [None, True, 0.1, ()]


def test_large_arrays_are_left_out_and_put_in_again():
    value = [np.zeros(2), jax.numpy.ones((300, 2)), np.full(400, 2.0, jax.numpy.bfloat16)]
    message, large = encode(value, TYPES, 100)
    assert [array.shape for array in large] == [(300, 2), (400,)]
    shapes = []
    back = decode(message, TYPES, lambda wanted: shapes.extend(wanted) or large)
    assert [(shape.shape, shape.dtype.name) for shape in shapes] == [((300, 2), "float32"), ((400,), "bfloat16")]
    for array, expected in zip(back, value, strict=True):
        np.testing.assert_array_equal(array, np.asarray(expected))


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: 0, b"bytes", Counter(0)])
def test_what_is_not_plain_is_refused(value):
    with pytest.raises(TypeError, match="cannot be told to other processes"):
        encode([value], TYPES, 100)


def test_the_others_do_the_same_in_the_same_order():
    _, counter, followed = pair()
    threads = [threading.Thread(target=counter.add_twice, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other = followed()
    assert other.calls == counter.calls  # nested calls are not told twice
    assert len(other.calls) == 16
    assert other.total == counter.total


def test_an_error_in_all_processes_is_the_callers():
    leader, counter, followed = pair()
    with pytest.raises(ValueError, match="-2 is negative"):
        counter.add(-2)
    assert leader._link.heard == 1  # a process that died would have ended the run here
    assert counter.add(1) == 2
    assert followed().total == 2


def test_an_error_in_one_process_ends_the_other():
    _, counter, followed = pair()
    counter.add(1)
    counter.shared.leader._link.error = "OSError: disk full"
    with pytest.raises(OutOfStep, match="command 2 in process 0: OSError: disk full; in process 0: it went well"):
        followed()


def test_only_methods_that_run_together_are_called():
    leader, _, followed = pair()
    leader.run("counter", "alone", (), lambda: None)
    with pytest.raises(OutOfStep):
        followed()


def test_nothing_runs_together_after_the_end():
    _, counter, followed = pair()
    followed()
    with pytest.raises(StopRun, match="have ended"):
        counter.add(1)


def test_without_other_processes_a_method_is_just_called():
    made = open_shared(None, "counter", "counter", (3,), lambda shared: Counter(3, shared))
    assert made.shared is None
    assert made.add(2) == 5


def test_a_part_of_a_shared_object_has_its_name():
    part = Shared(None, "rewards").part("scorer")
    assert (part.name, part.attribute) == ("rewards", "scorer")


class Mine:
    """A link of process 0 that has begun and ended some commands."""

    def __init__(self, begun, ended, error=""):
        self.begun, self.ended, self.error = begun, ended, error


@pytest.mark.parametrize(
    ("pulse", "mine", "seconds", "why"),
    [
        (Pulse(5, 5), Mine(5, 5), 0, ""),
        (Pulse(5, 4), Mine(5, 4), LAG + 1, ""),  # both in one command, however long
        (Pulse(4, 4), Mine(5, 4), LAG - 1, ""),
        (Pulse(4, 3), Mine(5, 4), LAG + 1, "has not begun command 5 .* hangs in command 4"),
        (Pulse(5, 5, "ValueError: x"), Mine(5, 5, "ValueError: x"), LAG + 1, ""),
        (Pulse(5, 5, "OSError: x"), Mine(5, 5), 0, "failed where process 0 did not: OSError: x"),
        (Pulse(5, 5, "OSError: x"), Mine(5, 4), LAG + 1, r"out of step: one failed in command 5 \(OSError: x\)"),
        (Pulse(5, 4), Mine(5, 5, "OSError: x"), LAG + 1, r"out of step: one failed in command 5 \(OSError: x\)"),
    ],
)
def test_a_process_is_lost_when_it_cannot_go_on(pulse, mine, seconds, why):
    heard = _Heard(pulse, at=1000.0)
    if seconds:
        assert _lost(heard, mine, 1000.0) == ""
    heard.at += seconds
    found = _lost(heard, mine, 1000.0 + seconds)
    assert bool(re.search(why, found)) if why else found == ""


def test_a_process_that_is_behind_but_works_is_waited_for():
    heard, mine = _Heard(Pulse(4, 3, cpu=1.0), at=0.0), Mine(5, 4)
    for now in range(0, 600, 5):  # it compiles
        heard.pulse, heard.at = dataclasses.replace(heard.pulse, cpu=1.0 + now), float(now)
        assert _lost(heard, mine, float(now)) == ""


def test_a_silent_process_is_lost():
    assert f"no sign of life for {SILENCE} s" in _lost(_Heard(Pulse(), at=0.0), Mine(0, 0), SILENCE + 1.0)


def test_limits_leave_a_minute_to_end_in():
    assert max(LAG, SILENCE) + 5 * links._POLL < 60


@pytest.mark.parametrize(
    "given",
    [("host", 2, 0), ("host:1", None, 0), ("host:1", 2, None), ("host:1", 2, 2)]
    + [(address, 2, 1) for address in ("", ":1", "host:", "host:abc", "host:0", "host:65536", "host:-1")],
)
def test_arguments_that_do_not_belong_together_are_refused(given):
    with pytest.raises(ValueError, match="give HOST:PORT of the first process"):
        join(*given)


def test_a_port_that_another_program_has_is_refused_before_jax_crashes_on_it():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StopRun, match=f"port {port} of --coordinator cannot be used"):
            join(f"127.0.0.1:{port}", 2, 0)


def test_a_mesh_has_devices_of_every_process():
    class Device:
        def __init__(self, process):
            self.process_index = process

    with pytest.raises(ValueError, match="leaves process 1 without a device: set data to 0"):
        make_mesh(MeshConfig(2), [Device(0), Device(0), Device(1), Device(1)])


def test_one_process_places_and_fetches_as_before():
    mesh = make_mesh(MeshConfig(8))
    values = {"a": np.arange(16.0).reshape(8, 2), "b": np.float32(3)}
    placed = place_shards({"a": values["a"]}, mesh)
    assert placed["a"].sharding.spec == P("data")
    found = fetch({**placed, "b": put(values["b"], SingleDeviceSharding(jax.devices()[0]))})
    np.testing.assert_array_equal(found["a"], values["a"])
    assert isinstance(found["a"], np.ndarray) and found["b"] == 3
    assert cut_along(placed["a"], mesh, "data").shape == (8, 2)
    read = []
    put_read(lambda index: read.append(index) or values["a"], (8, 2), placed["a"].sharding)
    assert read == [...]  # once, whole
