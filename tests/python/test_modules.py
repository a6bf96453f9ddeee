"""Which modules are replaced and by what: users' classes, subclasses of torch's layers, layers of transformers."""

import copy
import io
import subprocess
import sys

import pytest
import torch
from oracle import misfit

from optimum.quanto import (
    Calibration,
    QConv2d,
    QLayerNorm,
    QLinear,
    QModuleMixin,
    coverage,
    freeze,
    qint8,
    quantization_map,
    quantize,
    quantize_module,
    register_qmodule,
    requantize,
)
from optimum.quanto.nn import qmodule


class Bilinear(torch.nn.Module):
    """A user's layer that torch does not have: `x W y^T` along the last dimension."""

    def __init__(self, in_features, out_features, device=None, dtype=None):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = torch.nn.Parameter(torch.randn(out_features, in_features, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(self, x, y):
        return (torch.nn.functional.linear(x, self.weight) * y).sum(-1)


@pytest.fixture
def registered():
    """The example of `register_qmodule`, as code for 0.2.7 has it."""

    @register_qmodule(Bilinear)
    class QBilinear(QModuleMixin, Bilinear):
        @classmethod
        def qcreate(cls, module, weights, activations=None, optimizer=None, device=None):
            return cls(
                module.in_features,
                module.out_features,
                dtype=module.weight.dtype,
                device=device,
                weights=weights,
                activations=activations,
                optimizer=optimizer,
            )

        def forward(self, x, y):
            return (torch.nn.functional.linear(x, self.qweight) * y).sum(-1)

    yield QBilinear
    qmodule._QMODULE_TABLE.pop(Bilinear)


class Pair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Bilinear(64, 8)

    def forward(self, x, y):
        return self.inner(x, y)


def test_a_class_of_the_users_own(registered, qtype_name):
    model, x, y = Pair(), torch.randn(3, 64), torch.randn(3, 8)
    quantize(model, weights=qtype_name)
    assert type(model.inner) is registered
    model(x, y).sum().backward()
    assert model.inner.weight.grad.abs().sum() > 0
    with torch.no_grad():
        unfrozen = model(x, y)
        freeze(model)
        expected = (torch.nn.functional.linear(x, model.inner.weight.dequantize()) * y).sum(-1)
        torch.testing.assert_close(model(x, y), expected)
        torch.testing.assert_close(model(x, y), unfrozen)
        assert coverage(model).rows[0].kernel == "its own forward"
        other = Pair()
        requantize(other, model.state_dict(), quantization_map(model))
        assert torch.equal(other(x, y), model(x, y))


def test_the_most_specific_class_wins():
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    try:

        @register_qmodule(Doubled)
        class QDoubled(QLinear):
            def forward(self, x):
                return 2 * super().forward(x)

        class Named(Doubled):
            pass

        assert type(quantize_module(Named(32, 4), weights=qint8)) is QDoubled
    finally:
        qmodule._QMODULE_TABLE.pop(Doubled)


def test_subclasses_with_the_same_forward_are_replaced():
    class Plain(torch.nn.Linear):
        pass

    class Spelled(torch.nn.Linear):
        def forward(self, input):
            return input @ self.weight.T + self.bias

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = torch.nn.Sequential(Plain(200, 8), Spelled(8, 40)).to(dtype)
        quantize(model, weights="qint8")
        assert [type(m) for m in model] == [QLinear, QLinear]


def test_subclasses_that_compute_something_else_stay_float():
    class Scaled(torch.nn.Linear):
        def forward(self, input):
            return 1.1 * super().forward(input)

    class Picky(torch.nn.Linear):
        def forward(self, input, mask):
            return super().forward(input) * mask

    class Standardized(torch.nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    model = torch.nn.Sequential(Scaled(32, 8), Picky(8, 4), Standardized(3, 4, 3), torch.nn.Linear(4, 4))
    quantize(model, weights="qint8")
    freeze_quietly(model)
    assert [type(m) for m in model] == [Scaled, Picky, Standardized, QLinear]
    reasons = [row.reason for row in coverage(model).rows]
    assert reasons == [f"its forward is not that of {kind}" for kind in ("Linear", "Linear", "Conv2d")] + [""]


def freeze_quietly(model):
    with pytest.warns(UserWarning, match="of the parameters stay float"):
        freeze(model)


def test_computed_and_missing_weights_stay_float():
    parametrized = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(4, 8, 3))
    model = torch.nn.Sequential(parametrized, torch.nn.LazyLinear(4), torch.nn.Linear(4, 4))
    quantize(model, weights="qint8")
    assert [isinstance(m, QModuleMixin) for m in model] == [False, False, True]
    assert qmodule.reason_left_float(model[0]) == "its weight is computed, by a parametrization or a hook"
    assert qmodule.reason_left_float(model[1]) == "its weight is not initialized yet"


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


def encoder(nested):
    layer = torch.nn.TransformerEncoderLayer(64, 4, 96, dropout=0.0, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)


@pytest.mark.parametrize("make", [Attention, lambda: encoder(False), lambda: encoder(True)])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:.*of the parameters stay float")
def test_attention_of_torch(make, training, qtype_name):
    """Its fast paths read weights without calling the layers that hold them."""
    model, x = make().train(training), torch.randn(2, 5, 64)
    quantize(model, weights=qtype_name)
    freeze(model)
    dense = copy.deepcopy(make()).train(training)
    state = {name: t for name, t in model.state_dict().items() if not name.endswith("_scale")}
    for name, module in model.named_modules():
        if isinstance(module, QLinear):
            state = {key: t for key, t in state.items() if not key.startswith(f"{name}.weight.")}
            state[f"{name}.weight"] = module.weight.dequantize()
    dense.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-4)
        if make is not Attention:
            mask = torch.zeros(2, 5, dtype=torch.bool)
            mask[1, 3:] = True
            found, expected = (m(x, src_key_padding_mask=mask) for m in (model, dense))
            torch.testing.assert_close(found[~mask], expected[~mask], rtol=1e-4, atol=1e-4)
    assert all(isinstance(m, QLinear) for m in model.modules() if isinstance(m, torch.nn.Linear))


def test_what_is_registered_by_default():
    table = qmodule._QMODULE_TABLE.items()
    kinds = {cls.__name__: q.__name__ for cls, q in table if cls.__module__.startswith("torch.")}
    assert kinds == {
        "Linear": "QLinear",
        "Conv1d": "QConv1d",
        "Conv2d": "QConv2d",
        "LayerNorm": "QLayerNorm",
        "Embedding": "QEmbedding",
    }


def test_attributes_are_those_of_the_predecessor():
    """Names and representations as 0.2.7 has them."""
    conv = quantize_module(torch.nn.Conv2d(4, 6, 3, stride=2, padding=1), weights="qint4", activations="qint8")
    linear = quantize_module(torch.nn.Linear(256, 8), weights="qint4")
    norm = quantize_module(torch.nn.LayerNorm(8), activations="qint8")
    assert repr(linear) == "QLinear(in_features=256, out_features=8, bias=True)"
    assert repr(conv) == "QConv2d(4, 6, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))"
    assert repr(norm) == "QLayerNorm((8,), eps=1e-05, elementwise_affine=True, bias=True)"
    assert (type(conv), type(linear), type(norm)) == (QConv2d, QLinear, QLayerNorm)
    for module, weights, activations, group_size in (
        (conv, "qint4", "qint8", None),
        (linear, "qint4", None, 128),
        (norm, None, "qint8", None),
    ):
        assert getattr(module.weight_qtype, "name", None) == weights
        assert getattr(module.activation_qtype, "name", None) == activations
        assert module.weight_group_size == group_size
        assert [name for name, _ in module.named_parameters()] == ["weight", "bias"]
        assert [name for name, _ in module.named_buffers()] == ["input_scale", "output_scale"]
        assert not module.frozen
    assert quantize_module(torch.nn.LayerNorm(8), weights="qint8") is None
    linear.freeze()
    assert [name for name, _ in linear.named_parameters()] == ["weight", "bias"]
    assert list(linear.state_dict()) == [
        "weight._data._data", "weight._scale", "weight._shift", "bias", "input_scale", "output_scale"
    ]  # fmt: skip


# transformers.pytorch_utils.Conv1D: a linear layer whose weight is (in, out).


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=60, n_positions=16, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def test_conv1d_of_transformers(qtype_name, dtype):
    from transformers.pytorch_utils import Conv1D

    model, x = torch.nn.Sequential(Conv1D(48, 160)).to(dtype), torch.randn(2, 3, 160).to(dtype)
    source = model[0].weight.detach()
    with torch.no_grad():
        dense = model(x)
        quantize(model, weights=qtype_name)
        unfrozen = model(x)
        freeze(model)
        layer, y = model[0], model(x)
    assert isinstance(layer, Conv1D)
    assert repr(layer) == "QTransformersConv1D(nf=48, nx=160)"
    assert torch.equal(y, unfrozen)
    assert misfit(x, layer.weight, layer.bias, y) <= 1
    # The same bytes as a linear layer of the transposed weight.
    linear = torch.nn.Sequential(torch.nn.Linear(160, 48).to(dtype))
    linear[0].weight.data, linear[0].bias.data = source.t().contiguous(), layer.bias.data
    quantize(linear, weights=qtype_name)
    freeze(linear)
    assert all(map(torch.equal, map(bits, linear.state_dict().values()), map(bits, model.state_dict().values())))
    assert coverage(model).rows[0].kernel == coverage(linear).rows[0].kernel
    tolerance = {"qint8": 0.02, "qint4": 0.1, "qint2": 0.5}.get(qtype_name, 0.1)
    assert (y - dense).abs().max() < tolerance
    with torch.device("meta"):
        other = torch.nn.Sequential(Conv1D(48, 160)).to(dtype)
    requantize(other, model.state_dict(), quantization_map(model))
    assert torch.equal(other(x), y)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), y)
    reloaded = copy.deepcopy(model)
    reloaded.load_state_dict(model.state_dict())
    assert torch.equal(reloaded(x), y)


def bits(t):
    return t.view(torch.uint8) if t.dtype.itemsize == 1 else t


def test_gradients_of_conv1d_of_transformers():
    from transformers.pytorch_utils import Conv1D

    model, x = torch.nn.Sequential(Conv1D(8, 64)), torch.randn(3, 64)
    quantize(model, weights="qint4")
    model(x).square().sum().backward()
    weight = model[0].qweight.dequantize().detach().requires_grad_()
    torch.nn.functional.linear(x, weight, model[0].bias.detach()).square().sum().backward()
    torch.testing.assert_close(model[0].weight.grad, weight.grad.t())


@pytest.mark.parametrize("activations", [None, "qint8"])
def test_gpt2_is_quantized(activations):
    model, ids = gpt2(), torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        expected = model(ids).logits
        quantize(model, weights="qint8", activations=activations, embeddings=True)
        if activations is not None:
            with Calibration():
                model(ids)
        freeze(model)
        found = model(ids).logits
    assert (found - expected).abs().max() < 0.1
    rows = coverage(model).rows
    assert {row.kind for row in rows if row.quantized} == {"QTransformersConv1D", "QEmbedding", "QLinear"}
    assert sum(row.kind == "QTransformersConv1D" for row in rows) == 8
    assert model.transformer.wte.weight is model.lm_head.weight
    other = gpt2()
    requantize(other, model.state_dict(), quantization_map(model))
    with torch.no_grad():
        assert torch.equal(other(ids).logits, found)
    assert other.transformer.wte.weight is other.lm_head.weight


def test_transformers_is_not_imported_for_other_layers():
    code = (
        "import sys, torch\n"
        "from optimum.quanto import quantize, freeze\n"
        "m = torch.nn.Sequential(torch.nn.Linear(32, 32))\n"
        "quantize(m, weights='qint8'); freeze(m)\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
