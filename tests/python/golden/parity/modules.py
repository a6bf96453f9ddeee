"""Quantized modules: what `quantize`, calibration and `freeze` make of a model, and its outputs."""

from functools import partial
from typing import Any

import torch

import optimum.quanto as quanto

from .cases import DTYPES, Case, base


WEIGHTS = (None, "qint8", "qint4", "qint2", "qfloat8_e4m3fn", "qfloat8_e5m2")
ACTIVATIONS = (None, "qint8", "qfloat8_e4m3fn", "qfloat8_e5m2")


class Block(torch.nn.Module):
    """Layers whose outputs meet functions with and without a quantized form."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(16)
        self.up = torch.nn.Linear(16, 64)
        self.down = torch.nn.Linear(64, 16, bias=False)
        self.head = torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.down(torch.relu(self.up(self.norm(x)))))


class Attention(torch.nn.Module):
    """Products of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(16, 16) for _ in range(3))
        self.out = torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = [layer(x).view(-1, 2, 8).transpose(0, 1) for layer in (self.q, self.k, self.v)]
        scores = torch.softmax(torch.bmm(heads[0], heads[1].transpose(1, 2)) / 2.0, -1)
        return self.out(torch.bmm(scores, heads[2]).transpose(0, 1).reshape(-1, 16))


class Convolutions(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(2, 4, 3, padding=1)
        self.second = torch.nn.Conv2d(4, 4, 3, stride=2, groups=2, bias=False)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(-1, 2, 2, 4)
        return self.head(self.second(torch.nn.functional.pad(self.first(x).relu(), (1, 1, 1, 1))).mean((2, 3)))


MODELS = {"block": Block, "attention": Attention, "convolutions": Convolutions}


def _model(name: str, dtype: torch.dtype) -> torch.nn.Module:
    model = MODELS[name]().to(dtype)
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(base(tuple(parameter.shape), dtype, seed=100 + seed) / parameter.shape[-1] ** 0.5)
    return model.eval()


def _prepared(
    name: str, dtype: torch.dtype, weights: Any, activations: Any, streamline: bool = True, **arguments: Any
) -> torch.nn.Module:
    model = _model(name, dtype)
    quanto.quantize(model, weights=weights, activations=activations, **arguments)
    if activations is not None:
        with torch.no_grad(), quanto.Calibration(streamline=streamline):
            for factor in (1.0, 0.5, 2.0):
                model(base((4, 16), dtype, seed=8) * factor)
    return model


def _facts(*arguments: Any, frozen: bool = True, **keywords: Any) -> tuple[Any, ...]:
    """Output, map, names of the state and the modules' classes."""
    model = _prepared(*arguments, **keywords)
    if frozen:
        quanto.freeze(model)
    with torch.no_grad():
        output = model(base((4, 16), arguments[1], seed=8))
    classes = {key: type(module).__name__ for key, module in model.named_modules()}
    qmap = {key: (v["weights"], v["activations"]) for key, v in quanto.quantization_map(model).items()}
    return output, qmap, sorted(model.state_dict()), classes


def _scales(*arguments: Any, **keywords: Any) -> list[torch.Tensor]:
    model = _prepared(*arguments, **keywords)
    modules = [m for m in model.modules() if isinstance(m, quanto.QModuleMixin)]
    return [scale for m in modules for scale in (m.input_scale, m.output_scale)]


def _training_step(weights: str, activations: str | None) -> tuple[Any, ...]:
    model = _prepared("block", torch.float32, weights, activations, streamline=False).train()
    output = model(base((4, 16), seed=8))
    plain = output.dequantize() if isinstance(output, quanto.QTensor) else output
    plain.backward(base((4, 4), seed=5))
    return tuple(p.grad for p in model.parameters())


def _reloaded(weights: str, activations: str | None, assign: bool) -> tuple[Any, ...]:
    model = _prepared("block", torch.float32, weights, activations, streamline=False)
    quanto.freeze(model)
    other = _model("block", torch.float32)
    if assign:
        quanto.requantize(other, model.state_dict(), quanto.quantization_map(model))
    else:
        quanto.quantize(other, weights=weights, activations=activations)
        other.load_state_dict(model.state_dict())
    x = base((4, 16), torch.float32, seed=8)
    with torch.no_grad():
        first, second = model(x), other(x)
    return second, torch.equal(first, second), [type(m).__name__ for m in other.modules()]


def _included(**arguments: Any) -> dict[str, str]:
    model = _model("block", torch.float32)
    quanto.quantize(model, weights="qint8", activations="qint8", **arguments)
    return {key: type(module).__name__ for key, module in model.named_modules()}


def _configurations() -> list[tuple[str, str, Any, Any]]:
    """Every pair of qtypes in one dtype and model, some in the others."""
    found: list[tuple[str, str, Any, Any]] = [("block", "f32", w, a) for w in WEIGHTS for a in ACTIVATIONS]
    found += [("block", "bf16", w, a) for w in ("qint8", "qint4") for a in ACTIVATIONS[:2]]
    found += [(m, "f32", w, a) for m in ("attention", "convolutions") for w in WEIGHTS[1:4] for a in ACTIVATIONS[:3]]
    return found


def _configuration_cases(name: str, short: str, weights: Any, activations: Any) -> list[Case]:
    arguments, label = (name, DTYPES[short], weights, activations), f"{name}/{weights}/{activations}/{short}"
    calls = {"frozen": partial(_facts, *arguments)}
    if name == "block":
        calls["unfrozen"] = partial(_facts, *arguments, frozen=False)
    if activations is not None:
        calls["scales_not_streamlined"] = partial(_scales, *arguments, streamline=False)
        calls["not_streamlined"] = partial(_facts, *arguments, streamline=False)
    return [Case(f"module/{kind}/{label}", call, product=True) for kind, call in calls.items()]


def module_cases() -> list[Case]:
    cases = [case for configuration in _configurations() for case in _configuration_cases(*configuration)]
    for weights in WEIGHTS[1:]:
        for activations in ACTIVATIONS[:3]:
            label = f"{weights}/{activations}"
            step = partial(_training_step, weights, activations)
            cases.append(Case(f"module/training_step/{label}/f32", step, product=True))
            for assign in (False, True):
                reload = partial(_reloaded, weights, activations, assign)
                name = "requantize" if assign else "load_state_dict"
                cases.append(Case(f"module/{name}/{label}", reload, product=True))
    for name, arguments in {
        "include": {"include": "*up*"},
        "include_list": {"include": ["up", "norm"]},
        "exclude": {"exclude": "head"},
        "exclude_list": {"exclude": ["head", "d*"]},
        "both": {"include": "*", "exclude": "norm"},
    }.items():
        cases.append(Case(f"module/{name}", partial(_included, **arguments)))
    return cases
