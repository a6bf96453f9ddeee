import copy
import io

import pytest
import torch
from oracle import misfit
from torch.utils import _pytree as pytree

from optimum.quanto import (
    AbsmaxOptimizer,
    HqqOptimizer,
    MaxOptimizer,
    PackedTensor,
    WeightQBitsTensor,
    WeightQBytesTensor,
    group,
    grouped_shape,
    qfloat8,
    qint4,
    qint8,
    qtype,
    qtypes,
    quantize_activation,
    quantize_weight,
    ungroup,
)
from optimum.quanto.nn.qmodule import linear_kernel


def make_weight(qtype_name, dtype, shape=(12, 64), axis=0, group_size=None, zeropoint=False):
    base, kind = torch.randn(shape).to(dtype), qtypes[qtype_name]
    if kind.bits == 8:
        return quantize_weight(base, kind, axis, AbsmaxOptimizer()(base, kind, axis))
    scale, shift = MaxOptimizer()(base, kind, axis, group_size, zeropoint)
    return quantize_weight(base, kind, axis, scale, shift, group_size)


@pytest.fixture
def weight(qtype_name, dtype):
    return make_weight(qtype_name, dtype, group_size=32 if qtypes[qtype_name].bits < 8 else None)


def test_qtypes_come_from_one_table():
    assert str(qtypes["qint4"]) == "quanto.qint4"
    assert (qtypes["qint8"].qmin, qtypes["qint8"].qmax) == (-128, 127)
    assert qtypes["qfloat8"] is qtypes["qfloat8_e4m3fn"]
    assert qtypes["qfloat8_e5m2"].qmax == torch.finfo(torch.float8_e5m2).max
    assert isinstance(qint8, qtype)
    assert len({qint4, qint8, qtypes["qint4"]}) == 2


def test_wrapper_survives_copies(weight):
    for other in (weight.detach(), weight.clone(), copy.deepcopy(weight), weight.to("cpu")):
        assert type(other) is type(weight)
        assert torch.equal(other, weight)
    names, meta = weight.__tensor_flatten__()
    inner = {name: getattr(weight, name) for name in names}
    assert torch.equal(type(weight).__tensor_unflatten__(inner, meta, weight.size(), weight.stride()), weight)


def test_compiled_code_has_little_to_check(weight):
    names, metadata = weight.__tensor_flatten__()
    assert all(type(getattr(weight, name)) is torch.Tensor for name in names)
    assert weight.__tensor_flatten__() is weight.__tensor_flatten__()
    # Guards compare the metadata with a copy made in these two steps.
    assert copy.deepcopy(pytree.tree_map_only(torch.SymInt, str, metadata)) is metadata


def test_compiled_code_of_another_layout_is_not_reused():
    """What the cache of torch.compile knows a weight by: all but its values."""
    layouts = [
        make_weight(*arguments)
        for arguments in (
            ("qint4", torch.float32, (64, 64), 0, 32),
            ("qint4", torch.float32, (64, 64), 0, 64),
            ("qint4", torch.float32, (64, 64), -1, 32),
            ("qint4", torch.float32, (64, 64)),
            ("qint4", torch.bfloat16, (64, 64), 0, 32),
            ("qint4", torch.float32, (32, 128), 0, 32),
            ("qint2", torch.float32, (64, 64), 0, 32),
            ("qint8", torch.float32, (64, 64)),
            ("qint8", torch.float32, (64, 64), -1),
            ("qfloat8_e5m2", torch.float32, (64, 64)),
        )
    ]
    assert len({weight._stable_hash_for_caching() for weight in layouts}) == len(layouts)
    again = make_weight("qint4", torch.float32, (64, 64), 0, 32)
    assert again._stable_hash_for_caching() == layouts[0]._stable_hash_for_caching()


def test_layers_of_codes_that_kernels_do_not_read():
    x, weight = torch.randn(3, 64), make_weight("qint4", torch.float32, (4, 64), 0, 32)
    codes = weight._data.unpack().reshape(4, 64)  # not a row for each group
    other = WeightQBitsTensor.create(qint4, 0, 32, (4, 64), (64, 1), codes, weight._scale, weight._shift)
    linear = torch.nn.functional.linear
    torch.testing.assert_close(linear(x, other), linear(x, weight))
    assert linear_kernel(other, 1).startswith("slow"), "the coverage report says so"
    scale = torch.ones(0, 1)
    empty = WeightQBitsTensor.quantize(torch.zeros(4, 0), qint4, 0, 32, scale, scale)
    assert torch.equal(linear(torch.zeros(3, 0), empty), torch.zeros(3, 4))


def test_deepcopy_and_clone_do_not_share_memory(weight):
    before = weight.dequantize()
    for other in (copy.deepcopy(weight), weight.clone()):
        other._scale.zero_()
    assert torch.equal(weight.dequantize(), before)


def test_copies_want_gradients_as_the_original_does(weight):
    for wanted in (True, False):
        for t in (weight.detach().requires_grad_(wanted), torch.nn.Parameter(weight.detach(), wanted)):
            copied = copy.deepcopy(t)
            assert copied.requires_grad == wanted
            assert isinstance(copied, torch.nn.Parameter) == isinstance(t, torch.nn.Parameter)


def test_pickle_is_safe_to_load(weight):
    buffer = io.BytesIO()
    torch.save(weight, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=True), weight)


def test_dtype_changes_convert_scales_only(weight):
    for target in (torch.float32, torch.bfloat16, torch.float16):
        moved = weight.to(target)
        assert moved.dtype == moved._scale.dtype == moved.dequantize().dtype == target
        assert moved.qtype is weight.qtype
    assert weight.half().dtype == torch.float16
    with pytest.raises(ValueError, match=r"dtype: got torch\.int32, expected torch\.float32"):
        weight.to(torch.int32)


def test_equal_notices_every_part(weight):
    for name in weight.inner_names:
        other = weight.clone()
        inner = getattr(other, name)
        target = inner._data if isinstance(inner, PackedTensor) else inner
        target.view(torch.uint8).flatten()[0] ^= 1
        assert not torch.equal(weight, other), name
    assert not torch.equal(weight, weight.dequantize())


def test_functions_without_quantized_form_see_numbers(weight):
    plain = weight.dequantize()
    assert torch.equal(weight + 1, plain + 1)
    assert torch.equal(weight.transpose(0, 1), plain.t())
    assert torch.equal(weight[3], plain[3])
    assert torch.equal(torch.relu(weight), torch.relu(plain))
    assert "scale" in repr(weight)


def test_a_transposed_8_bit_weight_shares_its_codes(dtype):
    base = torch.randn(12, 7).to(dtype)
    w = quantize_weight(base, qint8, 0, AbsmaxOptimizer()(base, qint8, 0))
    transposed = w.t()
    assert isinstance(transposed, WeightQBytesTensor)
    assert (transposed.axis, transposed.shape, transposed.stride()) == (-1, (7, 12), (1, 7))
    assert transposed._data.data_ptr() == w._data.data_ptr()
    assert torch.equal(transposed.dequantize(), w.dequantize().t())
    x = torch.randn(3, 7).to(dtype).requires_grad_()
    product = x @ transposed
    assert torch.equal(product, torch.nn.functional.linear(x, w))
    torch.testing.assert_close(torch.autograd.grad(product.sum(), x)[0], w.dequantize().sum(0).expand(3, 7))


def test_linear_matches_the_oracle(weight):
    x, bias = torch.randn(5, 64).to(weight.dtype), torch.randn(12).to(weight.dtype)
    y = torch.nn.functional.linear(x, weight, bias)
    assert misfit(x, weight, bias, y) <= 1


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("zeropoint", [False, True])
@pytest.mark.parametrize("name", ["qint4", "qint2"])
def test_affine_tensors_of_any_rank(name, zeropoint, axis, dtype):
    """4-D tensors along either axis are what a quantized KV cache is made of."""
    base = torch.randn(2, 4, 8, 16).to(dtype)
    w = make_weight(name, dtype, (2, 4, 8, 16), axis, 16, zeropoint)
    assert w.shape == base.shape
    assert w._shift.dtype == (torch.uint8 if zeropoint else dtype)
    assert w.dequantize().shape == base.shape
    torch.manual_seed(0)
    base = torch.randn(2, 4, 8, 16).to(dtype)
    scale, shift = MaxOptimizer()(base, qtypes[name], axis, 16, zeropoint)
    w = quantize_weight(base, qtypes[name], axis, scale, shift, 16)
    error = (w.dequantize().double() - base.double()).abs().max()
    assert error <= (1.01 if zeropoint else 0.51) * scale.double().max() + 0.05


def test_constant_and_zero_groups_are_exact():
    base = torch.tensor([[0.0] * 32, [2.5] * 32, [-1.25] * 32])
    for zeropoint in (False, True):
        scale, shift = MaxOptimizer()(base, qint4, 0, 32, zeropoint)
        assert torch.equal(quantize_weight(base, qint4, 0, scale, shift, 32).dequantize(), base)


def test_gradients_pass_straight_through(qtype_name):
    kind = qtypes[qtype_name]
    base = torch.randn(8, 64, requires_grad=True)
    if kind.bits == 8:
        w = quantize_weight(base, kind, 0, AbsmaxOptimizer()(base.detach(), kind, 0))
    else:
        scale, shift = MaxOptimizer()(base.detach(), kind, 0, 32)
        w = quantize_weight(base, kind, 0, scale, shift, 32)
    assert w.requires_grad
    upstream = torch.randn(8, 64)
    (gradient,) = torch.autograd.grad(w.dequantize(), base, upstream, retain_graph=True)
    assert torch.equal(gradient, upstream)
    x = torch.randn(3, 64, requires_grad=True)
    y = torch.nn.functional.linear(x, w)
    upstream = torch.randn_like(y)
    x_grad, base_grad = torch.autograd.grad(y, (x, base), upstream)
    torch.testing.assert_close(base_grad, upstream.T @ x)
    torch.testing.assert_close(x_grad, upstream @ w.dequantize())


def test_packed_tensor():
    codes = torch.randint(0, 16, (7, 5), dtype=torch.uint8)
    packed = PackedTensor.pack(codes, 4)
    assert packed._data.shape == (4, 5)
    assert packed.shape == codes.shape
    assert packed.bits == 4
    assert torch.equal(packed.unpack(), codes)
    assert torch.equal(packed + 1, codes + 1)
    with pytest.raises(ValueError, match="expected 2 or 4 bits"):
        PackedTensor.pack(codes, 3)


def test_group_and_ungroup():
    base = torch.randn(6, 8, 4)
    for axis in (0, -1):
        grouped = group(base, axis, 16)
        assert grouped.shape == grouped_shape(base.shape, axis, 16)
        assert torch.equal(ungroup(grouped, axis, base.shape), base)
    with pytest.raises(ValueError, match="expected a divisor of 32"):
        group(base, 0, 24)


def _quantized(kind):
    base = torch.randn(4, 64)
    if kind == "activation":
        return quantize_activation(base, qint8, torch.tensor(0.02))
    if kind == "qint8":
        return quantize_weight(base, qint8, 0, AbsmaxOptimizer()(base, qint8, 0))
    scale, shift = MaxOptimizer()(base, qint4, 0, 32)
    weight = quantize_weight(base, qint4, 0, scale, shift, 32)
    return weight._data if kind == "packed" else weight


WRITES = {
    "zero_": lambda t: t.zero_(),
    "mul_": lambda t: t.mul_(2),
    "add_": lambda t: t.add_(t),
    "fill_": lambda t: torch.nn.init.constant_(t, 1),
    "index_put_": lambda t: t.__setitem__(t > 0, 0),
    "squeeze_": lambda t: t.squeeze_(),
    "resize_": lambda t: t.resize_(2, 2),
    "_foreach_mul_": lambda t: torch._foreach_mul_([torch.ones(2), t], 2),
    "abs": lambda t: torch.abs(torch.zeros(4, 64), out=t),
    "data": lambda t: setattr(t, "data", torch.zeros(4, 64)),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("kind", ["qint8", "qint4", "packed", "activation"])
def test_writing_to_a_quantized_tensor_is_an_error(kind, write):
    if kind == "packed" and write == "data":
        pytest.skip("only tensors of numbers look at their attributes")
    t = _quantized(kind)
    before = t.map_inner(lambda _, inner: inner.clone())
    with pytest.raises((NotImplementedError, RuntimeError, TypeError), match=rf"{write}|out") as error:
        WRITES[write](t)
    if write in ("zero_", "mul_", "data"):
        assert error.type is NotImplementedError
        assert type(t).__name__ in str(error.value)
    assert t.equal(before)


@pytest.mark.parametrize("kind", ["qint8", "qint4", "activation"])
def test_what_may_be_written_and_read(kind):
    t, other = _quantized(kind), _quantized(kind)
    floats = torch.zeros(4, 64)
    assert torch.equal(floats.copy_(t), t.dequantize())
    assert torch.equal(floats.sub_(t), torch.zeros(4, 64))
    t.copy_(other)
    assert t.equal(other)
    assert t.detach_() is t
    assert not t.requires_grad_(False).requires_grad


@pytest.mark.parametrize("qtype", [qint8, qfloat8])
def test_activation_layers_work_in_place(qtype):
    base = torch.randn(4, 64)
    t = quantize_activation(base, qtype, torch.tensor(0.02))
    expected = torch.relu(t.dequantize())
    view = t[1:]
    assert torch.nn.ReLU(inplace=True)(t) is t
    assert torch.equal(t.dequantize(), expected)
    assert torch.equal(view.dequantize(), expected[1:])


def test_hqq_lowers_the_error():
    base = torch.randn(32, 128) ** 3
    errors = []
    for optimizer in (MaxOptimizer(), HqqOptimizer()):
        scale, shift = optimizer(base, qint4, 0, 64)
        w = quantize_weight(base, qint4, 0, scale, shift, 64)
        errors.append((w.dequantize() - base).abs().mean())
    assert errors[1] < errors[0]


BAD = {
    "axis: got 1": lambda b: quantize_weight(b, qint8, 1, torch.ones(1, 64)),
    "shift: got one": lambda b: quantize_weight(b, qint8, 0, torch.ones(4, 1), torch.ones(4, 1)),
    "group_size: got 32, expected None": lambda b: quantize_weight(b, qint8, 0, torch.ones(4, 1), None, 32),
    "shift: got None": lambda b: quantize_weight(b, qint4, 0, torch.ones(4, 1)),
    r"scale: got shape \(3, 1\)": lambda b: quantize_weight(b, qint8, 0, torch.ones(3, 1)),
    "group_size: got 24": lambda b: quantize_weight(b, qint4, 0, torch.ones(4, 1), torch.ones(4, 1), 24),
    "qtype: got qint4": lambda b: WeightQBytesTensor.quantize(b, qint4, 0, torch.ones(4, 1)),
    "qtype: got qint8": lambda b: WeightQBitsTensor.quantize(b, qint8, 0, None, torch.ones(4, 1), torch.ones(4, 1)),
    "dimensions": lambda b: quantize_weight(b[0], qint8, 0, torch.ones(64)),
    "AbsmaxOptimizer": lambda b: AbsmaxOptimizer()(b, qint8, 2),
    "MaxOptimizer": lambda b: MaxOptimizer()(b, qint4, 1),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_value_errors(message):
    with pytest.raises(ValueError, match=message):
        BAD[message](torch.randn(4, 64))


def test_devices_must_agree(weight):
    with pytest.raises(RuntimeError, match=r"\[linear\] input: got device meta, expected cpu"):
        torch.nn.functional.linear(torch.ones(2, 64, dtype=weight.dtype, device="meta"), weight)
    inner = {**weight.inner_tensors(), "_scale": weight._scale.to("meta")}
    with pytest.raises(ValueError, match="device"):
        weight.from_parts(inner, weight.metadata(), weight.size(), weight.stride())


def test_dtypes_must_agree_for_packed_weights():
    w = make_weight("qint4", torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"input: got torch\.float32, expected torch\.bfloat16"):
        torch.nn.functional.linear(torch.ones(2, 64), w)


@pytest.mark.parametrize("name", ["qint4", "qint2"])
def test_zero_points_stay_bytes_when_the_dtype_changes(name):
    w = make_weight(name, torch.float32, group_size=32, zeropoint=True)
    moved = w.to(torch.bfloat16)
    assert (moved._scale.dtype, moved._shift.dtype) == (torch.bfloat16, torch.uint8)
    codes = w._data.unpack().bfloat16() - w._shift.bfloat16()
    assert torch.equal(moved.dequantize(), (moved._scale * codes).reshape(w.shape))


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("name", ["qint8", "qfloat8_e4m3fn"])
def test_symmetric_tensors_of_four_dimensions(name, axis, dtype):
    base = torch.randn(2, 4, 8, 16).to(dtype)
    scale = AbsmaxOptimizer()(base, qtypes[name], axis)
    w = quantize_weight(base, qtypes[name], axis, scale)
    assert w.shape == base.shape
    assert (w._scale.shape[axis], w._scale.numel()) == (base.shape[axis], base.shape[axis])
    step = 1.02 * scale.double() if name == "qint8" else base.double().abs() / 8 + scale.double()
    assert ((w.dequantize().double() - base.double()).abs() <= step).all()
