"""The reference executor's compressed weights: every form that Core ML has, made dense.

Against coremltools' own decompression, against its documentation's examples, and by hand.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exporters import coreml as exporter
from runtime import coreml_reference
from runtime.coreml_reference import operators
from runtime.coreml_reference import package as packages
from runtime.coreml_reference import program as programs
from tests.coreml_files import RNG, builder, noise, quiet, tools

pytestmark = [
    pytest.mark.coreml,
    pytest.mark.skipif(
        not exporter.availability().ok, reason="coremltools is not installed (extra: coreml)"
    ),
]


def dense(path):
    """The constant weights of convolutions and products, by the names of those."""
    parsed = programs.parse(packages.read(path), operators.TABLE)
    return {
        each.name: each.arguments["weight"].astype(np.float32)
        for each in parsed.operations
        if isinstance(each.arguments.get("weight"), np.ndarray)
    }


@pytest.fixture(scope="module")
def plain(request, tmp_path_factory):
    """A coremltools model of two convolutions and a product, its weights, and its target."""
    ct = tools()
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 64, 5), nn.ReLU(), nn.Conv2d(64, 64, 3, groups=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 64)),
    ).eval()
    with quiet():
        exported = torch.export.export(network, (torch.zeros(1, 3, 16, 16),))
        made = ct.convert(
            exported.run_decompositions({}),
            inputs=[ct.ImageType(name="image", shape=(1, 3, 16, 16))],
            minimum_deployment_target=ct.target[request.param],
            skip_model_load=True,
        )
        path = tmp_path_factory.mktemp("plain") / "m.mlpackage"
        made.save(str(path))
    return made, dense(path), request.param


def configs(target) -> dict[str, Any]:
    """Every compression that the target knows: a function of coremltools, and its settings."""
    ct = tools()
    cto = ct.optimize.coreml
    found = {
        "int8 symmetric": (
            cto.linear_quantize_weights,
            cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=512),
        ),
        "uint8 asymmetric": (
            cto.linear_quantize_weights,
            cto.OpLinearQuantizerConfig(mode="linear", dtype="uint8", weight_threshold=512),
        ),
        "int8 per tensor": (
            cto.linear_quantize_weights,
            cto.OpLinearQuantizerConfig(granularity="per_tensor", weight_threshold=512),
        ),
        "pruned": (
            cto.prune_weights,
            cto.OpMagnitudePrunerConfig(target_sparsity=0.7, weight_threshold=512),
        ),
        **{
            f"palette of {bits} bits": (
                cto.palettize_weights,
                cto.OpPalettizerConfig(mode="uniform", nbits=bits, weight_threshold=512),
            )
            for bits in (8, 6, 4, 2, 1)
        },
        "palette by k-means": (
            cto.palettize_weights,
            cto.OpPalettizerConfig(mode="kmeans", nbits=4, weight_threshold=512),
        ),
    }
    if target == "iOS16":
        return found
    blocks: Any = {"granularity": "per_block", "block_size": 8, "weight_threshold": 512}
    groups: Any = {"granularity": "per_grouped_channel", "group_size": 16, "weight_threshold": 512}
    return found | {
        **{
            f"{dtype} by block": (
                cto.linear_quantize_weights,
                cto.OpLinearQuantizerConfig(mode=mode, dtype=dtype, **blocks),
            )
            for dtype, mode in (
                ("int8", "linear_symmetric"),
                ("int4", "linear_symmetric"),
                ("uint4", "linear"),
            )
        },
        **{
            f"palettes of {bits} bits": (
                cto.palettize_weights,
                cto.OpPalettizerConfig(mode="uniform", nbits=bits, **groups),
            )
            for bits in (8, 6, 4, 3, 2, 1)
        },
        "palettes with scales": (
            cto.palettize_weights,
            cto.OpPalettizerConfig(
                mode="uniform", nbits=4, enable_per_channel_scale=True, **groups
            ),
        ),
        "palettes of vectors": (
            cto.palettize_weights,
            cto.OpPalettizerConfig(mode="kmeans", nbits=4, cluster_dim=4, weight_threshold=512),
        ),
    }


BEFORE = (
    *("int8 symmetric", "uint8 asymmetric", "int8 per tensor", "pruned", "palette by k-means"),
    *(f"palette of {bits} bits" for bits in (8, 6, 4, 2, 1)),
)
SINCE = (
    *("int8 by block", "int4 by block", "uint4 by block"),
    *(f"palettes of {bits} bits" for bits in (8, 6, 4, 3, 2, 1)),
    *("palettes with scales", "palettes of vectors"),
)
PAIRS = [*(("iOS16", kind) for kind in BEFORE), *(("iOS18", kind) for kind in BEFORE + SINCE)]


@pytest.mark.parametrize(("plain", "kind"), PAIRS, indirect=["plain"])
def test_compressed_weights(plain, kind, tmp_path):
    """What is read is what coremltools would decompress, and less than what was compressed."""
    model, weights, target = plain
    cto = tools().optimize.coreml
    function, op = configs(target)[kind]
    with quiet():
        small = function(model, cto.OptimizationConfig(global_config=op))
        small.save(str(tmp_path / "small.mlpackage"))
        cto.decompress_weights(small).save(str(tmp_path / "dense.mlpackage"))
    held = {each.type for each in operations(tmp_path / "small.mlpackage")}
    assert any(each.startswith("constexpr_") for each in held)
    found, expected = dense(tmp_path / "small.mlpackage"), dense(tmp_path / "dense.mlpackage")
    assert found.keys() == expected.keys() == weights.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], name)
        assert np.corrcoef(value.ravel(), weights[name].ravel())[0, 1] > 0.5
    # Blocks of 8 do not divide the first convolution's three channels: it stays as it is.
    assert sum(not np.array_equal(value, weights[name]) for name, value in found.items()) >= 2
    coreml_reference.open(tmp_path / "small.mlpackage", 1).run(noise(2, 16))


def operations(path):
    spec = packages.read(path).spec
    main = spec.mlProgram.functions["main"]
    return list(main.block_specializations[main.opset].operations)


@pytest.mark.parametrize("plain", ["iOS16", "iOS18"], indirect=True)
def test_int8_per_channel_worked_out_by_hand(plain, tmp_path):
    model, weights, target = plain
    function, op = configs(target)["int8 symmetric"]
    with quiet():
        config = tools().optimize.coreml.OptimizationConfig(global_config=op)
        function(model, config).save(str(tmp_path / "m.mlpackage"))
    for name, value in dense(tmp_path / "m.mlpackage").items():
        weight = weights[name].reshape(len(weights[name]), -1)
        step = np.abs(weight).max(1, keepdims=True) / 127
        error = np.abs(value.reshape(weight.shape) - weight)
        # Half a step of rounding, and the float16 scale's own rounding, 127 times.
        assert (error <= step * (0.5 + 127 * 2**-11)).all()


PACKED = np.array([0b01_10_11_00, 0b11], np.uint8)  # the example in coremltools' documentation


def constexprs() -> dict[str, Any]:
    """Constants written by hand as the operators' documentation has them: target, how, what."""
    mb = builder()
    from coremltools.converters.mil.mil import types

    def kind(name, values):
        return np.array(values, types.nptype_from_builtin(types.string_to_builtin(name)))

    mask = kind(
        "uint1", [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1], [0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]]
    )
    nonzero = kind("uint1", [0, 1, 1, 0, 1, 1, 0, 0, 1])
    scalars = [[2, 3, 0, 0, 0, 0], [3, 2, 0, 0, 0, 3], [0, 3, 2, 0, 2, 0], [0, 0, 0, 3, 0, 0]]
    return {
        "packed indices": (
            "iOS16",
            lambda: mb.constexpr_lut_to_dense(
                indices=PACKED,
                lut=np.array([5, 6, 7, 8], np.float32),
                shape=np.array([5], np.uint32),
            ),
            [5, 8, 7, 6, 8],
        ),
        "packed mask": (
            "iOS16",
            lambda: mb.constexpr_sparse_to_dense(
                nonzero_data=np.array([5, 6], np.float32),
                mask=np.array([0b01100], np.uint8),
                shape=np.array([5], np.uint32),
            ),
            [0, 0, 5, 6, 0],
        ),
        "cast": (
            "iOS16",
            lambda: mb.constexpr_cast(source_val=np.array([0.1], np.float16), output_dtype="fp32"),
            [np.float32(np.float16(0.1))],
        ),
        "affine along an axis": (
            "iOS16",
            lambda: mb.constexpr_affine_dequantize(
                quantized_data=np.array([[1, 2], [255, 0]], np.uint8),
                zero_point=np.array([1, 2], np.uint8),
                scale=np.array([0.5, 2], np.float32),
                axis=-1,
            ),
            [[0, 0], [127, -4]],
        ),
        "affine, one for all": (
            "iOS16",
            lambda: mb.constexpr_affine_dequantize(
                quantized_data=np.array([[-128, 2]], np.int8),
                zero_point=np.int8(2),
                scale=np.float32(0.5),
                axis=0,
            ),
            [[-65, 0]],
        ),
        "blocks of int4": (
            "iOS18",
            lambda: mb.constexpr_blockwise_shift_scale(
                data=kind("int4", [[-8, 7, 1], [2, -1, 0]]),
                scale=np.array([[1], [10]], np.float32),
                offset=kind("int4", [[1], [-2]]),
            ),
            [[-9, 6, 0], [40, 10, 20]],
        ),
        "blocks without offset": (
            "iOS18",
            lambda: mb.constexpr_blockwise_shift_scale(
                data=kind("uint4", [[15, 0, 1, 2]]), scale=np.array([[1, 10]], np.float32)
            ),
            [[15, 0, 10, 20]],
        ),
        "a table for each group": (
            "iOS18",
            lambda: mb.constexpr_lut_to_dense(
                indices=kind("uint2", [[2, 3], [3, 0], [1, 0], [3, 0], [2, 1], [0, 3]]),
                lut=np.array([1, 5, 9, 13, 2, 10, 18, 26], np.float32).reshape(2, 1, 4, 1),
            ),
            [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]],
        ),
        "a table of vectors": (
            "iOS18",
            lambda: mb.constexpr_lut_to_dense(
                indices=kind("uint1", [[[0, 0], [1, 0]], [[1, 1], [0, 0]]]),
                lut=np.array([1, 2, 3, 4, 5, 6], np.float32).reshape(1, 1, 1, 2, 3),
                vector_axis=2,
            ),
            [[[1, 2, 3, 1, 2, 3], [4, 5, 6, 1, 2, 3]], [[4, 5, 6, 4, 5, 6], [1, 2, 3, 1, 2, 3]]],
        ),
        "a table of vectors along a middle axis": (
            "iOS18",
            lambda: mb.constexpr_lut_to_dense(
                indices=kind("uint1", [[[0, 0], [1, 0]]]),
                lut=np.array([1, 2, 3, 4, 5, 6], np.float32).reshape(1, 1, 1, 2, 3),
                vector_axis=1,
            ),
            [[[1, 1], [2, 2], [3, 3], [4, 1], [5, 2], [6, 3]]],
        ),
        "a mask": (
            "iOS18",
            lambda: mb.constexpr_sparse_to_dense(
                nonzero_data=np.arange(1, 10, dtype=np.float32), mask=mask
            ),
            [[1, 2, 0, 0, 0, 0], [3, 4, 0, 0, 0, 5], [0, 6, 7, 0, 8, 0], [0, 0, 0, 9, 0, 0]],
        ),
        "a sparse table": (
            "iOS18",
            lambda: sparse(
                mb.constexpr_lut_to_sparse(
                    indices_mask=mask,
                    indices_nonzero_data=nonzero,
                    lut=np.array([2, 3], np.float32).reshape(1, 1, 2, 1),
                )
            ),
            scalars,
        ),
        "a sparse table of vectors": (
            "iOS18",
            lambda: sparse(
                mb.constexpr_lut_to_sparse(
                    indices_mask=mask,
                    indices_nonzero_data=nonzero,
                    lut=np.array([2, 2, 3, 3], np.float32).reshape(1, 1, 2, 2),
                    vector_axis=0,
                )
            ),
            np.repeat(scalars, 2, 0),
        ),
        "sparse blocks": (
            "iOS18",
            lambda: sparse(
                mb.constexpr_sparse_blockwise_shift_scale(
                    data_mask=kind("uint1", [[1, 1, 0], [0, 1, 1]]),
                    nonzero_data=np.array([10, 11, 3, 4], np.int8),
                    scale=np.array([[1, 2, 3]], np.float32),
                    offset=np.array([[1, 2, 3]], np.int8),
                )
            ),
            [[9, 18, 0], [0, 2, 3]],
        ),
    }


def sparse(outputs):
    mb = builder()

    mask, nonzero = outputs
    return mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=mask)


@pytest.mark.parametrize(
    "case",
    [
        *("packed indices", "packed mask", "cast", "affine along an axis", "affine, one for all"),
        *("blocks of int4", "blocks without offset", "a table for each group"),
        *("a table of vectors", "a table of vectors along a middle axis", "a mask"),
        *("a sparse table", "a sparse table of vectors", "sparse blocks"),
    ],
)
def test_compressed_constants_as_documented(case, tmp_path):
    ct = tools()
    mb = builder()

    target, make, expected = constexprs()[case]
    goal = ct.target[target]
    with quiet():
        program = mb.program(input_specs=[mb.TensorSpec(shape=(1,))], opset_version=goal)(
            lambda x: mb.add(x=x, y=make())
        )
        ct.convert(
            program,
            minimum_deployment_target=goal,
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        ).save(str(tmp_path / "m.mlpackage"))
    parsed = programs.parse(packages.read(tmp_path / "m.mlpackage"), operators.TABLE)
    (add,) = parsed.operations
    np.testing.assert_array_equal(add.arguments["y"], expected)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_packed_numbers(bits):
    numbers = RNG.integers(0, 2**bits, 37)
    flat = np.array([number >> place & 1 for number in numbers for place in range(bits)], np.uint8)
    packed = np.packbits(flat, bitorder="little")
    np.testing.assert_array_equal(packages.unpack(packed, bits, 37), numbers)
    with pytest.raises(ValueError, match="do not fit"):
        packages.unpack(packed, bits, 45)
