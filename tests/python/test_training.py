"""Training of quantized models: what reaches the float weights, what the forward sees, and what freezing keeps."""

import copy
import gc
import os
import sys
from pathlib import Path

import pytest
import torch
from own_process import in_a_process_of_its_own
from safetensors.torch import load_file
from torch.nn import functional


GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))

from training import TRAININGS, train  # noqa: E402

from optimum.quanto import (  # noqa: E402
    AbsmaxOptimizer,
    Calibration,
    HqqOptimizer,
    MaxOptimizer,
    QTensor,
    fake_quantize_activation,
    fake_quantize_weight,
    freeze,
    qint4,
    qint8,
    qtypes,
    quantize,
)


ACTIVATIONS = [None, "qint8", "qfloat8_e4m3fn"]


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "training_0_2_7.safetensors")


def floats(t):
    return t.dequantize() if isinstance(t, QTensor) else t


def network(dtype=torch.float32):
    layers = [torch.nn.Linear(96, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)]
    return torch.nn.Sequential(*layers).to(dtype)


def calibrated(model, weights, activations, x, **kwargs):
    quantize(model, weights=weights, activations=activations, **kwargs)
    with torch.no_grad(), Calibration():
        model(x)
    return model


@pytest.mark.parametrize("case", TRAININGS)
def test_a_step_is_that_of_the_predecessor(golden, case):
    found = train(*TRAININGS[case])
    expected = {k.removeprefix(f"{case}."): t for k, t in golden.items() if k.startswith(f"{case}.")}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = value.abs().amax().item()
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6 * scale, msg=f"{case}: {name}")


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_gradients_are_those_of_the_float_layer_with_the_dequantized_weight(qtype_name, activations, dtype):
    x = torch.randn(7, 96).to(dtype)
    layer = torch.nn.Sequential(torch.nn.Linear(96, 64)).to(dtype)
    calibrated(layer, qtype_name, activations, x)
    weight = layer[0].qweight.dequantize().detach().requires_grad_()
    inputs = x.clone().requires_grad_()
    output = floats(layer(inputs))
    upstream = torch.randn_like(output)
    output.backward(upstream)

    seen = x if activations is None else floats(layer[0].quantize_input(layer[0], (x,))[0]).detach()
    seen = seen.requires_grad_()
    bias = layer[0].bias.detach().clone().requires_grad_()
    functional.linear(seen, weight, bias).backward(upstream)
    assert torch.equal(layer[0].weight.grad, weight.grad)
    assert torch.equal(layer[0].bias.grad, bias.grad)
    assert torch.equal(inputs.grad, seen.grad)


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_a_training_forward_is_that_of_evaluation(qtype_name, activations):
    x = torch.randn(7, 96)
    model = calibrated(network(), qtype_name, activations, x)
    trained = floats(model(x)).detach()
    with torch.no_grad():
        evaluated = floats(model(x))
    step = 0 if activations is None else model[2].output_scale.item() * (1 if activations == "qint8" else 32)
    torch.testing.assert_close(trained, evaluated, rtol=1e-5, atol=1e-5 + 1.01 * step)


@pytest.mark.parametrize("optimizer", [None, "hqq"])
def test_freezing_gives_the_weights_that_the_last_forward_saw(qtype_name, dtype, optimizer):
    search = None if optimizer is None or qtypes[qtype_name].bits == 8 else HqqOptimizer()
    model = network(dtype)
    quantize(model, weights=qtype_name, optimizer=search)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        sgd.zero_grad()
        model(torch.randn(7, 96).to(dtype)).square().mean().backward()
        sgd.step()
    seen = {}
    for name in ("0", "2"):
        seen[name] = model.get_submodule(name).forward_weight.detach()
    freeze(model)
    for name, weight in seen.items():
        frozen = model.get_submodule(name).weight
        assert isinstance(frozen, QTensor)
        as_integers = torch.int32 if dtype == torch.float32 else torch.int16
        assert torch.equal(frozen.dequantize().view(as_integers), weight.view(as_integers))


def test_all_modules_train(qtype_name):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 4))
    x, target = torch.randn(16, 3, 8, 8), torch.randint(0, 4, (16,))
    quantize(model, weights=qtype_name)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        adam.zero_grad()
        loss = functional.cross_entropy(model(x), target)
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    before = model(x).detach()
    freeze(model)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_a_training_step_compiles(qtype_name, activations):
    torch._dynamo.reset()
    x = torch.randn(7, 96)
    eager = calibrated(network(), qtype_name, activations, x)
    compiled = copy.deepcopy(eager)
    step = torch.compile(lambda inputs: floats(compiled(inputs)), backend="aot_eager", fullgraph=True)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    expected, found = floats(eager(inputs[0])), step(inputs[1])
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    found.backward(upstream)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    for mine, theirs in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_training_under_autocast():
    model, x = network(), torch.randn(7, 96)
    quantize(model, weights=qint8)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    output.float().square().sum().backward()
    assert output.dtype == torch.bfloat16
    assert model[0].weight.grad.dtype == torch.float32
    assert model[0].weight.grad.isfinite().all()


def test_weights_that_are_not_trained_go_through_the_kernels():
    model, x = network(), torch.randn(7, 96, requires_grad=True)
    quantize(model, weights=qint8)
    assert not isinstance(model[0].forward_weight, QTensor)
    with torch.no_grad():
        assert isinstance(model[0].forward_weight, QTensor)
    model[0].weight.requires_grad_(False)
    assert isinstance(model[0].forward_weight, QTensor)
    model(x).sum().backward()
    assert x.grad is not None
    assert model[0].weight.grad is None


def test_a_training_forward_keeps_no_codes():
    """The saved tensors of a step are those of a float layer."""
    layer = torch.nn.Sequential(torch.nn.Linear(96, 64))
    quantize(layer, weights=qint4)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(torch.randn(7, 96, requires_grad=True))
    assert sorted(tuple(t.shape) for t in saved) == [(7, 96), (64, 96)] or sorted(tuple(t.shape) for t in saved) == [
        (7, 96),
        (96, 64),
    ]


def test_the_gradient_passes_straight_through():
    weight, x = torch.randn(8, 32, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    upstream = torch.randn(8, 32)
    for qtype, optimizer in ((qint8, AbsmaxOptimizer()), (qint4, MaxOptimizer())):
        (grad,) = torch.autograd.grad(fake_quantize_weight(weight, qtype, optimizer), weight, upstream)
        assert torch.equal(grad, upstream)
    (grad,) = torch.autograd.grad(fake_quantize_activation(x, qint8, torch.tensor(0.01)), x, upstream[:3, :5])
    assert torch.equal(grad, upstream[:3, :5])


def test_a_search_of_the_wrong_kind_is_refused():
    with pytest.raises(TypeError, match="optimizer: got MaxOptimizer, expected a SymmetricOptimizer"):
        fake_quantize_weight(torch.randn(8, 32), qint8, MaxOptimizer())


class _Halved(AbsmaxOptimizer):
    """A search of the user's own, which clamps."""

    def optimize(self, base, qtype, axis=None):
        return super().optimize(base, qtype, axis) / 2


def test_a_search_of_the_users_own_is_asked():
    model = network()
    quantize(model, weights=qint8, optimizer=_Halved())
    seen = model[0].forward_weight.detach()
    freeze(model)
    assert torch.equal(model[0].weight.dequantize(), seen)
    default = network()
    quantize(default, weights=qint8)
    assert seen.abs().amax() < 0.6 * default[0].forward_weight.abs().amax()


def test_a_search_of_the_users_own_scales_a_single_channel():
    model = torch.nn.Sequential(torch.nn.Linear(96, 1))
    quantize(model, weights=qint8, optimizer=_Halved())
    seen = model[0].forward_weight
    seen.sum().backward()
    assert model[0].weight.grad.all()
    freeze(model)
    assert torch.equal(model[0].weight.dequantize(), seen)


def _rounded(weight):
    return torch.ops.quanto.fake_quantize_symmetric(weight, "qint8", 0, None)


def test_rounded_weights_use_the_memory_of_the_last_step():
    weight = torch.randn(1024, 512)
    first = _rounded(weight)
    expected, address = first.clone(), first.data_ptr()
    second = _rounded(weight + 1)  # while the first one is alive
    assert second.data_ptr() != address
    assert torch.equal(first, expected)
    assert first.device == weight.device
    view = first[:2]
    del first
    assert _rounded(weight).data_ptr() not in (address, second.data_ptr())  # a part of it is alive
    del view
    assert _rounded(weight).data_ptr() == address


def _megabytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("end", ["freeze", "delete"])
def test_no_memory_of_rounded_weights_outlives_the_training(end):
    in_a_process_of_its_own(check_the_memory_after_training, end)


def check_the_memory_after_training(end):
    for features in (64, 2048):  # the first one for what is allocated only once
        model = torch.nn.Sequential(torch.nn.Linear(features, 2 * features))
        quantize(model, weights="qint8")
        model(torch.randn(1, features)).sum().backward()
        if features == 64:
            freeze(model)
    before = _megabytes()
    if end == "freeze":
        model.zero_grad()
        freeze(model)  # 8 MB of codes instead of the weight, its gradient and the rounded weight, 32 MB each
        assert _megabytes() < before - 80
    else:
        del model
        gc.collect()
        assert _megabytes() < before - 80  # all three


@pytest.mark.parametrize("weights", ["qint8", "qfloat8_e4m3fn"])
@pytest.mark.parametrize("input_dtype", [torch.float16, torch.int32])
def test_inputs_of_another_dtype_are_taken_before_and_after_freezing(weights, input_dtype):
    model, x = network(), torch.randint(-3, 4, (5, 96)).to(input_dtype)
    quantize(model, weights=weights)
    output = model(x)
    assert torch.equal(output, model(x.float()))
    output.sum().backward()
    assert model[0].weight.grad.any()
    freeze(model)
    assert torch.allclose(model(x), output, atol=1e-5)
