"""A racer: one process of one environment, which builds and times the contenders that the environment has.

Talks in lines of JSON: `{"do": "prepare", ...}`, `{"do": "run", ...}`, `{"do": "check", ...}`, `{"do": "drop"}` on
stdin, one answer each on stdout. race.py starts it with the Python of the environment and takes turns.
"""

import copy
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../tests/python"))
from oracle import weight_and_magnitude


Built = tuple[torch.nn.Module, Callable[[list[int]], Tensor]]
"""A module, and a function that gives rows of the weight that its codes stand for, in float64."""

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.bfloat16,
    "float8": torch.bfloat16,
}
"""Of the input, by the name of the activations; those of 8 bits are made from bfloat16 within the layer."""


FLOAT8 = {"float8": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
"""The dtypes of the float8 weights that others have too."""


_BUILDING = 10.0
"""Seconds for building a layer again and again where it cannot be copied; fewer weights to rotate favour it."""


def group_size(K: int) -> int:
    """The largest group that torch's and torchao's operators take for K; Quanto's own is the next multiple of 32."""
    return next(size for size in (128, 64, 32) if K % size == 0)


def dense(weight: Tensor, weights: str, activations: str) -> Built:
    """torch.nn.Linear on the float weight."""
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    return linear, lambda rows: weight[rows].double()


def qlinear(weight: Tensor, weights: str, activations: str) -> Built:
    """A frozen QLinear of whatever optimum.quanto the environment has."""
    import optimum.quanto
    from optimum.quanto import Calibration, freeze, quantize

    qtypes = {name: getattr(optimum.quanto, f"q{name}") for name in (weights, "int8", "float8")}
    codes = activations in ("int8", "float8")
    model = torch.nn.Sequential(dense(weight, weights, activations)[0])
    quantize(model, weights=qtypes[weights], activations=qtypes[activations] if codes else None)
    if codes:
        with torch.no_grad(), Calibration():
            model(inputs(8, weight.shape[1], activations))
    freeze(model)
    layer: Any = model[0]
    if codes:
        layer.disable_output_quantization()

    def rows_of(rows: list[int]) -> Tensor:
        try:
            return weight_and_magnitude(layer.weight)[0][rows]
        except AttributeError:  # a layout of 0.2.7 that cannot be unpacked: rounded to the dtype of the scales
            return layer.weight.dequantize()[rows].double()

    return layer, rows_of


class Operator(torch.nn.Module):
    """An operator and its tensors."""

    def __init__(self, call: Callable[..., Tensor], tensors: tuple[Tensor, ...], *rest: Any) -> None:
        super().__init__()
        self.call = call
        self.rest = rest
        for index, tensor in enumerate(tensors):
            self.register_buffer(f"tensor{index}", tensor)

    def __deepcopy__(self, memo: Any) -> "Operator":
        return Operator(self.call, tuple(tensor.clone() for tensor in self._buffers.values()), *self.rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, *self._buffers.values(), *self.rest)


def operator(weight: Tensor, weights: str, activations: str) -> Built:
    """The operator of Quanto that a frozen QLinear calls."""
    layer, rows = qlinear(weight, weights, activations)
    w: Any = layer.weight
    if weights in ("int4", "int2"):
        tensors = (w._data._data, w._scale, w._shift)
        rest = () if weights == "int4" else (None, w._qtype.bits)  # 4 bits go without saying
        return Operator(torch.ops.quanto.linear_qbits.default, tensors, *rest), rows
    return Operator(torch.ops.quanto.linear_qbytes.default, (w._data, w._scale), None), rows


def int8pack(weight: Tensor, weights: str, activations: str) -> Built:
    """torch's own operator for int8 weights."""
    scale = weight.float().abs().amax(1) / 127
    codes = (weight.float() / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    scale = scale.to(weight.dtype)
    packed = Operator(torch.ops.aten._weight_int8pack_mm.default, (codes, scale))
    return packed, lambda rows: codes[rows].double() * scale[rows, None].double()


def int4pack(weight: Tensor, weights: str, activations: str) -> Built:
    """torch's own operator for int4 weights: scale * (code - 8) + zero."""
    group = group_size(weight.shape[1])
    groups = weight.float().reshape(weight.shape[0], -1, group)
    low, high = groups.amin(2), groups.amax(2)
    scale = ((high - low) / 15).clamp(min=1e-6).to(weight.dtype)
    zero = (low + scale.float() * 8).to(weight.dtype)
    codes = ((groups - zero.float()[..., None]) / scale.float()[..., None]).round().add(8).clamp(0, 15).int()
    data = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.reshape(weight.shape), 1)
    scale_zero = torch.stack([scale, zero], 2).transpose(0, 1).contiguous()

    def rows_of(rows: list[int]) -> Tensor:
        values = (codes[rows].double() - 8) * scale[rows, :, None].double() + zero[rows, :, None].double()
        return values.reshape(len(rows), -1)

    call = torch.ops.aten._weight_int4pack_mm_for_cpu.default
    return Operator(lambda x, d, s: call(x, d, group, s), (data, scale_zero)), rows_of


def int_mm(weight: Tensor, weights: str, activations: str) -> Built:
    """torch._int_mm between quantizing the input and scaling the sums, each an operator of its own."""
    scale = (weight.float().abs().amax(1) / 127).to(weight.dtype)
    codes = (weight.float() / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)

    def call(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        step = x.abs().amax() / 127
        return torch._int_mm((x / step).round().to(torch.int8), codes.t()) * (scale * step)

    return Operator(call, (codes, scale)), lambda rows: codes[rows].double() * scale[rows, None].double()


def torchao(weight: Tensor, weights: str, activations: str) -> Built:
    """torchao's quantize_ with the configuration that it has for the cell on CPUs."""
    from torchao.quantization import quantize_

    model = torch.nn.Sequential(dense(weight, weights, activations)[0])
    quantize_(model, torchao_config(weights, activations, weight.shape[1]))
    layer: Any = model[0]
    return layer, lambda rows: layer.weight.dequantize()[rows].double()


def torchao_config(weights: str, activations: str, K: int) -> Any:
    """The configuration of torchao's quantize_."""
    from torchao import quantization

    if activations == "int8" and weights == "int8":
        return quantization.Int8DynamicActivationInt8WeightConfig()
    if activations == "int8":
        granularity = quantization.PerGroup(group_size(K))
        dtype = getattr(torch, weights)
        return quantization.Int8DynamicActivationIntxWeightConfig(weight_dtype=dtype, weight_granularity=granularity)
    if weights == "int8":
        return quantization.Int8WeightOnlyConfig()
    if weights in FLOAT8:
        return quantization.Float8WeightOnlyConfig(weight_dtype=FLOAT8[weights])
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=group_size(K), set_inductor_config=False)


def bitsandbytes(weight: Tensor, weights: str, activations: str) -> Built:
    """Linear8bitLt, which quantizes its input to int8, and Linear4bit with nf4 codes."""
    import bitsandbytes as bnb

    N, K = weight.shape
    if weights == "int8":
        layer: Any = bnb.nn.Linear8bitLt(K, N, bias=False, has_fp16_weights=False)
        layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        layer.to("cpu")
        with torch.no_grad():
            layer(inputs(1, K, activations))

        def rows_of(rows: list[int]) -> Tensor:
            state = layer.state
            return state.CB[rows].double() * (state.SCB[rows].double() / 127)[:, None]

        return layer, rows_of
    layer = bnb.nn.Linear4bit(K, N, bias=False, compute_dtype=weight.dtype, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", blocksize=64)
    layer.to("cpu")
    plain = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).reshape(N, K)
    return layer, lambda rows: plain[rows].double()


CONTENDERS: dict[str, Callable[[Tensor, str, str], Built]] = {
    "dense": dense,
    "qlinear": qlinear,
    "operator": operator,
    "int8pack": int8pack,
    "int4pack": int4pack,
    "int_mm": int_mm,
    "torchao": torchao,
    "bitsandbytes": bitsandbytes,
}


def inputs(M: int, K: int, activations: str) -> Tensor:
    """The same activations in every process."""
    generator = torch.Generator().manual_seed(M)
    return (torch.rand(M, K, generator=generator) * 4 - 2).to(DTYPES[activations])


def weight_of(K: int, N: int, activations: str) -> Tensor:
    """The same float weight in every process: a stretch of random numbers, repeated."""
    generator = torch.Generator().manual_seed(K + N)
    stretch = torch.randn(1_000_003, generator=generator) * 0.02
    return stretch.repeat(K * N // len(stretch) + 1)[: K * N].reshape(N, K).to(DTYPES[activations])


def footprint(module: torch.nn.Module) -> int:
    """Bytes of a module's parameters and buffers, those inside tensor subclasses included."""

    def size(t: Tensor) -> int:
        if hasattr(t, "__tensor_flatten__"):
            return sum(size(getattr(t, name)) for name in t.__tensor_flatten__()[0])
        return t.numel() * t.element_size()

    return sum(size(t) for t in [*module.parameters(), *module.buffers()])


class Racer:
    """Answers the requests."""

    def __init__(self) -> None:
        self.copies: list[torch.nn.Module] = []
        self.turn = 0

    def prepare(
        self, contender: str, weights: str, activations: str, K: int, N: int, megabytes: int
    ) -> dict[str, Any]:
        """Build the contender, and copies of it until they fill `megabytes`."""
        self.activations, self.K, self.turn = activations, K, 0
        with torch.no_grad():
            weight = weight_of(K, N, activations)
            module, self.rows_of = CONTENDERS[contender](weight, weights, activations)
            size = footprint(module)
            count = max(1, min(4096, megabytes * 2**20 // size))
            self.copies = [module]
            try:
                self.copies += [copy.deepcopy(module) for _ in range(count - 1)]
            except RuntimeError:  # of tensors that cannot be copied, those of 0.2.7
                self.copies, start = [module], time.perf_counter()
                while len(self.copies) < count and time.perf_counter() - start < _BUILDING:
                    self.copies.append(CONTENDERS[contender](weight, weights, activations)[0])
        return {"bytes": size, "copies": len(self.copies)}

    def run(self, M: int, calls: int) -> dict[str, Any]:
        """Seconds of a call, the mean of `calls` on one copy after the other, once the threads are awake."""
        x = inputs(M, self.K, self.activations)
        with torch.no_grad():
            self.copies[self.turn](x)
            start = time.perf_counter()
            for _ in range(calls):
                self.turn = (self.turn + 1) % len(self.copies)
                self.copies[self.turn](x)
            return {"seconds": (time.perf_counter() - start) / calls}

    def check(self, M: int) -> dict[str, Any]:
        """The largest error of a sample of elements relative to the bound of an exact float layer."""
        x = inputs(M, self.K, self.activations)
        with torch.no_grad():
            y = self.copies[0](x)
        y = (y.dequantize() if hasattr(y, "qtype") else y).double()
        columns = list(range(0, y.shape[1], max(1, (y.shape[1] - 1) // 15)))
        rows = list(range(0, M, max(1, (M - 1) // 7)))
        w, a = self.rows_of(columns), x[rows].double()
        exact, magnitude = a @ w.t(), a.abs() @ w.abs().t()
        roundoff = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}[x.dtype]
        bound = (self.K + 2) * 2**-24 * magnitude + 2 * roundoff * exact.abs()
        return {"error": ((y[rows][:, columns] - exact).abs() / bound).max().item()}

    def versions(self) -> dict[str, Any]:
        """Of torch and of the library that the environment is for."""
        names = ("torch", "optimum-quanto", "torchao", "bitsandbytes", "quanto")
        found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
        return {"versions": {name: found[name] for name in names if name in found}}

    def drop(self) -> dict[str, Any]:
        """Free the memory."""
        self.copies = []
        return {}


def main() -> None:
    """Serve requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    torch.set_num_threads(int(sys.argv[1]))
    racers: dict[str, Racer] = {}
    for line in sys.stdin:
        request = json.loads(line)
        racer = racers.setdefault(request["contender"], Racer())
        action = request.pop("do")
        if action != "prepare":
            request.pop("contender")
        try:
            answer = getattr(racer, action)(**request)
        except Exception as error:  # a contender that cannot do a cell says why, and the race goes on
            answer = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
