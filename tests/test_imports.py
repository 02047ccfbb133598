"""Imports point one way, and what must be quick to start imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("pipeline", "exporters", "runtime", "models", "benchmarks")
GROUND = {
    f"pipeline.{name}"
    for name in ("errors", "records", "settings", "machine", "progress", "store", "images")
}
"""Importable by every room; these import one another only."""
LEVELS = [
    ("runtime", "exporters", "models"),
    ("benchmarks",),
    ("pipeline",),
]


def modules():
    for room in ROOMS:
        yield from sorted((ROOT / room).rglob("*.py"))


def imported(path):
    """First-party modules that `path` imports, inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] in ROOMS)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            if node.module == "pipeline":
                yield from (f"pipeline.{name.name}" for name in node.names)
            elif node.module.split(".")[0] in ROOMS:
                yield node.module


def level(module):
    if module in GROUND:
        return -1
    room = module.split(".")[0]
    return next(i for i, rooms in enumerate(LEVELS) if room in rooms)


@pytest.mark.parametrize("path", list(modules()), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for other in imported(path):
        assert level(other) <= level(own), f"{own} must not import {other}"


HEAVY = {"torch", "onnxruntime", "coremltools", "tensorrt_rtx", "sklearn"}
TORCH_FREE = [
    "pipeline.__main__",
    "pipeline.config",
    "pipeline.flow",
    "pipeline.records",
    "pipeline.summary",
    "pipeline.tables",
    "pipeline.stages.report",
    "runtime",
    "runtime.onnx_runtime",
    "runtime.pytorch",
    "exporters",
    "models",
    "benchmarks",
    "benchmarks.latency",
]


@pytest.mark.parametrize("module", TORCH_FREE)
def test_importable_without_torch(module):
    code = f"import sys, {module}; heavy = {HEAVY} & set(sys.modules); assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_starts_without_torch():
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['x', '--help']; " + (
        "import runpy; runpy.run_module('pipeline', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "run" in done.stdout and "doctor" in done.stdout


def test_nothing_names_a_registry_or_this_machine():
    words = ("pypi.org", "pythonhosted", "npmjs", "debian.org", str(ROOT))
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    files = [name for name in listed.stdout.splitlines() if name != "tests/test_imports.py"]
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in files:
        text = (ROOT / name).read_text(encoding="utf-8", errors="ignore")
        assert not [word for word in words if word in text], name
