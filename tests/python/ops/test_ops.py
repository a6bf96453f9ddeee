"""Every operator against plain torch, on every instruction set, traced, and as a composition."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).parent))

from oracle import decoded, misfit_of_product
from samples import CODES, DTYPES, Sample, all_samples, few

from optimum.quanto import ops
from optimum.quanto.ops import compositions


QUANTO = torch.ops.quanto
SAMPLES = all_samples()
LINEAR_CODES = ("linear_codes_qbytes", "linear_codes_qbits")
LINEAR_QUANTIZING = ("linear_quantizing_qbytes", "linear_quantizing_qbits")
LINEAR = ("linear_qbytes", "linear_qbits", "qbytes_mm", *LINEAR_CODES, *LINEAR_QUANTIZING)
CONV = ("conv_qbytes", "conv_qbits")
# Powers, and sums in an order of their own.
SEARCHED = ("hqq_scale",)
EXACT = [s for s in SAMPLES if s.op not in LINEAR + CONV + SEARCHED]


def _bits(t):
    return t.view(torch.uint8) if t.dtype.itemsize == 1 else t


def _equal(found, expected):
    if isinstance(expected, tuple):
        return all(map(_equal, found, expected))
    same_kind = found.dtype == expected.dtype and found.shape == expected.shape
    return same_kind and torch.equal(_bits(found), _bits(expected))


@pytest.fixture(params=[isa["name"] for isa in ops.isas() if isa["supported"]])
def isa(request):
    ops.force_isa(request.param)
    assert ops.active_isa() == request.param
    yield request.param
    ops.force_isa("")


def _ratio_dtype_formula(sample: Sample):
    """What 0.2.7 computes for a sample, in its terms; None where it has no such operator."""
    a = sample.args
    if sample.op == "absmax_scale":
        base, qtype, axis = a
        qmax = 127 if qtype == "qint8" else torch.finfo(CODES[qtype]).max
        if axis is None:
            return base.abs().max() / qmax
        return base.abs().amax([d for d in range(base.ndim) if d != axis % base.ndim], keepdim=True) / qmax
    if sample.op == "quantize_symmetric":
        base, dtype, _, scale = a
        ratio = base / scale
        if dtype == torch.int8:
            return ratio.round().clamp(-128, 127).to(dtype)
        return ratio.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype)
    if sample.op == "dequantize_symmetric":
        data, scale = a
        return scale * data.to(scale.dtype)
    return None


def test_symmetric_operators_equal_tensor_arithmetic(isa):
    checked = 0
    for sample in EXACT:
        expected = _ratio_dtype_formula(sample)
        if expected is not None:
            assert _equal(sample(), expected), str(sample)
            checked += 1
    assert checked > 900


def test_compositions_equal_the_kernels(isa):
    """The other devices' path gives the CPU's bits: this also checks the affine operators against plain torch."""
    for sample in EXACT:
        expected = sample()
        found = getattr(compositions, sample.op)(*sample.args)
        assert _equal(found, expected), str(sample)


def test_the_hqq_search_is_that_of_torchs_operators(isa):
    """A code that falls on the other side of a boundary moves a mean by a part of a scale."""
    checked = 0
    for sample in [s for s in SAMPLES if s.op in SEARCHED]:
        base, bits, axis = sample.args[0], int(sample.args[1][-1]), sample.args[2]
        scale, shift, errors = sample()
        expected = compositions.hqq_scale(*sample.args)
        assert _equal(scale, expected[0]), str(sample)
        misfit = (shift.double() - expected[1].double()).abs() / scale.double().clamp(min=1e-30)
        assert misfit.max() <= 0.3, str(sample)
        assert misfit.mean() <= 0.02, str(sample)
        rounded = QUANTO.fake_quantize_affine(base, f"qint{bits}", axis, None, scale, shift)
        best = errors[errors != -1].min()
        torch.testing.assert_close(best, (base - rounded).abs().mean().float(), rtol=1e-2, atol=1e-5)
        checked += 1
    assert checked > 80


def test_per_token_codes_are_those_of_scales_along_the_rows(isa):
    checked = 0
    for sample in [s for s in SAMPLES if s.op == "quantize_per_token" and s.args[0].numel()]:
        x, dtype = sample.args
        qtype = next(name for name, codes in CODES.items() if codes == dtype)
        rows = x.reshape(-1, x.shape[-1])
        scale = QUANTO.absmax_scale(rows, qtype, 0)
        # An axis of size one has a scalar scale.
        axis, scales = (0, scale) if len(rows) > 1 else (None, scale.reshape(()))
        expected = QUANTO.quantize_symmetric(rows, dtype, axis, scales)
        assert _equal(sample(), (expected.reshape(x.shape), scale.reshape(*x.shape[:-1], 1))), str(sample)
        checked += 1
    assert checked > 100


def _weight_of(op, x, *parts):
    """The weight of a linear sample in float64 and the magnitude of its parts. `parts`: what follows the input."""
    if op.endswith("qbytes"):
        data, scale, *_ = parts
        return decoded(data, scale.reshape(-1, 1))
    packed, scale, shift, *_, bits = parts
    value, magnitude = decoded(QUANTO.unpack(packed, bits)[: scale.numel()], scale, shift)
    size = (-1, x.shape[-1])
    return value.reshape(size), magnitude.reshape(size)


def _from_the_bias(op, *parts):
    """The same arguments from the bias on."""
    return parts[2:] if op.endswith("qbytes") else parts[3:]


@pytest.mark.parametrize("op", ["linear_qbytes", "linear_qbits"])
def test_linear_operators_match_the_oracle(isa, op):
    checked = 0
    for sample in [s for s in SAMPLES if s.op == op]:
        y, (x, *parts) = sample(), sample.args
        assert y.dtype == x.dtype
        misfit, where = misfit_of_product(x, *_weight_of(op, x, *parts), _from_the_bias(op, *parts)[0], y)
        assert misfit <= 1, f"{sample}: {where}"
        checked += 1
    assert checked > 150


def _codes_misfit(sample: Sample, y):
    """Of a product of codes: activations are what they stand for, in float64; their scale is one more rounding."""
    x, scale, *parts = sample.args
    bias, dtype, *_ = _from_the_bias(sample.op, *parts)
    scale = scale.double().reshape(()) if scale.numel() == 1 else scale.double().reshape(*x.shape[:-1], 1)
    assert y.dtype == dtype
    value, magnitude = _weight_of(sample.op, x, *parts)
    terms = x.shape[-1] + 2
    return misfit_of_product(x.double() * scale, value, magnitude * (terms + 1) / terms, bias, y)


@pytest.mark.parametrize("op", LINEAR_CODES)
def test_products_of_codes_match_the_oracle(isa, op):
    checked = 0
    for sample in [s for s in SAMPLES if s.op == op]:
        misfit, where = _codes_misfit(sample, sample())
        assert misfit <= 1, f"{sample}: {where}"
        checked += 1
    assert checked > 200


@pytest.mark.parametrize("op", LINEAR_CODES)
def test_compositions_of_products_of_codes_match_the_oracle(op):
    for sample in [s for s in SAMPLES if s.op == op]:
        misfit, where = _codes_misfit(sample, getattr(compositions, op)(*sample.args))
        assert misfit <= 1, f"{sample}: {where}"


def _in_two_steps(sample: Sample, operators):
    """What quantization and the product of the codes give as separate operators."""
    x, dtype, scale, *parts = sample.args
    if scale is None:
        codes, scale = operators.quantize_per_token(x, dtype)
    else:
        codes = operators.quantize_symmetric(x, dtype, None, scale)
    bias, *bits = _from_the_bias(sample.op, *parts)
    product = getattr(operators, sample.op.replace("quantizing", "codes"))
    return product(codes, scale, *parts[: -1 - len(bits)], bias, parts[1].dtype, *bits)


@pytest.mark.parametrize("op", LINEAR_QUANTIZING)
def test_quantizing_on_the_way_gives_the_bits_of_two_operators(isa, op):
    checked = 0
    for sample in [s for s in SAMPLES if s.op == op]:
        assert _equal(sample(), _in_two_steps(sample, QUANTO)), str(sample)
        checked += 1
    assert checked > 200


@pytest.mark.parametrize("op", LINEAR_QUANTIZING)
def test_compositions_of_quantizing_on_the_way_are_two_operators(op):
    for sample in [s for s in SAMPLES if s.op == op]:
        assert _equal(getattr(compositions, op)(*sample.args), _in_two_steps(sample, compositions)), str(sample)


def test_products_of_integers_are_exact_before_they_are_scaled(isa):
    x, w = (torch.randint(-128, 128, (rows, 3001), dtype=torch.int8) for rows in (40, 19))
    for rows in (1, 7, 40):
        y = QUANTO.linear_codes_qbytes(x[:rows], torch.ones(()), w, torch.ones(()), None, torch.float32)
        assert torch.equal(y, (x[:rows].long() @ w.long().T).float())


def _patches(x, weight, stride, padding, dilation, mode):
    """What each output position sees, in float64: (batch, positions, elements), and the spatial size."""
    dims = len(stride)
    x, weight = x.double(), list(weight)
    if x.ndim == dims + 1:
        x = x[None]
    pairs = [p for d in reversed(range(dims)) for p in padding[2 * d : 2 * d + 2]]
    x = torch.nn.functional.pad(x, pairs, "constant" if mode == "zeros" else mode)
    if dims == 1:
        x, stride, dilation, kernel = x[:, :, None], [1, *stride], [1, *dilation], [1, weight[-1]]
    else:
        kernel = weight[-2:]
    size = [(x.shape[2 + d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in range(2)]
    # Every kernel element as a strided view: an independent way to the same rows as im2col.
    views = [
        x[
            :,
            :,
            i * dilation[0] : i * dilation[0] + (size[0] - 1) * stride[0] + 1 : stride[0],
            j * dilation[1] : j * dilation[1] + (size[1] - 1) * stride[1] + 1 : stride[1],
        ]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    rows = torch.stack(views, 2).flatten(1, 2).flatten(2)
    return rows.transpose(1, 2), size[2 - dims :]


def _weight_of_conv(sample: Sample):
    if sample.op == "conv_qbytes":
        _, data, scale, *_ = sample.args
        value, magnitude = decoded(data, scale.reshape(-1, *[1] * (data.ndim - 1)))
        size = data.shape
    else:
        _, packed, scale, shift, bits, group_size, size, *_ = sample.args
        K = torch.Size(size[1:]).numel()
        rows = size[0] * (K // (group_size or K))
        codes = QUANTO.unpack(packed.reshape(packed.shape[0], -1), bits)[:rows]
        value, magnitude = decoded(codes, scale.reshape(rows, 1), shift.reshape(rows, 1))
    return size, value.reshape(size[0], -1), magnitude.reshape(size[0], -1)


@pytest.mark.parametrize("op", CONV)
def test_convolutions_match_the_oracle(isa, op):
    checked = 0
    for sample in [s for s in SAMPLES if s.op == op]:
        size, value, magnitude = _weight_of_conv(sample)
        bias, *walk = sample.args[-5:]
        x, y = sample.args[0], sample()
        rows, spatial = _patches(x, size, *walk)
        assert y.dtype == x.dtype
        assert y.shape == (*x.shape[: x.ndim - len(spatial) - 1], size[0], *spatial)
        by_position = y.reshape(rows.shape[0], size[0], rows.shape[1]).transpose(1, 2)
        misfit, where = misfit_of_product(rows, value, magnitude, bias, by_position)
        assert misfit <= 1, f"{sample}: {where}"
        last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        checked += 1
    assert checked > 100


@pytest.mark.parametrize("op", CONV)
def test_compositions_of_convolutions_are_close(op):
    for sample in [s for s in SAMPLES if s.op == op and s.args[0].dtype == torch.float32]:
        found = getattr(compositions, op)(*sample.args)
        torch.testing.assert_close(found, sample(), rtol=1e-5, atol=1e-5)


def test_convolutions_do_not_read_past_their_input(isa):
    """Rows of three elements are copied four at a time, but for the last ones; a page that ends there would tell."""
    import mmap

    page = mmap.PAGESIZE
    for shape in ((1, 4, 16, 16), (1, 1, 32, 32)):
        count = torch.Size(shape).numel()
        assert count * 4 % page == 0
        mapped = mmap.mmap(-1, count * 4 + page)
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        assert libc.mprotect(ctypes.c_void_p(address + count * 4), page, 0) == 0
        x = torch.frombuffer(mapped, dtype=torch.float32, count=count).view(shape)
        x.copy_(torch.randn(shape))
        data = torch.randint(-127, 128, (2, shape[1], 3, 3), dtype=torch.int8)
        y = QUANTO.conv_qbytes(x, data, torch.ones(1), None, [1, 1], [0] * 4, [1, 1], "zeros")
        expected = torch.nn.functional.conv2d(x.double(), data.double())
        torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-3)
        assert libc.mprotect(ctypes.c_void_p(address + count * 4), page, 3) == 0


def test_rows_of_tables_are_those_of_the_whole_table(isa):
    checked = 0
    for sample in [s for s in SAMPLES if s.op.startswith("embedding")]:
        indices, data, scale, *rest = sample.args
        if sample.op == "embedding_qbytes":
            table = QUANTO.dequantize_symmetric(data, scale)
        else:
            shift, bits, group_size, size = rest
            table = QUANTO.dequantize_affine(data, scale, shift, bits, 0, group_size or None, size, True)
        assert _equal(sample(), table[indices]), str(sample)
        checked += 1
    assert checked > 300


@pytest.mark.parametrize("index", [-1, 7])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_an_index_without_a_row_is_an_error_that_names_it(index, dtype):
    base = torch.randn(7, 32)
    scale = QUANTO.absmax_scale(base, "qint8", 0)
    data = QUANTO.quantize_symmetric(base, torch.int8, 0, scale)
    with pytest.raises(IndexError, match=rf"\[embedding_qbytes\] index: got {index}, expected 0 to 6"):
        QUANTO.embedding_qbytes(torch.tensor([0, index], dtype=dtype), data, scale)


def test_qbytes_mm_is_what_the_predecessor_computes(isa):
    for sample in [s for s in SAMPLES if s.op == "qbytes_mm"]:
        a, b, scales = sample.args
        expected = (a.double() @ b.double().T) * scales.double().T
        found = sample()
        assert found.dtype == scales.dtype
        torch.testing.assert_close(
            found.double(), expected, rtol=2**-7 if found.dtype != torch.float32 else 1e-5, atol=1e-4
        )


def test_int8_products_are_exact(isa):
    a = torch.full((2, 5000), -128, dtype=torch.int8)
    b = torch.full((3, 5000), -128, dtype=torch.int8)
    b[:, 1] = 127
    assert torch.equal(QUANTO.qbytes_mm(a, b, torch.ones(1)), (a.long() @ b.long().T).float())


@pytest.mark.parametrize("sample", few(SAMPLES), ids=str)
def test_opcheck(sample):
    tests = ["test_autograd_registration", "test_faketensor", "test_aot_dispatch_static", "test_aot_dispatch_dynamic"]
    # torch's schema test compares the arguments before and after, which torch cannot do for float8.
    if not any(isinstance(a, torch.Tensor) and a.is_floating_point() and a.itemsize == 1 for a in sample.args):
        tests.append("test_schema")
    torch.library.opcheck(getattr(QUANTO, sample.op).default, sample.args, test_utils=tests)


@pytest.mark.parametrize("sample", few(SAMPLES), ids=str)
def test_meta_tensors_have_the_shape_and_dtype_of_the_result(sample):
    on_meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in sample.args]
    found, expected = getattr(QUANTO, sample.op)(*on_meta), sample()
    if not isinstance(expected, tuple):
        found, expected = (found,), (expected,)
    for f, e in zip(found, expected, strict=True):
        assert (f.shape, f.dtype, f.device.type) == (e.shape, e.dtype, "meta")


@pytest.mark.parametrize("sample", few(SAMPLES, step=60), ids=str)
def test_compiled_equals_eager(sample):
    torch._dynamo.reset()
    op = getattr(QUANTO, sample.op)
    compiled = torch.compile(lambda *args: op(*args), backend="aot_eager", fullgraph=True)
    assert _equal(compiled(*sample.args), sample())


def test_every_operator_has_samples():
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("quanto::")}
    assert names == {f"quanto::{s.op}" for s in SAMPLES}
    assert names == {f"quanto::{op}" for op in compositions.__dict__ if f"quanto::{op}" in names}


HUGE = {torch.float32: 3e38, torch.bfloat16: 3e38, torch.float16: 65504.0}
TINY = {torch.float32: 1e-44, torch.bfloat16: 1e-40, torch.float16: 6e-8}


def _odd_rows(dtype):
    huge, tiny = HUGE[dtype], TINY[dtype]
    rows = [[0.0] * 8, [tiny, -tiny, 0, 0] * 2, [huge, -huge, 0, 1] * 2, [-0.0] * 8, [3.25] * 8, [-huge] * 8]
    return torch.tensor(rows, dtype=torch.float64).to(dtype)


def test_finite_weights_stay_finite(isa, dtype, qtype_name):
    base = _odd_rows(dtype)
    if qtype_name in CODES:
        scale = QUANTO.absmax_scale(base, qtype_name, 0)
        values = QUANTO.dequantize_symmetric(QUANTO.quantize_symmetric(base, CODES[qtype_name], 0, scale), scale)
    else:
        bits = int(qtype_name[-1])
        scale, shift = QUANTO.minmax_scale(base, qtype_name, 0, None)
        packed = QUANTO.quantize_affine_packed(base, bits, 0, None, scale, shift)
        values = QUANTO.dequantize_affine(packed, scale, shift, bits, 0, None, [6, 8], True)
    assert values.isfinite().all()
    assert (values[0] == 0).all()
    assert (values[3] == 0).all()
    # Half a step of the scale, and the rounding of the dtype: nothing is far from what it stands for.
    step = (
        (base.double().amax(1) - base.double().amin(1)).clamp(min=0)
        if qtype_name not in CODES
        else base.double().abs().amax(1)
    )
    assert ((values.double() - base.double()).abs().amax(1) <= 0.51 * step + 0.01 * base.double().abs().amax(1)).all()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_bytes_do_not_depend_on_threads(threads):
    before = torch.get_num_threads()
    base, x = torch.randn(257, 512), torch.randn(9, 512)
    scale, shift = QUANTO.minmax_scale(base, "qint4", 0, 128)
    packed = QUANTO.quantize_affine_packed(base, 4, 0, 128, scale, shift)
    y = QUANTO.linear_qbits(x, packed, scale, shift)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(QUANTO.quantize_affine_packed(base, 4, 0, 128, scale, shift), packed)
        assert torch.equal(QUANTO.linear_qbits(x, packed, scale, shift), y)
    finally:
        torch.set_num_threads(before)


_COUNT_THREADS = """
import os, sys, torch
import optimum.quanto.ops
if len(sys.argv) > 1:
    torch.set_num_threads(int(sys.argv[1]))
tasks = lambda: len(os.listdir("/proc/self/task"))
# Small, or not filled: torch fills large tensors in parallel.
x, data, scale = torch.zeros(8, 1024), torch.empty(4096, 1024, dtype=torch.int8), torch.ones(4096, 1)
counts = [tasks()]
for _ in range(3):
    torch.ops.quanto.linear_qbytes(x, data, scale, None)
    counts.append(tasks())
torch.mm(torch.empty(512, 512), torch.empty(512, 512))
counts.append(tasks())
print(torch.get_num_threads() - 1, *(count - counts[0] for count in counts[1:]))
"""


@pytest.mark.parametrize(("environment", "argument"), [("1", []), ("2", []), ("2", ["1"]), ("1", ["2"])])
def test_operators_run_on_the_threads_of_torch(environment, argument):
    """As many as OMP_NUM_THREADS or set_num_threads say, started once, and the same that torch's own operators use."""
    result = subprocess.run(
        [sys.executable, "-c", _COUNT_THREADS, *argument],
        env={**os.environ, "OMP_NUM_THREADS": environment},
        capture_output=True,
        text=True,
        check=True,
    )
    others, *started = map(int, result.stdout.split())
    assert started == [others] * 4
    assert others == 0 if "1" in (argument or [environment]) else others <= 1


_FORK = """
import os, signal, sys
import torch
from optimum.quanto import freeze, quantize
torch.set_num_threads(2)
model = torch.nn.Sequential(torch.nn.Linear(512, 512))
quantize(model, weights=sys.argv[1])
freeze(model)
x = torch.randn(256, 512)
torch.mm(x, x.t())  # which starts torch's threads
expected = model(x).detach().numpy().tobytes()
child = os.fork()
if child == 0:
    signal.alarm(20)  # a hang, which operators of torch still end in, is a failure
    os._exit(model(x).detach().numpy().tobytes() != expected)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("weights", ["qint8", "qint4"])
def test_a_forked_child_does_not_wait_for_threads_of_its_parent(weights):
    assert subprocess.run([sys.executable, "-c", _FORK, weights], check=False).returncode == 0


def _there_and_back(sample: Sample):
    """What a sample of a fake quantization stands for."""
    if sample.op == "fake_quantize_symmetric":
        base, qtype, axis, scale = sample.args
        scale = QUANTO.absmax_scale(base, qtype, axis) if scale is None else scale
        return QUANTO.dequantize_symmetric(QUANTO.quantize_symmetric(base, CODES[qtype], axis, scale), scale)
    base, qtype, axis, group_size, scale, shift = sample.args
    bits = int(qtype[-1])
    if scale is None:
        scale, shift = QUANTO.minmax_scale(base, qtype, axis, group_size)
    packed = QUANTO.quantize_affine_packed(base, bits, axis, group_size, scale, shift)
    return QUANTO.dequantize_affine(packed, scale, shift, bits, axis, group_size, list(base.shape), True)


@pytest.mark.parametrize("op", ["fake_quantize_symmetric", "fake_quantize_affine"])
def test_fake_quantization_is_quantization_there_and_back(isa, op):
    samples = [s for s in SAMPLES if s.op == op]
    assert len(samples) > 100
    for sample in samples:
        assert torch.equal(sample().view(torch.uint8), _there_and_back(sample).view(torch.uint8)), str(sample)


PLAIN_WALK = ([1, 1], [0, 0, 0, 0], [1, 1])
ERRORS = {
    "[fake_quantize_symmetric] scale: got float32, expected bfloat16": lambda: QUANTO.fake_quantize_symmetric(
        torch.ones(2, 2, dtype=torch.bfloat16), "qint8", 0, torch.ones(2, 1)
    ),
    "[fake_quantize_symmetric] qtype: got qint4, expected an 8-bit qtype": lambda: QUANTO.fake_quantize_symmetric(
        torch.ones(2, 2), "qint4", 0, None
    ),
    "[fake_quantize_affine] shift: got none, expected both": lambda: QUANTO.fake_quantize_affine(
        torch.ones(2, 32), "qint4", 0, 32, torch.ones(2, 1), None
    ),
    "[fake_quantize_minmax] qtype: got qint8, expected qint4 or qint2": lambda: QUANTO.fake_quantize_affine(
        torch.ones(2, 32), "qint8", 0, 32, None, None
    ),
    "[quantize_symmetric] dtype: got float32, expected int8": lambda: QUANTO.quantize_symmetric(
        torch.ones(2, 2), torch.float32, None, torch.tensor(1.0)
    ),
    "[quantize_symmetric] axis: got 3, expected 0": lambda: QUANTO.quantize_symmetric(
        torch.ones(2, 2), torch.int8, 3, torch.ones(2, 1)
    ),
    "[quantize_symmetric] scale: got shape (1, 1), expected a scalar": lambda: QUANTO.quantize_symmetric(
        torch.ones(2, 2), torch.int8, None, torch.ones(1, 1)
    ),
    "at least 2 dimensions": lambda: QUANTO.quantize_symmetric(torch.ones(4), torch.int8, 0, torch.ones(4)),
    "[quantize_affine] bits: got 3, expected 2 or 4": lambda: QUANTO.quantize_affine(
        torch.ones(2, 32), 3, 0, 32, torch.ones(2, 1), torch.ones(2, 1)
    ),
    "[quantize_affine] group_size: got 24, expected a divisor of 32": lambda: QUANTO.quantize_affine(
        torch.ones(2, 32), 4, 0, 24, torch.ones(2, 1), torch.ones(2, 1)
    ),
    "[quantize_affine] scale: got shape (3, 1), expected 2 elements": lambda: QUANTO.quantize_affine(
        torch.ones(2, 32), 4, 0, 32, torch.ones(3, 1), torch.ones(2, 1)
    ),
    "[absmax_scale] base: got float64, expected float32, bfloat16 or float16": lambda: QUANTO.absmax_scale(
        torch.ones(2, 2, dtype=torch.float64), "qint8", 0
    ),
    "[qtype_from_name] name: got 'int8', expected one of qint2, qint4, qint8": lambda: QUANTO.absmax_scale(
        torch.ones(2, 2), "int8", 0
    ),
    "[pack] data: got float32, expected uint8": lambda: QUANTO.pack(torch.ones(2, 2), 4),
    "[linear_qbytes] input: got shape (2, 3), expected a last dimension of 4": lambda: QUANTO.linear_qbytes(
        torch.ones(2, 3), torch.ones(5, 4, dtype=torch.int8), torch.ones(5, 1), None
    ),
    "[linear_qbytes] scale: got shape (4, 1), expected 5 elements": lambda: QUANTO.linear_qbytes(
        torch.ones(2, 4), torch.ones(5, 4, dtype=torch.int8), torch.ones(4, 1), None
    ),
    "[linear_qbytes] bias: got shape (4), expected 5 elements": lambda: QUANTO.linear_qbytes(
        torch.ones(2, 4), torch.ones(5, 4, dtype=torch.int8), torch.ones(5, 1), torch.ones(4)
    ),
    "[linear_qbytes] input: got int8, expected float32, bfloat16 or float16": lambda: QUANTO.linear_qbytes(
        torch.ones(2, 4, dtype=torch.int8), torch.ones(5, 4, dtype=torch.int8), torch.ones(5, 1), None
    ),
    "[linear_codes_qbytes] input: got float32, expected int8, float8_e4m3fn": lambda: QUANTO.linear_codes_qbytes(
        torch.ones(2, 4), torch.ones(()), torch.ones(5, 4, dtype=torch.int8), torch.ones(5), None, torch.float32
    ),
    "[linear_codes_qbytes] input_scale: got shape (3, 1), expected 2 elements": lambda: QUANTO.linear_codes_qbytes(
        *(torch.ones(2, 4, dtype=torch.int8), torch.ones(3, 1), torch.ones(5, 4, dtype=torch.int8), torch.ones(5)),
        *(None, torch.float32),
    ),
    "[linear_codes_qbytes] dtype: got int8, expected float32, bfloat16 or float16": lambda: QUANTO.linear_codes_qbytes(
        *(torch.ones(2, 4, dtype=torch.int8), torch.ones(()), torch.ones(5, 4, dtype=torch.int8), torch.ones(5)),
        *(None, torch.int8),
    ),
    "[linear_quantizing_qbytes] input: got int8, expected float32": lambda: QUANTO.linear_quantizing_qbytes(
        torch.ones(2, 4, dtype=torch.int8),
        torch.int8,
        None,
        torch.ones(3, 4, dtype=torch.int8),
        torch.ones(3, 1),
        None,
    ),
    "[linear_quantizing_qbytes] dtype: got float32, expected int8": lambda: QUANTO.linear_quantizing_qbytes(
        torch.ones(2, 4), torch.float32, None, torch.ones(3, 4, dtype=torch.int8), torch.ones(3, 1), None
    ),
    "[linear_quantizing_qbytes] input_scale: got shape (2), expected a scalar": (
        lambda: QUANTO.linear_quantizing_qbytes(
            torch.ones(2, 4), torch.int8, torch.ones(2), torch.ones(3, 4, dtype=torch.int8), torch.ones(3, 1), None
        )
    ),
    "[quantize_per_token] dtype: got float32, expected int8": lambda: QUANTO.quantize_per_token(
        torch.ones(2, 4), torch.float32
    ),
    "[conv_qbytes] input: got shape (2, 3), expected 3 or 4 dimensions": lambda: QUANTO.conv_qbytes(
        torch.ones(2, 3), torch.ones(5, 4, 3, 3, dtype=torch.int8), torch.ones(1), None, *PLAIN_WALK, "zeros"
    ),
    "[conv] weight: got 36 elements per filter, expected 27 for an input of 3 channels": lambda: QUANTO.conv_qbytes(
        torch.ones(2, 3, 4, 4), torch.ones(5, 4, 3, 3, dtype=torch.int8), torch.ones(1), None, *PLAIN_WALK, "zeros"
    ),
    "[conv] height: got 2 with its padding, expected at least the 3": lambda: QUANTO.conv_qbytes(
        torch.ones(2, 4, 2, 4), torch.ones(5, 4, 3, 3, dtype=torch.int8), torch.ones(1), None, *PLAIN_WALK, "zeros"
    ),
    "[conv_qbytes] padding_mode: got edge, expected zeros, reflect": lambda: QUANTO.conv_qbytes(
        torch.ones(2, 4, 4, 4), torch.ones(5, 4, 3, 3, dtype=torch.int8), torch.ones(1), None, *PLAIN_WALK, "edge"
    ),
    "[conv] padding: got 4, expected at most 3 for this mode and the input's width": lambda: QUANTO.conv_qbytes(
        torch.ones(2, 4, 4), torch.ones(5, 2, 3, dtype=torch.int8), torch.ones(1), None, [1], [4, 0], [1], "reflect"
    ),
    "[conv_qbytes] stride: got 1 values, expected 2": lambda: QUANTO.conv_qbytes(
        torch.ones(2, 4, 4, 4), torch.ones(5, 4, 3, 3, dtype=torch.int8), torch.ones(1), None, [1], [0] * 4, [1, 1], ""
    ),
    "[embedding_qbytes] indices: got float32, expected int32 or int64": lambda: QUANTO.embedding_qbytes(
        torch.ones(2), torch.ones(5, 4, dtype=torch.int8), torch.ones(1)
    ),
    "[linear_qbits] data: got shape (1, 64), expected 128 elements for 4 rows of 64": lambda: QUANTO.linear_qbits(
        torch.ones(2, 64), torch.ones(1, 64, dtype=torch.uint8), torch.ones(4, 1), torch.ones(4, 1)
    ),
    "[linear_qbits] data: got shape (128), expected 2 dimensions": lambda: QUANTO.linear_qbits(
        torch.ones(2, 64), torch.ones(128, dtype=torch.uint8), torch.ones(4, 1), torch.ones(4, 1)
    ),
    "[linear_qbits] data: got shape (4, 48), expected a number of columns that divides 64": lambda: (
        QUANTO.linear_qbits(
            torch.ones(2, 64), torch.ones(4, 48, dtype=torch.uint8), torch.ones(8, 1), torch.ones(8, 1)
        )
    ),
    "[linear_qbits] scale: got shape (7, 1), expected a multiple of 2 elements": lambda: QUANTO.linear_qbits(
        torch.ones(2, 64), torch.ones(4, 32, dtype=torch.uint8), torch.ones(7, 1), torch.ones(7, 1)
    ),
    "[linear_qbits] bits: got 3, expected 2 or 4": lambda: QUANTO.linear_qbits(
        torch.ones(2, 64), torch.ones(4, 32, dtype=torch.uint8), torch.ones(8, 1), torch.ones(8, 1), None, 3
    ),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_name_the_argument_and_what_is_allowed(message):
    # ValueError where 0.2.7 raises one: for axes, scales and groups that do not fit.
    with pytest.raises((RuntimeError, ValueError)) as error:
        ERRORS[message]()
    assert message in str(error.value)
    assert ".cpp" not in str(error.value)


@pytest.mark.parametrize(("data", "scale"), [((128,), (4, 1)), ((4, 48), (8, 1)), ((4, 0), (8, 1)), ((4, 32), (7, 1))])
def test_packed_matrices_of_wrong_shapes_get_the_same_error_on_every_device(data, scale):
    messages = []
    for device in ("cpu", "meta"):
        codes = torch.ones(data, dtype=torch.uint8, device=device)
        scales = torch.ones(scale, device=device)
        with pytest.raises(RuntimeError, match="linear_qbits") as error:
            QUANTO.linear_qbits(torch.ones(2, 64, device=device), codes, scales, scales)
        messages.append(str(error.value))
    assert messages[0].startswith(messages[1])


def test_rows_of_a_kernel_do_not_depend_on_the_batch_they_came_in(isa, dtype):
    """Few and many rows may have kernels of their own, whose sums are in another order."""
    base, x = torch.randn(33, 96).to(dtype), torch.randn(19, 96).to(dtype)
    scale, shift = QUANTO.minmax_scale(base, "qint4", 0, 32)
    packed = QUANTO.quantize_affine_packed(base, 4, 0, 32, scale, shift)
    scale_8 = QUANTO.absmax_scale(base, "qint8", 0)
    data = QUANTO.quantize_symmetric(base, torch.int8, 0, scale_8)
    layers = {
        ("qint4", 32): lambda rows: QUANTO.linear_qbits(rows, packed, scale, shift),
        ("qint8", 0): lambda rows: QUANTO.linear_qbytes(rows, data, scale_8, None),
    }
    for (qtype, group_size), layer in layers.items():
        single = torch.cat([layer(row[None]) for row in x])
        by_kernel: dict[str, torch.Tensor] = {ops.kernel_name(qtype, dtype, 1, 33, 96, group_size): single}
        for rows in range(1, 20):
            kernel = ops.kernel_name(qtype, dtype, rows, 33, 96, group_size)
            # The first batch of a kernel, filled up by cycling through the rows, is what its others compare with.
            cycled = torch.cat([layer(x.roll(-begin, 0)[:rows])[:1] for begin in range(19)])
            assert torch.equal(cycled, by_kernel.setdefault(kernel, cycled)), (kernel, rows)
            assert torch.equal(layer(x[:rows]), by_kernel[kernel][:rows]), (kernel, rows)
        assert len(by_kernel) <= 3


def test_forcing_an_unknown_instruction_set_is_an_error():
    before = ops.active_isa()
    with pytest.raises(ValueError, match="got 'quantum', expected one that this build and this CPU support: portable"):
        ops.force_isa("quantum")
    assert ops.active_isa() == before


def test_misaligned_weights(isa):
    """A tensor mapped from a file lies at any byte."""
    base, x = torch.randn(16, 64).bfloat16(), torch.randn(2, 64).bfloat16()
    scale = QUANTO.absmax_scale(base, "qint8", 0)
    data = QUANTO.quantize_symmetric(base, torch.int8, 0, scale)
    for offset in range(1, 9):
        moved = torch.empty(16 * 64 + offset, dtype=torch.int8)[offset:].view(16, 64).copy_(data)
        assert torch.equal(QUANTO.linear_qbytes(x, moved, scale, None), QUANTO.linear_qbytes(x, data, scale, None))


def test_every_dtype_of_activations_meets_every_dtype_of_scales(isa):
    base = torch.randn(8, 64)
    for scale_dtype in DTYPES:
        scale, shift = QUANTO.minmax_scale(base.to(scale_dtype), "qint4", 0, 32)
        packed = QUANTO.quantize_affine_packed(base.to(scale_dtype), 4, 0, 32, scale, shift)
        weight = QUANTO.dequantize_affine(packed, scale.float(), shift.float(), 4, 0, 32, [8, 64], True)
        for x_dtype in DTYPES:
            x = torch.randn(3, 64).to(x_dtype)
            y = QUANTO.linear_qbits(x, packed, scale, shift)
            assert y.dtype == x_dtype
            torch.testing.assert_close(y.float(), x.float() @ weight.T, rtol=1e-2, atol=2e-2)
