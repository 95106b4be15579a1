import threading
import time

import pytest
import tiny

from optimas_jax.parallel.lanes import Lanes
from optimas_jax.parallel.mesh import MeshConfig, make_mesh


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(count):
    lanes = Lanes(count)
    for _ in range(2):
        assert list(lanes.map(lambda x: x * x, range(20), lambda x: x % 3)) == [x * x for x in range(20)]


def test_items_of_a_known_shape_run_side_by_side():
    meet = threading.Barrier(2, timeout=10)
    lanes = Lanes(2)
    assert list(lanes.map(lambda x: x, [0], lambda _: "shape")) == [0]
    assert len(list(lanes.map(lambda _: meet.wait(), range(2), lambda _: "shape"))) == 2


def test_the_first_item_of_a_shape_runs_alone():
    running, most = [0], [0]
    lock = threading.Lock()

    def work(item):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.01)  # long enough for another to begin, if it may
        with lock:
            running[0] -= 1

    list(Lanes(2).map(work, range(8), lambda item: item))
    assert most == [1]


def test_a_failure_reaches_the_caller_and_ends_the_rest():
    done = []

    def work(item):
        if item == 3:
            raise ValueError("item 3")
        done.append(item)
        return item

    lanes = Lanes(2)
    list(lanes.map(lambda x: x, [0], lambda _: "shape"))
    with pytest.raises(ValueError, match="item 3"):
        list(lanes.map(work, range(1000), lambda _: "shape"))
    assert len(done) < 20


def test_a_mesh_of_several_devices_has_one_lane():
    compute = tiny.Compute(tiny.F32.dtype, "tiled", lanes=2)
    assert Lanes.of(compute, None).count == 2
    assert Lanes.of(compute, make_mesh(MeshConfig(data=1))).count == 2
    assert Lanes.of(compute, make_mesh(MeshConfig(data=2))).count == 1
