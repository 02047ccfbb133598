"""Imports point one way, and what must be quick to start imports nothing heavy."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("pipeline", "exporters", "runtime", "models", "benchmarks")
LEVELS = (
    "pipeline.errors pipeline.records pipeline.machine pipeline.progress pipeline.emulated "
    "pipeline.whole",
    "pipeline.settings pipeline.team pipeline.quantized pipeline.emulators pipeline.contract "
    "pipeline.mobile pipeline.phones pipeline.tolerances pipeline.references",
    "pipeline.store pipeline.images pipeline.fetching",
    "models",
    "runtime",
    "exporters",
    "benchmarks",
    "pipeline.logits pipeline.moving pipeline.splits pipeline.checkpoints pipeline.resume "
    "pipeline.metrics pipeline.optimizing pipeline.sources pipeline.kept",
    "pipeline.losses pipeline.policies pipeline.pretrained",
    "pipeline.augment pipeline.context",
    "pipeline.batches",
    "pipeline.ingest pipeline.devices pipeline.departure pipeline.workshop pipeline.cuda_graph",
    "pipeline.evaluation",
    "pipeline.guidance pipeline.jobs",
    "pipeline.training",
    "pipeline.quantization",
    "pipeline.stages",
    "pipeline.config pipeline.verification",
    "pipeline.confidence pipeline.confusions",
    "pipeline.disagreements",
    "pipeline.summary",
    "pipeline.wording pipeline.imported pipeline.supplied",
    "pipeline.comparing pipeline.precision pipeline.elsewhere pipeline.timings pipeline.on_device",
    "pipeline.verdict pipeline.figures pipeline.speeds pipeline.soundness pipeline.templating",
    "pipeline.device_figures pipeline.tradeoffs pipeline.recommending pipeline.insight "
    "pipeline.answers",
    "pipeline.assemble pipeline.trust pipeline.comparison",
    "pipeline.answer_figures",
    "pipeline.tables pipeline.stages.report",
    "pipeline.bundle",
    "pipeline.flow pipeline.exporting pipeline.doctor pipeline.pruning benchmarks.targets "
    "benchmarks.published.networks",
    "pipeline.fit",
    "benchmarks.turns",
    "pipeline.in_turn",
    "pipeline.gate",
    "pipeline.judgements",
    "pipeline.__main__ benchmarks.loadgen",
    "benchmarks.measuring benchmarks.curves benchmarks.estimates benchmarks.costs "
    "benchmarks.publishing",
    "benchmarks.phone benchmarks.experiments",
    "benchmarks.__main__",
)
"""From the ground up: a module may import those of lower levels only. What is named here stands
for all modules below it that are not named themselves."""
FAMILIES = (
    *("models", "runtime", "exporters", "benchmarks"),
    *("pipeline.sources", "pipeline.losses", "pipeline.quantization", "pipeline.bundle"),
    "pipeline.comparison",
    *("pipeline.fit", "benchmarks.experiments", "benchmarks.phone"),
)
"""Within one of these, modules may import one another; stages, for one, may not."""
PACKAGES = {"pipeline", "pipeline.stages"}
"""Nothing but a docstring."""
TELLING = (
    *("pipeline.summary", "pipeline.assemble", "pipeline.wording", "pipeline.comparing"),
    *("pipeline.precision", "pipeline.elsewhere", "pipeline.timings", "pipeline.on_device"),
    *("pipeline.verdict", "pipeline.speeds", "pipeline.soundness", "pipeline.recommending"),
    "pipeline.templating",
    *("pipeline.figures", "pipeline.device_figures", "pipeline.tradeoffs"),
    *("pipeline.comparison", "pipeline.tables", "pipeline.stages.report", "pipeline.bundle"),
    *("pipeline.confidence", "pipeline.confusions", "pipeline.disagreements"),
    *("pipeline.insight", "pipeline.answers", "pipeline.trust", "pipeline.answer_figures"),
)
"""What tells of results knows nothing of how they are made: beyond one another these import
only what `TOLD` names."""
TOLD = (*LEVELS[0].split(), *LEVELS[1].split(), *LEVELS[2].split(), "benchmarks")


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PATHS = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
MODULES = {name_of(path) for path in PATHS}


def imported(code):
    """First-party modules that `code` imports, inside functions too."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "relative import"
            if node.module in MODULES:
                members = {f"{node.module}.{name.name}" for name in node.names}
                yield from members & MODULES or {node.module}


def entry(module):
    """The longest name in `LEVELS` that `module` is or lies below."""
    names = [name for level in LEVELS for name in level.split()]
    found = [name for name in names if f"{module}.".startswith(f"{name}.")]
    assert found, f"{module} has no place in LEVELS yet"
    return max(found, key=len)


def level(module):
    return next(i for i, names in enumerate(LEVELS) if entry(module) in names.split())


def allowed(own, other):
    if own in PACKAGES or other in PACKAGES:
        return own not in PACKAGES
    if entry(own) == entry(other) and entry(own) in FAMILIES:
        return True
    if entry(own) in TELLING and entry(other) not in (*TELLING, *TOLD):
        return False
    return level(other) < level(own)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = name_of(path)
    for other in imported(path.read_text(encoding="utf-8")):
        assert allowed(own, other), f"{own} must not import {other}"


@pytest.mark.parametrize(
    "code",
    [
        "import pipeline.__main__",
        "from pipeline import training",
        "def later():\n    from pipeline.stages import teach, report",
        "from pipeline.flow import run",
    ],
)
def test_a_wrong_import_is_found(code):
    for own in ("pipeline.images", "models", "pipeline.summary", "pipeline.stages.data"):
        found = list(imported(code))
        wrong = [other for other in found if not allowed(own, other)]
        if (own, code) != ("pipeline.stages.data", "from pipeline import training"):
            assert wrong == found and found


def test_every_name_in_the_levels_is_a_module():
    named = {name for level in LEVELS for name in level.split()}
    assert named <= MODULES


HEAVY = {"torch", "onnxruntime", "coremltools", "tensorrt_rtx", "sklearn"}
TORCH_FREE = [
    "pipeline.__main__",
    "pipeline.config",
    "pipeline.flow",
    "pipeline.records",
    "pipeline.summary",
    "pipeline.tables",
    "pipeline.pruning",
    "pipeline.comparison.pages",
    "pipeline.stages.report",
    "pipeline.templating",
    "pipeline.bundle",
    "pipeline.exporting",
    "pipeline.fit.fitting",
    "pipeline.verification",
    "pipeline.workshop",
    "runtime",
    "runtime.coreml_reference",
    "runtime.executorch",
    "runtime.litert",
    "runtime.tensorrt",
    "runtime.onnx_runtime",
    "runtime.pytorch",
    "exporters",
    "models",
    "benchmarks",
    "benchmarks.latency",
    "benchmarks.operators",
    "benchmarks.experiments.training",
    "benchmarks.experiments.distillation",
    "benchmarks.experiments.quantization",
    "benchmarks.__main__",
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
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs git, and a checkout")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [name for name in listed.stdout.splitlines() if name != "tests/test_imports.py"]
    for name in files:
        text = (ROOT / name).read_text(encoding="utf-8", errors="ignore")
        assert not [word for word in words if word in text], name
