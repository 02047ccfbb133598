"""The reference executor's operators, each against its meaning computed in another way.

Programs are written by coremltools' builder, saved, and read back; one program holds many
operators, each of the same input. All are given three images at once, and what is expected is
computed image by image, so an operator that mixed images would be found out.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import special

from exporters import coreml as exporter
from tests.coreml_files import builder, quiet, tools

pytestmark = [
    pytest.mark.coreml,
    pytest.mark.skipif(
        not exporter.availability().ok, reason="coremltools is not installed (extra: coreml)"
    ),
]
RNG = np.random.default_rng(0)
SHAPE = (1, 4, 6, 7)


def numbers(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def positive(*shape: int) -> Any:
    return RNG.uniform(0.5, 2, shape).astype(np.float32)


def save(build, shape, path, target="iOS17", precision="FLOAT32"):
    """Write the program that `build(builder, x)` makes, with no optimisation of any kind."""
    ct = tools()
    mb = builder()

    goal, spec = ct.target[target], mb.TensorSpec(shape=shape)
    program = mb.program(input_specs=[spec], opset_version=goal)(lambda x: build(mb, x))
    with quiet():
        ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=goal,
            compute_precision=ct.precision[precision],
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        ).save(str(path))
    return path


def executor(path):
    from runtime.coreml_reference import execution, operators, package, program

    return execution.Executor(program.parse(package.read(path), operators.TABLE))


def values(made, x):
    """Every computed value by its name."""
    return {
        name: value
        for operation, results in made.steps({"x": x})
        for (name, _), value in zip(operation.outputs, results, strict=True)
    }


W = numbers(6, 4, 3, 3)
DEPTHWISE = numbers(4, 1, 3, 3)
BIAS = numbers(6)
MEAN, VARIANCE, GAMMA, BETA = numbers(4), positive(4), numbers(4), numbers(4)
ROW = numbers(7)
MATRIX = numbers(5, 7)
Y = numbers(1, 4, 1, 7)
T = torch.from_numpy

IMAGES = {
    # convolutions
    "conv_plain": (
        lambda mb, x: mb.conv(x=x, weight=W, bias=BIAS, pad_type="valid"),
        lambda x: F.conv2d(x, T(W), T(BIAS)),
    ),
    "conv_custom": (
        lambda mb, x: mb.conv(x=x, weight=W, pad_type="custom", pad=[2, 0, 1, 3], strides=[2, 1]),
        lambda x: F.conv2d(F.pad(x, (1, 3, 2, 0)), T(W), stride=(2, 1)),
    ),
    "conv_symmetric": (
        lambda mb, x: mb.conv(x=x, weight=W, pad_type="custom", pad=[1, 1, 2, 2]),
        lambda x: F.conv2d(F.pad(x, (2, 2, 1, 1)), T(W)),
    ),
    "conv_depthwise": (
        lambda mb, x: mb.conv(x=x, weight=DEPTHWISE, groups=4, pad_type="same", strides=[2, 2]),
        # 6 rows, 3 outputs of stride 2: one row of padding, behind; 7 columns: one on either side
        lambda x: F.conv2d(F.pad(x, (1, 1, 0, 1)), T(DEPTHWISE), stride=2, groups=4),
    ),
    "conv_lower": (
        lambda mb, x: mb.conv(x=x, weight=W, pad_type="same_lower", strides=[2, 2]),
        lambda x: F.conv2d(F.pad(x, (1, 1, 1, 0)), T(W), stride=2),
    ),
    "conv_dilated": (
        lambda mb, x: mb.conv(x=x, weight=W, pad_type="same", dilations=[2, 2]),
        lambda x: F.conv2d(x, T(W), padding=2, dilation=2),
    ),
    # pools
    "max_pool_padded": (
        lambda mb, x: mb.max_pool(
            x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]
        ),
        lambda x: F.max_pool2d(x, 3, 2, padding=1),
    ),
    "max_pool_ceil": (
        lambda mb, x: mb.max_pool(
            x=x,
            kernel_sizes=[2, 2],
            strides=[3, 3],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            ceil_mode=True,
        ),
        lambda x: F.max_pool2d(x, 2, 3, padding=1, ceil_mode=True),
    ),
    "max_pool_same": (
        lambda mb, x: mb.max_pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="same"),
        lambda x: F.max_pool2d(F.pad(x, (1, 1, 0, 1), value=-math.inf), 3, 2),
    ),
    "avg_pool_counted": (
        lambda mb, x: mb.avg_pool(
            x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]
        ),
        lambda x: F.avg_pool2d(x, 3, 2, padding=1),
    ),
    "avg_pool_excluded": (
        lambda mb, x: mb.avg_pool(
            x=x,
            kernel_sizes=[3, 3],
            strides=[2, 2],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            exclude_padding_from_average=True,
        ),
        lambda x: F.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False),
    ),
    "avg_pool_ceil": (
        lambda mb, x: mb.avg_pool(
            x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid", ceil_mode=True
        ),
        lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True),
    ),
    # norms
    "batch_norm_full": (
        lambda mb, x: mb.batch_norm(
            x=x, mean=MEAN, variance=VARIANCE, gamma=GAMMA, beta=BETA, epsilon=np.float32(1e-3)
        ),
        lambda x: (
            (x - T(MEAN)[:, None, None])
            / torch.sqrt(T(VARIANCE)[:, None, None] + 1e-3)
            * T(GAMMA)[:, None, None]
            + T(BETA)[:, None, None]
        ),
    ),
    "batch_norm_bare": (
        lambda mb, x: mb.batch_norm(x=x, mean=MEAN, variance=VARIANCE),
        lambda x: F.batch_norm(x, T(MEAN), T(VARIANCE)),
    ),
    "instance_norm_full": (
        lambda mb, x: mb.instance_norm(x=x, gamma=GAMMA, beta=BETA, epsilon=np.float32(1e-3)),
        lambda x: F.instance_norm(x, weight=T(GAMMA), bias=T(BETA), eps=1e-3),
    ),
    "layer_norm_last": (
        lambda mb, x: mb.layer_norm(x=x, axes=[-1], gamma=ROW, beta=ROW, epsilon=np.float32(1e-3)),
        lambda x: F.layer_norm(x, (7,), T(ROW), T(ROW), 1e-3),
    ),
    "layer_norm_channels": (
        lambda mb, x: mb.layer_norm(x=x, axes=[1], gamma=GAMMA, beta=BETA),
        lambda x: F.layer_norm(x.movedim(1, -1), (4,), T(GAMMA), T(BETA)).movedim(-1, 1),
    ),
    "l2_norm_all": (
        lambda mb, x: mb.l2_norm(x=x, epsilon=np.float32(1e-6)),
        lambda x: x / x.norm(),
    ),
    "local_response_norm_two": (
        lambda mb, x: mb.local_response_norm(x=x, size=3, alpha=0.1, beta=0.5, k=2.0),
        lambda x: F.local_response_norm(x, 3, 0.1, 0.5, 2.0),
    ),
    # products
    "matmul_constant": (
        lambda mb, x: mb.matmul(x=x, y=MATRIX, transpose_y=True),
        lambda x: torch.einsum("bchw,kw->bchk", x, T(MATRIX)),
    ),
    "matmul_itself": (
        lambda mb, x: mb.matmul(x=x, y=x, transpose_x=True),
        lambda x: torch.einsum("bchi,bchj->bcij", x, x),
    ),
    "einsum_heads": (
        lambda mb, x: mb.einsum(
            values=(x, mb.transpose(x=x, perm=[0, 3, 2, 1])), equation="nchw,nwhu->nchu"
        ),
        lambda x: torch.stack([x[:, :, h] @ x[:, :, h].mT for h in range(6)], 2),
    ),
    # activations
    "relu": (lambda mb, x: mb.relu(x=x), lambda x: x * (x > 0)),
    "relu6": (lambda mb, x: mb.relu6(x=mb.mul(x=x, y=9.0)), lambda x: F.hardtanh(9 * x, 0, 6)),
    "clip": (lambda mb, x: mb.clip(x=x, alpha=-0.5, beta=0.25), lambda x: x.clamp(-0.5, 0.25)),
    "threshold": (lambda mb, x: mb.threshold(x=x, alpha=0.1), lambda x: F.threshold(x, 0.1, 0.1)),
    "clamped_relu": (
        lambda mb, x: mb.clamped_relu(x=x, alpha=0.2, beta=0.7),
        lambda x: F.leaky_relu(x, 0.2).clamp(max=0.7),
    ),
    "elu": (lambda mb, x: mb.elu(x=x, alpha=0.7), lambda x: F.elu(x, 0.7)),
    "gelu_exact": (
        lambda mb, x: mb.gelu(x=x, mode="EXACT"),
        lambda x: x * T(special.ndtr(x.numpy())),
    ),
    "gelu_tanh": (
        lambda mb, x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    "gelu_sigmoid": (
        lambda mb, x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
        lambda x: x * T(special.expit(1.702 * x.numpy())),
    ),
    "leaky_relu": (lambda mb, x: mb.leaky_relu(x=x, alpha=0.1), lambda x: x.where(x > 0, x / 10)),
    "linear_activation": (
        lambda mb, x: mb.linear_activation(x=x, alpha=2.0, beta=-1.0),
        lambda x: 2 * x - 1,
    ),
    "prelu": (
        lambda mb, x: mb.prelu(x=x, alpha=GAMMA),
        lambda x: x.where(x > 0, x * T(GAMMA)[:, None, None]),
    ),
    "scaled_tanh": (
        lambda mb, x: mb.scaled_tanh(x=x, alpha=1.7, beta=0.6),
        lambda x: 1.7 * T(np.tanh(0.6 * x.numpy())),
    ),
    "sigmoid": (lambda mb, x: mb.sigmoid(x=x), lambda x: T(special.expit(x.numpy()))),
    "sigmoid_hard": (
        lambda mb, x: mb.sigmoid_hard(x=x, alpha=1 / 6, beta=0.5),
        lambda x: F.hardsigmoid(x),
    ),
    "silu": (lambda mb, x: mb.silu(x=x), lambda x: x / (1 + torch.exp(-x))),
    "softmax": (
        lambda mb, x: mb.softmax(x=x, axis=1),
        lambda x: T(special.softmax(x.numpy(), 1)),
    ),
    "softplus": (lambda mb, x: mb.softplus(x=x), lambda x: torch.log1p(torch.exp(x))),
    "softsign": (lambda mb, x: mb.softsign(x=x), F.softsign),
    "thresholded_relu": (
        lambda mb, x: mb.thresholded_relu(x=x, alpha=0.3),
        lambda x: F.threshold(x, 0.3, 0),
    ),
    "hardswish": (
        lambda mb, x: mb.mul(x=x, y=mb.sigmoid_hard(x=x, alpha=1 / 6, beta=0.5), name="hardswish"),
        F.hardswish,
    ),
    # arithmetic
    "add_broadcast": (lambda mb, x: mb.add(x=x, y=Y), lambda x: x + T(Y)),
    "sub_number": (lambda mb, x: mb.sub(x=1.0, y=x), lambda x: 1 - x),
    "mul_itself": (lambda mb, x: mb.mul(x=x, y=x), lambda x: x**2),
    "real_div_row": (lambda mb, x: mb.real_div(x=x, y=ROW), lambda x: x / T(ROW)),
    "floor_div": (
        lambda mb, x: mb.floor_div(x=x, y=0.3),
        lambda x: T(np.floor_divide(x.numpy(), np.float32(0.3))),
    ),
    "mod": (
        lambda mb, x: mb.mod(x=x, y=np.float32(0.5)),
        lambda x: T(np.mod(x.numpy(), np.float32(0.5))),
    ),
    "pow": (lambda mb, x: mb.pow(x=x, y=3.0), lambda x: x * x * x),
    "maximum": (lambda mb, x: mb.maximum(x=x, y=0.2), lambda x: x.where(x > 0.2, 0.2)),
    "minimum": (lambda mb, x: mb.minimum(x=x, y=Y), lambda x: x.where(x < T(Y), T(Y))),
    "abs": (lambda mb, x: mb.abs(x=x), lambda x: x.where(x > 0, -x)),
    "ceil": (lambda mb, x: mb.ceil(x=x), torch.ceil),
    "cos": (lambda mb, x: mb.cos(x=x), lambda x: T(np.cos(x.numpy()))),
    "erf": (lambda mb, x: mb.erf(x=x), lambda x: T(special.erf(x.numpy()))),
    "exp": (lambda mb, x: mb.exp(x=x), lambda x: T(np.exp(x.numpy()))),
    "exp2": (lambda mb, x: mb.exp2(x=x), lambda x: 2**x),
    "floor": (lambda mb, x: mb.floor(x=x), torch.floor),
    "inverse": (
        lambda mb, x: mb.inverse(x=mb.exp(x=x), epsilon=0.5),
        lambda x: 1 / (torch.exp(x) + 0.5),
    ),
    "log": (
        lambda mb, x: mb.log(x=mb.exp(x=x), epsilon=0.5),
        lambda x: T(np.log(np.exp(x.numpy()) + np.float32(0.5))),
    ),
    "round": (lambda mb, x: mb.round(x=x), lambda x: T(np.rint(x.numpy()))),
    "rsqrt": (
        lambda mb, x: mb.rsqrt(x=mb.exp(x=x), epsilon=0.5),
        lambda x: (torch.exp(x) + 0.5) ** -0.5,
    ),
    "sign": (lambda mb, x: mb.sign(x=x), torch.sign),
    "sin": (lambda mb, x: mb.sin(x=x), lambda x: T(np.sin(x.numpy()))),
    "sqrt": (lambda mb, x: mb.sqrt(x=mb.exp(x=x)), lambda x: torch.exp(x / 2)),
    "square": (lambda mb, x: mb.square(x=x), lambda x: x * x),
    "tanh": (lambda mb, x: mb.tanh(x=x), lambda x: T(np.tanh(x.numpy()))),
    "select": (
        lambda mb, x: mb.select(cond=mb.greater(x=x, y=0.1), a=x, b=-1.0),
        lambda x: x.where(x > 0.1, -1.0),
    ),
    **{
        kind: (
            lambda mb, x, kind=kind: getattr(mb, kind)(x=mb.round(x=x), y=0.0),
            lambda x, function=function: function(torch.round(x), 0),
        )
        for kind, function in {
            "equal": torch.eq,
            "greater": torch.gt,
            "greater_equal": torch.ge,
            "less": torch.lt,
            "less_equal": torch.le,
            "not_equal": torch.ne,
        }.items()
    },
    **{
        f"logical_{kind}": (
            lambda mb, x, kind=kind: getattr(mb, f"logical_{kind}")(
                x=mb.greater(x=x, y=0.0), y=mb.less(x=x, y=0.5)
            ),
            lambda x, kind=kind: getattr(torch, f"logical_{kind}")(x > 0, x < 0.5),
        )
        for kind in ("and", "or", "xor")
    },
    "logical_not": (
        lambda mb, x: mb.logical_not(x=mb.greater(x=x, y=0.0)),
        lambda x: ~(x > 0),
    ),
    "cast_int": (
        lambda mb, x: mb.cast(x=mb.mul(x=x, y=3.0), dtype="int32"),
        lambda x: T(np.trunc(3 * x.numpy()).astype(np.int32)),
    ),
    "cast_half": (lambda mb, x: mb.cast(x=x, dtype="fp16"), lambda x: x.half()),
    "quantize": (
        lambda mb, x: mb.quantize(
            input=x, scale=np.float32(0.02), zero_point=np.int8(3), output_dtype="int8"
        ),
        lambda x: T(np.clip(np.rint(x.numpy() / np.float32(0.02)) + 3, -128, 127).astype(np.int8)),
    ),
    "dequantize": (
        lambda mb, x: mb.dequantize(
            input=mb.quantize(
                input=x,
                scale=np.full(4, 0.02, np.float32),
                zero_point=np.full(4, 128, np.uint8),
                output_dtype="uint8",
                axis=1,
            ),
            scale=np.arange(1, 5, dtype=np.float32),
            zero_point=np.array([1, 2, 3, 4], np.uint8),
            axis=1,
        ),
        lambda x: (
            (
                torch.clamp(torch.round(x / np.float32(0.02)) + 128, 0, 255)
                - torch.arange(1, 5)[:, None, None]
            )
            * torch.arange(1, 5)[:, None, None]
        ),
    ),
    # reductions
    "reduce_mean": (
        lambda mb, x: mb.reduce_mean(x=x, axes=[2, 3], keep_dims=True),
        lambda x: T(x.numpy().mean((2, 3), keepdims=True)),
    ),
    "reduce_sum": (
        lambda mb, x: mb.reduce_sum(x=x, axes=[-1, 1], keep_dims=False),
        lambda x: T(x.numpy().sum((1, 3))),
    ),
    "reduce_max": (lambda mb, x: mb.reduce_max(x=x, axes=[1]), lambda x: x.max(1).values),
    "reduce_min": (lambda mb, x: mb.reduce_min(x=x, axes=[1]), lambda x: x.min(1).values),
    "reduce_l1_norm": (lambda mb, x: mb.reduce_l1_norm(x=x, axes=[3]), lambda x: x.norm(1, 3)),
    "reduce_l2_norm": (lambda mb, x: mb.reduce_l2_norm(x=x, axes=[3]), lambda x: x.norm(2, 3)),
    "reduce_log_sum_exp": (
        lambda mb, x: mb.reduce_log_sum_exp(x=x, axes=[1]),
        lambda x: T(special.logsumexp(x.numpy(), 1)),
    ),
    "reduce_sum_square": (
        lambda mb, x: mb.reduce_sum_square(x=x, axes=[1], keep_dims=True),
        lambda x: (x**2).sum(1, keepdim=True),
    ),
    "reduce_argmax": (
        lambda mb, x: mb.reduce_argmax(x=x, axis=1),
        lambda x: T(x.numpy().argmax(1).astype(np.int32)),
    ),
    "reduce_argmin": (
        lambda mb, x: mb.reduce_argmin(x=x, axis=-1, keep_dims=True),
        lambda x: T(x.numpy().argmin(-1, keepdims=True).astype(np.int32)),
    ),
    # shapes
    "concat": (
        lambda mb, x: mb.concat(values=[x, x], axis=-3),
        lambda x: torch.cat([x, x], 1),
    ),
    "concat_interleaved": (
        lambda mb, x: mb.concat(values=[x, mb.square(x=x)], axis=1, interleave=True),
        lambda x: torch.stack([v for c in range(4) for v in (x[:, c], x[:, c] ** 2)], 1),
    ),
    "expand_dims": (lambda mb, x: mb.expand_dims(x=x, axes=[2]), lambda x: x[:, :, None]),
    "expand_dims_last": (lambda mb, x: mb.expand_dims(x=x, axes=[-2]), lambda x: x[..., None, :]),
    "gather": (
        lambda mb, x: mb.gather(x=x, indices=[3, 0, 0], axis=1),
        lambda x: x[:, [3, 0, 0]],
    ),
    "identity": (lambda mb, x: mb.identity(x=x), lambda x: x),
    "pad_constant": (
        lambda mb, x: mb.pad(x=x, pad=[0, 0, 1, 0, 0, 2, 3, 1], constant_val=0.5),
        lambda x: T(np.pad(x, [(0, 0), (1, 0), (0, 2), (3, 1)], constant_values=0.5)),
    ),
    "pad_reflect": (
        lambda mb, x: mb.pad(x=x, pad=[1, 2, 3, 1], mode="reflect"),
        lambda x: T(np.pad(x, [(0, 0), (0, 0), (1, 2), (3, 1)], "reflect")),
    ),
    "pad_replicate": (
        lambda mb, x: mb.pad(x=x, pad=[0, 0, 0, 0, 1, 2, 3, 1], mode="replicate"),
        lambda x: T(np.pad(x, [(0, 0), (0, 0), (1, 2), (3, 1)], "edge")),
    ),
    "pixel_shuffle": (
        lambda mb, x: mb.pixel_shuffle(x=x, upscale_factor=2),
        lambda x: x.reshape(1, 1, 2, 2, 6, 7).permute(0, 1, 4, 2, 5, 3).reshape(1, 1, 12, 14),
    ),
    "pixel_unshuffle": (
        lambda mb, x: mb.pixel_unshuffle(
            x=mb.pixel_shuffle(x=x, upscale_factor=2), downscale_factor=np.uint32(2)
        ),
        lambda x: x,
    ),
    "reshape": (lambda mb, x: mb.reshape(x=x, shape=[1, 28, -1]), lambda x: x.reshape(1, 28, 6)),
    "reshape_inherited": (
        lambda mb, x: mb.reshape(x=x, shape=[0, 2, -1, 0]),
        lambda x: x.reshape(1, 2, 12, 7),
    ),
    "reverse": (lambda mb, x: mb.reverse(x=x, axes=[1, 3]), lambda x: x.flip(1).flip(3)),
    "slice_by_index": (
        lambda mb, x: mb.slice_by_index(
            x=x, begin=[0, 3, -4, 1], end=[1, 1, -1, 6], stride=[1, -1, 1, 2]
        ),
        lambda x: T(x.numpy()[:, 3:1:-1, -4:-1, 1:6:2].copy()),
    ),
    "slice_by_index_masked": (
        lambda mb, x: mb.slice_by_index(
            x=x,
            begin=[0, -1, 2, 2],
            end=[0, 0, 5, 3],
            begin_mask=[True, False, True, False],
            end_mask=[True, False, False, True],
            squeeze_mask=[False, True, False, False],
        ),
        lambda x: x[:, -1, :5, 2:],
    ),
    "slice_by_size": (
        lambda mb, x: mb.slice_by_size(x=x, begin=[0, 1, 2, 0], size=[1, 2, -1, 7]),
        lambda x: x[:, 1:3, 2:],
    ),
    "split_even": (lambda mb, x: mb.split(x=x, axis=1, num_splits=2)[1], lambda x: x[:, 2:]),
    "split_sizes": (
        lambda mb, x: mb.split(x=x, axis=-1, split_sizes=[2, 5])[0],
        lambda x: x[..., :2],
    ),
    "squeeze": (
        lambda mb, x: mb.squeeze(x=mb.reduce_max(x=x, axes=[2], keep_dims=True), axes=[2]),
        lambda x: x.amax(2),
    ),
    "stack": (
        lambda mb, x: mb.stack(values=[x, mb.square(x=x)], axis=-1),
        lambda x: torch.stack([x, x**2], 4),
    ),
    "tile": (lambda mb, x: mb.tile(x=x, reps=[1, 2, 1, 3]), lambda x: x.tile(1, 2, 1, 3)),
    "transpose": (
        lambda mb, x: mb.transpose(x=x, perm=[0, -1, 1, 2]),
        lambda x: torch.einsum("bchw->bwch", x),
    ),
}
ROWS = {
    "linear": (
        lambda mb, x: mb.linear(x=x, weight=MATRIX, bias=MATRIX[:, 0].copy()),
        lambda x: torch.einsum("bsw,kw->bsk", x, T(MATRIX)) + T(MATRIX)[:, 0],
    ),
    "conv_line": (
        lambda mb, x: mb.conv(x=x, weight=W[0], pad_type="same"),
        lambda x: F.conv1d(x, T(W[0]), padding=1),
    ),
    "max_pool_line": (
        lambda mb, x: mb.max_pool(x=x, kernel_sizes=[2], strides=[2], pad_type="valid"),
        lambda x: F.max_pool1d(x, 2),
    ),
    "fill": (
        lambda mb, x: mb.add(x=x, y=mb.fill(shape=np.array([1, 3, 7], np.int32), value=2.0)),
        lambda x: x + 2,
    ),
}
MIXING = {
    "add_rows": (lambda mb, x: mb.add(x=mb.squeeze(x=x, axes=[0]), y=x), lambda x: x[0] + x),
    "softmax": (lambda mb, x: mb.softmax(x=x, axis=0), lambda x: torch.ones_like(x)),
    "transpose": (lambda mb, x: mb.transpose(x=x, perm=[1, 0, 2, 3]), lambda x: x.movedim(1, 0)),
    "reshape": (lambda mb, x: mb.reshape(x=x, shape=[4, 42]), lambda x: x.reshape(4, 42)),
    "layer_norm": (
        lambda mb, x: mb.layer_norm(x=x, axes=[0, 1, 2, 3]),
        lambda x: F.layer_norm(x, x.shape),
    ),
    "reduce_mean": (lambda mb, x: mb.reduce_mean(x=x), lambda x: x.mean()),
    "concat": (lambda mb, x: mb.concat(values=[x, x], axis=0), lambda x: torch.cat([x, x])),
    "weights": (
        lambda mb, x: mb.conv(x=x, weight=x, pad_type="valid"),
        lambda x: F.conv2d(x, x),
    ),
    "numbers": (
        lambda mb, x: mb.add(x=mb.reshape(x=x, shape=[1, 168]), y=numbers(2, 168) * 0),
        lambda x: x.reshape(1, 168).expand(2, 168),
    ),
}
"""Operators that would mix images, if they were given several at once."""


def group(cases, shape, folder):
    """One program of all `cases`, each result under its case's name, executed."""
    given = np.concatenate([numbers(*shape) for _ in range(3)])
    results = {}

    def build(mb, x):
        for case, (make, _) in cases.items():
            made = make(mb, x)
            results[case] = made.name
        return mb.identity(x=x)

    made = executor(save(build, shape, folder / "operators.mlpackage"))
    assert made.batched
    found = values(made, given)
    kinds = {name: each.type for each in made.program.operations for name, _ in each.outputs}
    return {case: (found[name], kinds[name]) for case, name in results.items()}, given


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return group(IMAGES, SHAPE, tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return group(ROWS, (1, 3, 7), tmp_path_factory.mktemp("rows"))


def compare(found, expected):
    """Equal in every shape and whole number, and in floats but for the order of sums."""
    assert found.shape == expected.shape
    if found.is_floating_point():
        assert expected.is_floating_point()
        np.testing.assert_allclose(found.float(), expected.float(), rtol=2e-5, atol=2e-6)
    else:
        assert torch.equal(found, expected.to(found.dtype))


@pytest.mark.parametrize("case", IMAGES)
def test_operator_of_images(images, case):
    results, given = images
    found, kind = results[case]
    assert case.startswith(kind) or case == "hardswish"
    compare(found, torch.cat([IMAGES[case][1](T(given[i : i + 1])) for i in range(3)]))


@pytest.mark.parametrize("case", ROWS)
def test_operator_of_rows(rows, case):
    results, given = rows
    compare(results[case][0], torch.cat([ROWS[case][1](T(given[i : i + 1])) for i in range(3)]))


@pytest.mark.parametrize("case", MIXING)
def test_images_are_executed_one_by_one_where_they_would_mix(case, tmp_path):
    build, expected = MIXING[case]
    made = executor(save(build, SHAPE, tmp_path / "mixing.mlpackage"))
    assert not made.batched
    given = np.concatenate([numbers(*SHAPE) for _ in range(3)])
    found = torch.from_numpy(made.answers({"x": given}))
    alone = [expected(T(given[i : i + 1])) for i in range(3)]
    join = torch.cat if alone[0].shape[:1] == (1,) else torch.stack
    compare(found, join(alone))


def test_attention(tmp_path):
    def build(mb, x):
        return mb.scaled_dot_product_attention(query=x, key=x, value=mb.square(x=x))

    made = executor(save(build, (1, 2, 5, 3), tmp_path / "attention.mlpackage", "iOS18"))
    given = numbers(3, 2, 5, 3)
    weights = special.softmax(given @ given.swapaxes(2, 3) / math.sqrt(3), -1)
    assert made.batched
    np.testing.assert_allclose(made.answers({"x": given}), weights @ given**2, rtol=1e-5)


def test_every_operator_was_tried(images, rows):
    from runtime.coreml_reference import operators

    tried = {kind for results, _ in (images, rows) for _, kind in results.values()}
    # These two are tried within other tests.
    assert set(operators.TABLE) - tried == {"fill", "scaled_dot_product_attention"}
    assert set(operators.TABLE) >= operators.EXACT


@pytest.mark.parametrize("precision", ["FLOAT16", "FLOAT32"])
def test_results_are_rounded_where_the_file_says_so(precision, tmp_path):
    """A sum that float16 cannot hold, of numbers that it can, and one too great for it."""

    def build(mb, x):
        half = mb.cast(x=x, dtype="fp16") if precision == "FLOAT16" else x
        kind = np.float16 if precision == "FLOAT16" else np.float32
        total = mb.add(x=half, y=kind(2048))
        return mb.cast(x=mb.mul(x=total, y=kind(16)), dtype="fp32")

    made = executor(save(build, (1, 3), tmp_path / "rounded.mlpackage"))
    found = made.answers({"x": np.array([[1, 3, 2048]], np.float32)})
    exact = [[2049 * 16, 2051 * 16, 4096 * 16]]
    halves = [[2048 * 16, 2052 * 16, np.inf]]  # ties go to even; 65504 is the greatest
    np.testing.assert_array_equal(found, halves if precision == "FLOAT16" else exact)


def test_a_whole_convolution_is_rounded_once(tmp_path):
    """Products and bias are summed up in float32, and the sum alone is rounded."""
    weight = np.array([2048, 1, 1], np.float16).reshape(1, 3, 1, 1)
    bias = np.array([1], np.float16)

    def build(mb, x):
        half = mb.cast(x=x, dtype="fp16")
        return mb.cast(x=mb.conv(x=half, weight=weight, bias=bias, pad_type="valid"), dtype="fp32")

    made = executor(save(build, (1, 3, 1, 1), tmp_path / "conv.mlpackage"))
    assert made.answers({"x": np.ones((1, 3, 1, 1), np.float32)}).item() == 2052  # of 2051


def test_operators_that_choose_or_move_do_so_in_half_precision(tmp_path):
    half = np.float16
    cases = {
        "clip": (lambda mb, x: mb.clip(x=x, alpha=half(-0.3), beta=half(0.7)), "clamp(-0.3, 0.7)"),
        "relu": (lambda mb, x: mb.relu(x=x), "relu()"),
        "relu6": (lambda mb, x: mb.relu6(x=x), "clamp(0, 6)"),
        "threshold": (lambda mb, x: mb.threshold(x=x, alpha=half(0.1)), "clamp(min=0.1)"),
        "maximum": (lambda mb, x: mb.maximum(x=x, y=half(0.1)), "clamp(min=0.1)"),
        "minimum": (lambda mb, x: mb.minimum(x=x, y=GAMMA[:, None, None].astype(half)), None),
        "concat": (
            lambda mb, x: mb.concat(values=[x, Y.repeat(6, 2).astype(half)], axis=1),
            None,
        ),
        "tile": (lambda mb, x: mb.tile(x=x, reps=[1, 1, 2, 1]), "tile(1, 1, 2, 1)"),
    }
    names = {}

    def build(mb, x):
        x = mb.cast(x=x, dtype="fp16")
        names.update({case: make(mb, x).name for case, (make, _) in cases.items()})
        return mb.cast(x=x, dtype="fp32")

    given = numbers(2, *SHAPE[1:])
    found = values(executor(save(build, SHAPE, tmp_path / "half.mlpackage")), given)
    x = T(given).half()
    others = {
        "minimum": torch.minimum(x, T(GAMMA)[:, None, None].half()),
        "concat": torch.cat([x, T(Y.repeat(6, 2)).half().expand(2, -1, -1, -1)], 1),
    }
    for case, (_, call) in cases.items():
        expected = others[case] if call is None else eval(f"x.float().{call}").half()
        assert torch.equal(found[names[case]], expected), case
