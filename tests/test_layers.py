"""The rule of the house: host wing and device wing meet in one bridge and under the roof, and imports point one way."""

import ast
import sys
from pathlib import Path

import pytest

import optimas_jax

SOURCE = Path(optimas_jax.__file__).parent
HOST, DEVICE = (
    ("core", "sandbox", "llm", "programs", "bridges", "traces", "benchmarks"),
    ("parallel", "models", "checkpoints", "engine", "learn"),
)
ARRAYS = ("jax", "jaxlib", "flax", "optax", "orbax", "chex")
CONFIG_LIBRARIES = ("ml_collections", "absl")
INSIDE = "sandbox/inside/"  # what runs inside the sandbox
BRIDGE = "llm/local.py"  # by which the engine answers completion requests

# Room -> rooms of this package that it may import from.
MAY_IMPORT = {
    "core": {"core"},
    "sandbox": {"sandbox"},
    "llm": {"core", "sandbox", "llm"},
    "programs": {"core", "llm", "programs"},
    "traces": {"core", "llm", "traces"},
    "bridges": {"core", "llm", "programs", "server", "bridges"},
    "benchmarks": {"core", "sandbox", "llm", "programs", "benchmarks"},
    "parallel": {"core", "parallel"},
    "models": {"core", "parallel", "models"},
    "checkpoints": {"core", "parallel", "models", "checkpoints"},
    "learn": {"core", "parallel", "models", "learn"},
    "engine": {*DEVICE, "core"},
    "server": {*DEVICE, "core", "llm", "server"},
    "rewards": {*DEVICE, "core", "llm", "rewards"},
    "policy": {*DEVICE, "core", "llm", "rewards", "policy"},
    "search": {"core", "llm", "search"},
    "loop": {*HOST, *DEVICE, "rewards", "policy", "search", "loop"},
    "saved": {*HOST, *DEVICE, "rewards", "policy", "search", "loop", "presets", "report", "server", "saved"},
    "result.py": {*HOST, "loop", "saved"},
    "api.py": {*HOST, *DEVICE, "rewards", "policy", "search", "loop", "presets", "report", "saved", "result"},
    "__init__.py": {*HOST, "search", "report", "saved", "result", "api"},
    "command.py": {"core"},
    "__main__.py": {"command"},
    "presets.py": {*HOST, *DEVICE, "rewards", "policy", "search", "loop"},
    "report": {"core", "report"},
    "compare": {*HOST, *DEVICE, "rewards", "policy", "search", "loop", "report", "compare"},
    "sweep": {"core", "parallel", "loop", "report", "sweep"},
    "bench": {*HOST, *DEVICE, "rewards", "policy", "search", "loop", "report", "bench"},
}
MODULES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))


def imports(source, *, when_loaded=False):
    """Names of imported modules; ``when_loaded`` leaves out those in functions and behind ``TYPE_CHECKING``."""

    def visit(node):
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        if when_loaded and deferred:
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return list(visit(ast.parse(source)))


def of_module(module, **options):
    return imports((SOURCE / module).read_text(encoding="utf-8"), **options)


def room(module):
    return module.split("/")[0]


def rooms_used(names):
    return {name.split(".")[1] for name in names if name.startswith("optimas_jax.")}


def libraries_used(names):
    return {name.split(".")[0] for name in names}


def test_imports_are_found_wherever_they_stand():
    source = (
        "from typing import TYPE_CHECKING\nimport a.b\nif TYPE_CHECKING:\n    from c import d\n"
        "def f():\n    import e\nclass G:\n    async def g(self):\n        from .h import i\n    import j\n"
    )
    assert imports(source) == ["typing.TYPE_CHECKING", "a.b", "c.d", "e", ".h.i", "j"]
    assert imports(source, when_loaded=True) == ["typing.TYPE_CHECKING", "a.b", "j"]


def test_every_module_lies_in_a_known_room():
    assert {room(module) for module in MODULES} == {*MAY_IMPORT}
    assert BRIDGE in MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    names = of_module(module, when_loaded=module == BRIDGE)
    assert rooms_used(names) <= MAY_IMPORT.get(room(module), set())
    if not module.startswith(INSIDE):  # which is loaded without the package around it
        assert not [name for name in names if name.startswith(".")], "imports are absolute"
    assert not libraries_used(names) & {"launch", "configs", "tests"}


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in (*HOST, "search")])
def test_the_host_wing_and_the_search_know_no_arrays(module):
    assert not libraries_used(of_module(module)) & set(ARRAYS)


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in DEVICE])
def test_the_device_wing_knows_no_system(module):
    assert not [
        name
        for name in of_module(module)
        if name.startswith(("optimas_jax.core.system", "optimas_jax.core.running.execution"))
    ]


def test_the_bridge_knows_the_engine_only_where_it_uses_it():
    assert rooms_used(of_module(BRIDGE)) == {"core", "llm", "checkpoints", "engine"}


@pytest.mark.parametrize("module", MODULES)
def test_configurations_reach_the_library_as_dataclasses(module):
    assert not libraries_used(of_module(module)) & set(CONFIG_LIBRARIES)


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) == "sandbox"])
def test_the_sandbox_needs_only_the_standard_library(module):
    libraries = {name.split(".")[0] for name in of_module(module) if not name.startswith(".")}
    assert libraries <= {*sys.stdlib_module_names, "optimas_jax"}


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(INSIDE)])
def test_what_runs_inside_the_sandbox_needs_nothing_of_ours(module):
    assert not rooms_used(of_module(module))
    source = ast.parse((SOURCE / module).read_text(encoding="utf-8"))
    assert all(node.level < 2 for node in ast.walk(source) if isinstance(node, ast.ImportFrom))


@pytest.mark.parametrize("module", ["bench/work.py", "bench/serve.py", "learn/token_group.py"])
def test_what_peers_import_needs_no_jax(module):
    assert libraries_used(of_module(module)) <= {*sys.stdlib_module_names, "numpy", "optimas_jax"}
    assert rooms_used(of_module(module)) <= {"learn"}
