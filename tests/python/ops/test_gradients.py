"""Gradients of every operator: `gradcheck` where there is a slope, else the documented straight-through one."""

import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck


sys.path.insert(0, str(Path(__file__).parent))

from samples import CODES, CONVOLUTIONS

from optimum.quanto import (
    AbsmaxOptimizer,
    MaxOptimizer,
    absmax_scale,
    fake_quantize_activation,
    fake_quantize_weight,
    ops,
    qtypes,
    quantize_activation,
    quantize_weight,
)
from optimum.quanto.tensor import linear_per_token


QUANTO = torch.ops.quanto

# What each operator's gradient is: a slope (of the function in `ops` that calls it), that of the identity, or none.
SLOPE = {"linear", "linear_qbytes", "linear_qbits", "conv_qbytes", "conv_qbits"}
STRAIGHT_THROUGH = {
    *("quantize_symmetric", "quantize_affine", "quantize_affine_packed"),
    *("dequantize_symmetric", "dequantize_affine"),
    *("fake_quantize_symmetric", "fake_quantize_affine"),
    *("quantize_per_token", "linear_codes_qbytes", "linear_codes_qbits", "qbytes_mm"),
    *("linear_quantizing_qbytes", "linear_quantizing_qbits"),
}
NONE = {
    *("pack", "unpack", "embedding_qbytes", "embedding_qbits"),  # of integers
    *(
        "absmax_scale",
        "minmax_scale",
        "hqq_scale",
        "percentile_scale",
        "mse_scale",
        "observe_magnitudes",
    ),  # scales are constants
    "all_finite",
}


def test_every_operator_is_of_one_kind():
    names = {n.removeprefix("quanto::") for n in torch._C._dispatch_get_all_op_names() if n.startswith("quanto::")}
    assert names == SLOPE | STRAIGHT_THROUGH | NONE
    assert len(names) == len(SLOPE) + len(STRAIGHT_THROUGH) + len(NONE)


def check(function, *inputs):
    """First and second derivatives. The functions are linear, so that a wide step costs no accuracy in float32."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    tolerances = {"eps": 0.5, "atol": 2e-4, "rtol": 1e-3}
    assert gradcheck(function, leaves, **tolerances, check_batched_grad=False)
    y = function(*leaves)
    # gradgradcheck skips those that are constants by mistake.
    assert all(
        g.requires_grad for g in torch.autograd.grad(y, leaves, torch.ones_like(y).requires_grad_(), None, True)
    )
    assert gradgradcheck(function, leaves, **tolerances)


float32_is_meant = pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double precision")


def packed_weight(base, bits, group_size, kind):
    scale, shift = QUANTO.minmax_scale(base, f"qint{bits}", 0, group_size or None)
    if kind == "integer":
        shift = (shift / scale).round().clamp(0, 2**bits - 1).to(torch.uint8)
    return QUANTO.quantize_affine_packed(base, bits, 0, group_size or None, scale, shift), scale, shift


@float32_is_meant
@pytest.mark.parametrize("qtype", ["qint8", "qint4", None])
def test_linear(qtype):
    weight = torch.randn(6, 64)
    if qtype is not None:
        weight = quantized_weight(weight, qtypes[qtype], 0, 32)
    check(lambda x, bias: QUANTO.linear(x, weight, bias), torch.randn(3, 64), torch.randn(6))


@float32_is_meant
@pytest.mark.parametrize("qtype", CODES)
@pytest.mark.parametrize("shape", [(1, 8), (3, 8), (2, 2, 8), (8,)])
def test_linear_qbytes(qtype, shape):
    base = torch.randn(5, 8)
    scale = QUANTO.absmax_scale(base, qtype, 0)
    data = QUANTO.quantize_symmetric(base, CODES[qtype], 0, scale)
    check(lambda x, bias: ops.linear_qbytes(x, data, scale, bias), torch.randn(shape), torch.randn(5))
    check(lambda x: ops.linear_qbytes(x, data, scale), torch.randn(shape))


@float32_is_meant
@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("kind", ["float", "integer"])
@pytest.mark.parametrize("group_size", [32, 0])
def test_linear_qbits(bits, kind, group_size):
    packed, scale, shift = packed_weight(torch.randn(6, 64), bits, group_size, kind)

    def layer(x, bias=None):
        return ops.linear_qbits(x, packed, scale, shift, bias, bits)

    check(layer, torch.randn(2, 64), torch.randn(6))
    check(layer, torch.randn(2, 1, 64))


def walk_of(stride, padding, dilation, mode, groups=1):
    return ops.ConvWalk(tuple(stride), tuple(padding), tuple(dilation), mode, groups)


SMALL_CONVOLUTIONS = [c for c in CONVOLUTIONS if 0 < torch.Size(c[0]).numel() <= 160]


@float32_is_meant
@pytest.mark.parametrize("number", range(len(SMALL_CONVOLUTIONS)))
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_convolutions(number, mode):
    shape, weight, *rest = SMALL_CONVOLUTIONS[number]
    walk, base, bias = walk_of(*rest, mode), torch.randn(weight), torch.randn(weight[0])
    scale = QUANTO.absmax_scale(base, "qint8", 0)
    data = QUANTO.quantize_symmetric(base, torch.int8, 0, scale)
    check(lambda x, bias: ops.conv_qbytes(x, data, scale, bias, walk), torch.randn(shape), bias)
    packed, scale, shift = packed_weight(base, 4, 0, "float")
    layout = ops.PackedLayout(4, 0, tuple(weight))
    check(lambda x, bias: ops.conv_qbits(x, packed, scale, shift, layout, bias, walk), torch.randn(shape), bias)


@float32_is_meant
def test_convolutions_in_groups():
    base, walk = torch.randn(4, 2, 3, 3), walk_of([1, 1], [1, 1, 1, 1], [1, 1], "zeros", groups=2)
    scale = QUANTO.absmax_scale(base, "qint8", 0)
    data = QUANTO.quantize_symmetric(base, torch.int8, 0, scale)
    check(lambda x, bias: ops.conv_qbytes(x, data, scale, bias, walk), torch.randn(1, 4, 4, 4), torch.randn(4))


@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_are_those_of_the_dequantized_layer(bits, dtype):
    base = torch.randn(12, 64).to(dtype)
    x, bias = torch.randn(3, 5, 64).to(dtype).requires_grad_(), torch.randn(12).to(dtype).requires_grad_()
    if bits == 8:
        scale = QUANTO.absmax_scale(base, "qint8", 0)
        data = QUANTO.quantize_symmetric(base, torch.int8, 0, scale)
        y = ops.linear_qbytes(x, data, scale, bias)
        weight = QUANTO.dequantize_symmetric(data, scale)
    else:
        packed, scale, shift = packed_weight(base, 4, 32, "float")
        y = ops.linear_qbits(x, packed, scale, shift, bias)
        weight = QUANTO.dequantize_affine(packed, scale, shift, 4, 0, 32, [12, 64], True)
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, bias), upstream)
    expected = torch.autograd.grad(torch.nn.functional.linear(x, weight, bias), (x, bias), upstream)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e)


def test_no_gradient_is_recorded_where_none_is_wanted():
    base, x = torch.randn(6, 64), torch.randn(2, 64, requires_grad=True)
    scale = QUANTO.absmax_scale(base, "qint8", 0)
    data = QUANTO.quantize_symmetric(base, torch.int8, 0, scale)
    with torch.no_grad():
        assert ops.linear_qbytes(x, data, scale).grad_fn is None
    assert ops.linear_qbytes(x.detach(), data, scale).grad_fn is None
    bias = torch.randn(6, requires_grad=True)
    assert ops.linear_qbytes(x.detach(), data, scale, bias).requires_grad


# Rounding has no slope but zero: gradients pass it as if it were the identity.


def weight_optimizer(qtype):
    return AbsmaxOptimizer() if qtype.bits == 8 else MaxOptimizer()


def quantized_weight(base, qtype, axis, group_size):
    if qtype.bits == 8:
        return quantize_weight(base, qtype, axis, AbsmaxOptimizer()(base.detach(), qtype, axis))
    scale, shift = MaxOptimizer()(base.detach(), qtype, axis, group_size)
    return quantize_weight(base, qtype, axis, scale, shift, group_size)


@pytest.mark.parametrize("axis", [0, -1])
def test_rounding_of_weights_passes_gradients_straight_through(qtype_name, axis, dtype):
    qtype = qtypes[qtype_name]
    group_size = None if qtype.bits == 8 else 32
    functions = [
        lambda base: fake_quantize_weight(base, qtype, weight_optimizer(qtype), axis, group_size),
        lambda base: quantized_weight(base, qtype, axis, group_size).dequantize(),
    ]
    for function in functions:
        base = torch.randn(64, 64).to(dtype).requires_grad_()
        upstream = torch.randn(64, 64).to(dtype)
        assert torch.equal(torch.autograd.grad(function(base), base, upstream)[0], upstream)


@pytest.mark.parametrize("name", ["qint8", "qfloat8_e4m3fn", "qfloat8_e5m2"])
def test_rounding_of_activations_passes_gradients_straight_through(name, dtype):
    qtype, x, upstream = qtypes[name], torch.randn(3, 5).to(dtype).requires_grad_(), torch.randn(3, 5).to(dtype)
    scale = absmax_scale(x.detach(), qtype)
    for y in (fake_quantize_activation(x, qtype, scale), quantize_activation(x, qtype, scale).dequantize()):
        assert torch.equal(torch.autograd.grad(y, x, upstream)[0], upstream)


@pytest.mark.parametrize("rounding", ["per token", "per tensor"])
@pytest.mark.parametrize("codes", ["qint8", "qfloat8_e4m3fn"])
def test_products_of_codes_have_the_gradients_of_the_rounded_operands(qtype_name, codes, rounding):
    qtype, activations = qtypes[qtype_name], qtypes[codes]
    x, bias = torch.randn(2, 3, 64, requires_grad=True), torch.randn(8, requires_grad=True)
    base = torch.randn(8, 64, requires_grad=True)
    weight = quantized_weight(base, qtype, 0, None if qtype.bits == 8 else 32)
    if rounding == "per token":
        y = linear_per_token(x, weight, bias, activations.dtype)
        data, scale = QUANTO.quantize_per_token(x.detach(), activations.dtype)
        rounded = data.float() * scale
    else:
        scale = absmax_scale(x.detach(), activations)
        y = torch.nn.functional.linear(quantize_activation(x, activations, scale), weight, bias)
        rounded = quantize_activation(x.detach(), activations, scale).dequantize()
    upstream = torch.randn_like(y)
    rows, grads = rounded.reshape(-1, 64), upstream.reshape(-1, 8)
    found = torch.autograd.grad(y, (x, base, bias), upstream)
    torch.testing.assert_close(found[0], upstream @ weight.dequantize().detach())
    torch.testing.assert_close(found[1], grads.t() @ rows, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[2], grads.sum(0))


def test_products_of_quantized_activations_have_the_gradients_of_the_rounded_operands():
    """Of int8 products, `qbytes_mm`."""
    a, b = torch.randn(4, 8, requires_grad=True), torch.randn(8, 5, requires_grad=True)
    qint8 = qtypes["qint8"]
    left, right = (quantize_activation(t, qint8, absmax_scale(t.detach(), qint8)) for t in (a, b))
    upstream = torch.randn(4, 5)
    found = torch.autograd.grad(torch.matmul(left, right), (a, b), upstream)
    torch.testing.assert_close(found[0], upstream @ right.dequantize().detach().t())
    torch.testing.assert_close(found[1], left.dequantize().detach().t() @ upstream)
