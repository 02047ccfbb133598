"""What every format must keep to; a new file in exporters/ is covered without an edit here."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

import exporters
from exporters import Exporter
from pipeline.records import Artifact, Precision
from pipeline.settings import Settings
from pipeline.store import file_sha256
from runtime import Availability

ROOT = Path(__file__).parents[1]
HEAVY = {
    *("torch", "torchvision", "timm", "onnx", "onnxruntime", "tensorflow"),
    *("coremltools", "tensorrt", "tensorrt_rtx", "litert_torch", "ai_edge_litert", "executorch"),
}
FILES = [
    pytest.param(name, variant, id=f"{name}-{variant.precision}-{variant.variant or 'plain'}")
    for name in exporters.names()
    for variant in exporters.load(name).variants(exporters.load(name).Settings())
]


@pytest.fixture(params=exporters.names())
def exporter(request):
    return exporters.load(request.param)


def test_protocol(exporter):
    expected = {*Exporter.__annotations__, "availability", "variants", "export"}
    assert expected <= set(dir(exporter))
    assert isinstance(exporter.VERSION, int)
    assert exporter.PACKAGES and not isinstance(exporter.PACKAGES, str)
    assert exporter.EXTRA is None or exporter.EXTRA in extras()
    assert isinstance(exporter.EXECUTED, str)
    assert issubclass(exporter.Settings, Settings)


def extras():
    import tomllib

    facts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return facts["project"]["optional-dependencies"]


def test_settings_refuse_unknown_keys_and_explain_every_key(exporter):
    with pytest.raises(ValidationError, match="no_such_key"):
        exporter.Settings(no_such_key=1)
    for name, field in exporter.Settings.model_fields.items():
        assert field.description, f"{name} has no docstring"


def test_availability_is_said_in_words(exporter):
    found = exporter.availability()
    assert isinstance(found, Availability)
    assert found.detail


def test_variants_are_told_apart_and_name_a_source(exporter, sources):
    files = exporter.variants(exporter.Settings())
    assert files
    assert len({(file.precision, file.variant) for file in files}) == len(files)
    for file in files:
        assert file.precision in get_args(Precision)
        assert file.source in sources


@pytest.mark.parametrize("name", exporters.names())
def test_asking_a_format_imports_nothing_heavy(name):
    code = f"""
import sys, exporters
exporter = exporters.load({name!r})
exporter.availability()
exporter.variants(exporter.Settings())
print(*({HEAVY} & set(sys.modules)))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == ""
    assert run.stderr == ""


@pytest.mark.parametrize(("name", "variant"), FILES)
def test_exports_the_same_bytes_twice(name, variant, sources, tmp_path):
    exporter = exporters.load(name)
    available = exporter.availability()
    if not available.ok:
        pytest.skip(available.detail)
    once, again = tmp_path / "once", tmp_path / "again"
    made = check_export(exporter, variant, sources, again)
    blank = Artifact(format=name, precision=variant.precision, variant=variant.variant)
    if (first := sources.get(blank.title)) is not None:  # a file that the fixtures have made
        once = first.folder
    else:
        check_export(exporter, variant, sources, once)
    if reason := varies(exporter, made.file):
        pytest.skip(reason)
    assert contents(once) == contents(again)


def check_export(exporter, variant, sources, folder):
    folder.mkdir()
    made = exporter.export(sources[variant.source], variant, exporter.Settings(), folder)
    assert {made.file, *made.extras} == {path.name for path in folder.iterdir()}
    assert made.skipped is None or made.skipped.strip()
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert content
        assert str(folder).encode() not in content
        assert str(ROOT).encode() not in content
    return made


def contents(folder):
    return {path.name: file_sha256(path) for path in folder.iterdir()}


def varies(exporter, file):
    """The reason an exporter states for files that differ each time, in its attribute VARIES."""
    return getattr(exporter, "VARIES", {}).get(file)


@pytest.mark.parametrize(("name", "variant"), FILES)
def test_a_wrong_source_is_a_programming_error(name, variant, sources, tmp_path):
    exporter = exporters.load(name)
    available = exporter.availability()
    if not available.ok:
        pytest.skip(available.detail)
    other = sources["onnx fp32" if variant.source in ("checkpoint", "quantized") else "checkpoint"]
    with pytest.raises(TypeError):
        exporter.export(other, variant, exporter.Settings(), tmp_path)
