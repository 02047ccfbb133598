"""ORT files: what a minimal build must hold, and bytes that name no folder."""

import numpy as np
import pytest

from exporters import Variant, ort
from pipeline.errors import ExportError
from runtime import onnx_runtime


@pytest.mark.parametrize(
    ("precision", "operator"), [("fp32", "FusedConv"), ("int8", "QLinearConv")]
)
def test_operators_that_a_minimal_build_needs(precision, operator, sources, tmp_path):
    variant = Variant(precision, source=f"onnx {precision}")
    made = ort.export(sources, variant, ort.Settings(), tmp_path)
    assert made.extras == (ort.OPERATORS,)
    assert made.notes == ((ort.LAYOUTS,) if precision == "fp32" else ())
    needed = [
        line
        for line in (tmp_path / ort.OPERATORS).read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    assert all(len(line.split(";")) == 3 for line in needed)
    assert any(operator in line for line in needed)
    image = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    expected = onnx_runtime.open(sources.files[variant.source].path, 1).run(image)
    given = onnx_runtime.open(tmp_path / made.file, 1).run(image)
    assert np.abs(given - expected).max() < 0.02 * expected.std()


def test_a_file_cut_short_is_refused(sources, tmp_path):
    variant = Variant("fp32", source="onnx fp32")
    made = ort.export(sources, variant, ort.Settings(), tmp_path)
    path = tmp_path / made.file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ExportError, match="cannot load"):
        onnx_runtime.open(path, 1)
