"""Prints docs/configuration.md, every setting of a run with type, default and meaning.

python launch/settings.py > docs/configuration.md

``launch/run.py --config=configs/NAME.py[:variant] --settings`` shows the values of one configuration.
"""

from __future__ import annotations

from optimas_jax.benchmarks.modules import BENCHMARKS, SystemConfig, settings_class
from optimas_jax.core.settings import sections
from optimas_jax.loop.config import MODES, RunConfig
from optimas_jax.report.settings import page


def configuration_page() -> str:
    """The text of docs/configuration.md."""
    systems = {name: sections(settings_class(module), path="system") for name, module in BENCHMARKS.items()}
    program_settings = sections(SystemConfig, path="system")
    return page(
        sections(RunConfig), {**systems, "programs, and of files without a class of their own": program_settings}, MODES
    )


if __name__ == "__main__":
    print(configuration_page(), end="")
