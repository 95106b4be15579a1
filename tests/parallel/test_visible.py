"""Sets of devices: no two processes see the same one."""

import pytest

from optimas_jax.parallel import visible
from optimas_jax.parallel.visible import GPU, TPU, Accelerators, accelerators, gpus_listed

LISTED = """GPU 0: NVIDIA H200 (UUID: GPU-aaa)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbb)
  MIG 3g.20gb     Device  0: (UUID: MIG-b1)
  MIG 3g.20gb     Device  1: (UUID: MIG-b2)
"""


@pytest.fixture
def plugins(monkeypatch):
    """Says which packages are installed."""

    def install(*names):
        monkeypatch.setattr(visible.importlib.util, "find_spec", lambda name: name in names or None)

    return install


def test_gpus_are_known_by_their_ids_and_one_that_is_cut_by_its_parts():
    assert gpus_listed(LISTED) == ("GPU-aaa", "MIG-b1", "MIG-b2")
    assert gpus_listed("") == ()


def test_jobs_get_sets_that_have_nothing_in_common():
    four = Accelerators(GPU, ("0", "1", "2", "3"))
    assert four.divide(2, None) == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]
    assert four.divide(3, None) == [{"CUDA_VISIBLE_DEVICES": name} for name in "012"]
    assert four.divide(1, None) == [{}]
    assert four.divide(1, 2) == [{"CUDA_VISIBLE_DEVICES": "0,1"}]
    assert four.divide(8, 0) == [{"JAX_PLATFORMS": "cpu"}] * 8
    assert Accelerators().divide(3, None) == [{}] * 3


def test_tpu_chips_are_cut_as_libtpu_can():
    four = Accelerators(TPU, ("0", "1", "2", "3"))
    host = {"TPU_HOST_BOUNDS": "1,1,1"}
    assert four.divide(2, None) == [
        {"TPU_VISIBLE_CHIPS": "0,1", "TPU_CHIPS_PER_HOST_BOUNDS": "1,2,1", **host},
        {"TPU_VISIBLE_CHIPS": "2,3", "TPU_CHIPS_PER_HOST_BOUNDS": "1,2,1", **host},
    ]
    assert four.divide(4, 1)[3] == {"TPU_VISIBLE_CHIPS": "3", "TPU_CHIPS_PER_HOST_BOUNDS": "1,1,1", **host}
    assert four.divide(1, 4) == [{}]
    with pytest.raises(ValueError, match=r"3 of 4 TPU chips .* possible: 1, 2 or all"):
        four.divide(1, 3)


def test_more_jobs_than_devices_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"jobs x devices = 3 x 1 is more than the 2 GPUs of this machine: use "):
        Accelerators(GPU, ("0", "1")).divide(3, None)
    with pytest.raises(ValueError, match=r"2 x 1 is more than the 0 accelerators of this machine: .*--devices=0"):
        Accelerators().divide(2, 1)


def test_only_what_jax_would_find_counts(plugins, tmp_path):
    (tmp_path / "vfio").mkdir()
    for name in ("accel0", "accel1", "vfio/vfio"):
        (tmp_path / name).touch()
    gpus = {"CUDA_VISIBLE_DEVICES": "2, 3,-1"}
    plugins()
    assert accelerators(gpus, tmp_path) == Accelerators()
    plugins("jax_cuda12_plugin")
    assert accelerators(gpus, tmp_path) == Accelerators(GPU, ("2", "3"))
    assert accelerators({**gpus, "JAX_PLATFORMS": "cpu"}, tmp_path) == Accelerators()
    assert accelerators({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == Accelerators()
    plugins("libtpu")
    assert accelerators(gpus, tmp_path) == Accelerators(TPU, ("0", "1"))
    assert accelerators({"TPU_VISIBLE_CHIPS": "1"}, tmp_path) == Accelerators(TPU, ("1",))
