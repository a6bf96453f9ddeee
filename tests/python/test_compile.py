"""torch.compile and torch.export of quantized models: no graph break, no needless recompilation, eager's results."""

import copy

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.testing import CompileCounter
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM

from optimum.quanto import Calibration, QTensor, freeze, quantize
from optimum.quanto.tensor import wrapper


ACTIVATIONS = [None, "qint8", "qfloat8_e4m3fn", "qfloat8_e5m2"]


@pytest.fixture(autouse=True)
def _no_compiled_code():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()  # code without guards would serve other models


@pytest.fixture(params=ACTIVATIONS)
def activations(request):
    return request.param


class Block(torch.nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.up = torch.nn.Linear(width, 2 * width)
        self.down = torch.nn.Linear(2 * width, width)
        self.norm = torch.nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(x + self.down(torch.relu(self.up(x))))


def quantized(model, weights, activations, x, frozen=True):
    quantize(model, weights=weights, activations=activations)
    if activations is not None:
        with torch.no_grad(), Calibration():
            model(x)
    if frozen:
        freeze(model)
    return model


def plain(output):
    return output.dequantize() if isinstance(output, QTensor) else output


def test_forward_equals_eager(qtype_name, dtype, activations):
    x = torch.randn(4, 64).to(dtype)
    model = quantized(torch.nn.Sequential(Block(), torch.nn.Linear(64, 48)).to(dtype), qtype_name, activations, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for batch in (x, torch.cat([x, x]), torch.cat([x, x, x])):
            expected, found = model(batch), compiled(batch)
            assert type(found) is type(expected)
            assert torch.equal(plain(found), plain(expected))


@pytest.mark.parametrize("weights", ["qint8", "qint4", "qfloat8"])
def test_layers_share_one_graph(weights, activations):
    x = torch.randn(4, 64)
    model = quantized(torch.nn.Sequential(*[Block() for _ in range(4)]), weights, activations, x)
    counter = CompileCounter()
    for block in model:
        block.forward = torch.compile(block.forward, fullgraph=True, backend=counter)
    with torch.no_grad():
        model(x)
        assert counter.frame_count == 1
        # The second batch size makes the batch dynamic; there is nothing to recompile for after that.
        for rows in (5, 6, 7):
            model(torch.randn(rows, 64))
    assert counter.frame_count == 2


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("weights", ["qint8", "qint4", "qfloat8"])
def test_guards_ask_a_weight_for_its_parts_and_nothing_else(weights, without_gradients):
    layer = quantized(torch.nn.Sequential(torch.nn.Linear(64, 48)), weights, None, torch.randn(4, 64))
    parts = set(layer[0].weight.__tensor_flatten__()[0])
    sources: set[str] = set()
    graphs = []

    def keep_graph(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    def keep_sources(guards):
        sources.update(guard.name for guard in guards)
        return [True] * len(guards)

    compiled = torch._dynamo.optimize(keep_graph, nopython=True, guard_filter_fn=keep_sources)(layer)
    x = torch.randn(4, 64)
    with without_gradients():
        assert torch.equal(compiled(x), layer(x))
    weight = next(name for name in sources if name.endswith("_parameters['weight']"))
    asked = {name.removeprefix(weight + ".") for name in sources if name.startswith(weight + ".")}
    assert parts <= asked <= parts | {"__tensor_flatten__()[0]"}
    # Two layers with weights of the same type would be compared with each other by Python code.
    assert not any(name.startswith("type(") for name in sources)
    calls = [node.target for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert calls == [torch.ops.quanto.linear]


def test_gradients_equal_eager(qtype_name, activations):
    x = torch.randn(4, 64)
    model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 32))
    quantized(model, qtype_name, activations, x, frozen=False)
    other = copy.deepcopy(model)

    def gradients(parameters, forward):
        plain(forward(x)).pow(2).sum().backward()
        return [p.grad for p in parameters]

    expected = gradients(list(model.parameters()), model)
    found = gradients(list(other.parameters()), torch.compile(other, fullgraph=True, backend="aot_eager"))
    assert len(expected) == 4
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", ["qint8", "qint4", "qint2", "qfloat8"])
def test_exports_with_a_dynamic_batch(weights, activations):
    x = torch.randn(4, 3, 64)
    model = quantized(torch.nn.Sequential(Block(), torch.nn.Linear(64, 48)), weights, activations, x).eval()
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        batch = torch.randn(5, 3, 64)
        torch.testing.assert_close(program.module()(batch), plain(model(batch)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("without_gradients", "strict"), [(torch.no_grad, True), (torch.no_grad, False), (torch.inference_mode, True)]
)
@pytest.mark.parametrize(("weights", "operator"), [("qint8", "linear_qbytes"), ("qint4", "linear_qbits")])
def test_programs_call_the_operator_of_the_layout(weights, operator, without_gradients, strict):
    x = torch.randn(4, 64)
    model = quantized(torch.nn.Sequential(torch.nn.Linear(64, 48)), weights, None, x).eval()
    with without_gradients():
        program = torch.export.export(model, (x,), strict=strict)
        calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
        assert getattr(torch.ops.quanto, operator).default in calls
        assert torch.ops.quanto.linear.default not in calls
        assert torch.equal(program.module()(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "activations"), [("qint8", None), ("qint4", None), ("qint8", "qint8")])
def test_compiles_with_inductor(weights, activations):
    x = torch.randn(4, 64, dtype=torch.bfloat16)
    model = quantized(Block().bfloat16(), weights, activations, x)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=2e-2, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["qint8", "qint4"])
def test_compiles_without_guards_on_modules(weights):
    x, model = torch.randn(4, 64), quantized(torch.nn.Sequential(torch.nn.Linear(64, 48)), weights, None, None)
    options = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    compiled = torch.compile(model, fullgraph=True, options=options)
    with torch.no_grad():
        for rows in (x, torch.randn(4, 64)):
            torch.testing.assert_close(compiled(rows), model(rows))


def _hits_of_the_cache(model, x):
    """How often a compilation that knows nothing but the cache of files finds something there."""
    torch.compiler.reset()
    counts = torch._dynamo.utils.counters["aot_autograd"]
    counts.clear()
    with torch.no_grad():
        torch.compile(model)(x)
    return counts["autograd_cache_hit"]


@pytest.mark.slow
def test_code_that_other_operators_compiled_is_not_used(monkeypatch):
    x, model = torch.randn(4, 64), quantized(torch.nn.Sequential(torch.nn.Linear(64, 48)), "qint4", None, None)
    monkeypatch.setattr(wrapper, "fingerprint", lambda: "of a test")
    with torch._inductor.utils.fresh_cache():
        assert _hits_of_the_cache(model, x) == 0
        assert _hits_of_the_cache(model, x) == 1
        monkeypatch.setattr(wrapper, "fingerprint", lambda: "of other operators")
        assert _hits_of_the_cache(model, x) == 0


@pytest.mark.parametrize("weights", ["qint8", "qint4"])
def test_generate_with_a_static_cache(weights):
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config).eval()
    quantize(model, weights=weights, exclude="lm_head")
    freeze(model)
    ids = torch.tensor([[1, 5, 9, 13, 17]])
    options = {"max_new_tokens": 8, "do_sample": False, "cache_implementation": "static"}
    expected = model.generate(ids, **options, disable_compile=True)
    # generate compiles on its own on accelerators; the flag asks for it on the CPU too. A graph break raises.
    compile_config = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    compile_config._compile_all_devices = True
    found = model.generate(ids, **options, compile_config=compile_config)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert torch.equal(found, expected)


@pytest.mark.parametrize("layer", [torch.nn.Linear(32, 64), torch.nn.Conv2d(32, 64, 3)], ids=["Linear", "Conv2d"])
def test_traces_of_torchscript_can_be_saved(qtype_name, layer, tmp_path):
    x = torch.randn(5, 32) if isinstance(layer, torch.nn.Linear) else torch.randn(1, 32, 5, 5)
    model = quantized(torch.nn.Sequential(copy.deepcopy(layer), torch.nn.ReLU()), qtype_name, None, x)
    assert model[0].bias.requires_grad
    torch.jit.trace(model, x).save(tmp_path / "model.pt")  # which compares it with a trace without gradients
    assert torch.equal(torch.jit.load(tmp_path / "model.pt")(x + 1), model(x + 1))


@pytest.mark.parametrize("weights", ["qint8", "qint4"])
def test_an_exported_program_can_be_saved(weights, activations, tmp_path):
    x = torch.randn(4, 64)
    model = quantized(torch.nn.Sequential(Block(), torch.nn.Linear(64, 48)), weights, activations, x).eval()
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "program.pt2")
    with torch.no_grad():
        loaded = torch.export.load(tmp_path / "program.pt2").module()
        assert torch.allclose(loaded(x), plain(model(x)), atol=1e-5)
