"""Tokens per second of a language model: dense, and with each kind of weights, taking turns in one run.

    .venv/bin/python bench/generate.py --model .demo/SmolLM2-135M-Instruct --compile

Measures decoding one token at a time (greedy, eager, with a dynamic cache), decoding with a static cache and a
compiled forward (`--compile`; it takes minutes to compile), and the prefill of a prompt. Each number is the median
of the rounds, beside the ratio to dense eager; `nothing` is the same model with layers that return zeros at once:
the most that faster layers could bring.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

from optimum.quanto import freeze, qtypes, quantize


class Nothing(torch.nn.Module):
    """A linear layer that costs nothing."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.zero = torch.zeros(1, dtype=linear.weight.dtype)
        self.out_features = linear.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.zero.expand(*x.shape[:-1], self.out_features)


def load(path: Path, weights: str) -> Any:
    """The model in bfloat16 with these weights: `dense`, `nothing`, or the name of a qtype."""
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, local_files_only=True).eval()
    if weights == "nothing":
        for name, module in list(model.named_modules()):
            if isinstance(module, torch.nn.Linear):
                model.set_submodule(name, Nothing(module))
    elif weights != "dense":
        quantize(model, weights=qtypes[f"q{weights}"])
        freeze(model)
    return model


def decode_seconds(model: Any, ids: torch.Tensor, tokens: int) -> float:
    """Seconds of a token after the prompt, with a dynamic cache."""
    output = model(ids, use_cache=True)
    token = output.logits[:, -1:].argmax(-1)
    start = time.perf_counter()
    for _ in range(tokens):
        output = model(token, past_key_values=output.past_key_values, use_cache=True)
        token = output.logits[:, -1:].argmax(-1)
    return (time.perf_counter() - start) / tokens


def prefill_seconds(model: Any, ids: torch.Tensor) -> float:
    """Seconds of one forward over the prompt."""
    start = time.perf_counter()
    model(ids, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - start


class Compiled:
    """A compiled forward of one token on a static cache."""

    def __init__(self, model: Any, ids: torch.Tensor, length: int, guards: bool) -> None:
        self.model = model
        self.ids = ids
        self.cache = StaticCache(config=model.config, max_cache_len=length)
        options = None if guards else {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
        self.step = torch.compile(model.forward, fullgraph=True, options=options)

    def decode_seconds(self, tokens: int) -> float:
        """Seconds of a token after the prompt, with which the cache is filled anew."""
        self.cache.reset()
        token = self.model(self.ids, past_key_values=self.cache, use_cache=True).logits[:, -1:].argmax(-1)
        first = self.ids.shape[1]
        start = time.perf_counter()
        for position in range(first, first + tokens):
            where = torch.tensor([[position]])
            output = self.step(token, past_key_values=self.cache, position_ids=where, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
        return (time.perf_counter() - start) / tokens


def rounds(runners: dict[str, Callable[[], float]], count: int) -> dict[str, float]:
    """The median of what each runner returns, one after the other, `count` times after a first one for nothing."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(count + 1):
        for name, run in runners.items():
            value = run()
            if turn > 0:
                seconds[name].append(value)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(title: str, seconds: dict[str, float], tokens: int, base: float) -> dict[str, dict[str, float]]:
    """Print tokens a second and ratios to `base`, the seconds of dense eager."""
    print(title)
    result = {}
    for name, value in seconds.items():
        result[name] = {"tokens_per_second": tokens / value, "ratio": base / value}
        print(f"  {name:10} {tokens / value:9.1f} tokens/s  {base / value:6.2f} x dense eager", flush=True)
    return result


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path(".demo/SmolLM2-135M-Instruct"), help="`make demo` makes it")
    kinds = [name.removeprefix("q") for name in qtypes]
    weights = parser.add_argument("--weights", nargs="+", choices=kinds, default=["int8", "int4", "float8"])
    weights.metavar, weights.help = "WEIGHTS", ", ".join(kinds)
    parser.add_argument("--tokens", type=int, default=24, help="to decode in each round")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt of the prefill")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="measure compiled decoding too")
    parser.add_argument(
        "--skip-guards", action="store_true", help="compile without checking at each call that no module has changed"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.skip_guards and not options.compile:
        parser.error("--skip-guards: got it without --compile, expected both")
    return options


@torch.inference_mode()
def serve(connection: Connection, weights: str, options: argparse.Namespace, ids: torch.Tensor) -> None:
    """Load a model, then measure what the other side asks for, until it asks for nothing (None)."""
    torch.set_num_threads(options.threads)
    model = load(options.model, weights)
    short, tokens = ids[:, :16], options.tokens

    @cache
    def compiled() -> Compiled:
        return Compiled(model, short, 16 + tokens, not options.skip_guards)

    measures: dict[str, Callable[[], float]] = {
        "decode": lambda: decode_seconds(model, short, tokens),
        "prefill": lambda: prefill_seconds(model, ids),
        "compiled": lambda: compiled().decode_seconds(tokens),
    }
    while (measure := connection.recv()) is not None:
        connection.send(measures[measure]())


def main() -> int:
    """Measure."""
    options = parse()
    vocabulary = AutoConfig.from_pretrained(options.model, local_files_only=True).vocab_size
    ids = torch.randint(0, vocabulary, (1, options.prompt), generator=torch.Generator().manual_seed(0))
    # A process for each: compiled functions of one process share the code of `forward`, and every call checks the
    # guards of one model after the other.
    context = multiprocessing.get_context("spawn")
    sides, processes = {}, []
    for name in ["dense", "nothing", *options.weights]:
        sides[name], other = context.Pipe()
        processes.append(context.Process(target=serve, args=(other, name, options, ids), daemon=True))
        processes[-1].start()
        other.close()

    def seconds(side: str, what: str) -> float:
        sides[side].send(what)
        return float(sides[side].recv())

    def race(what: str, names: Iterable[str]) -> dict[str, float]:
        return rounds({name: partial(seconds, name, what) for name in names}, options.rounds)

    decode = race("decode", sides)
    results = {"decode": report("decode, eager", decode, 1, decode["dense"])}
    prefill = race("prefill", sides)
    title = f"prefill of {options.prompt} tokens, eager"
    results["prefill"] = report(title, prefill, options.prompt, prefill["dense"])
    if options.compile:
        runners = {name: partial(seconds, name, "compiled") for name in sides if name != "nothing"}
        compiled = rounds({"eager": partial(seconds, "dense", "decode"), **runners}, options.rounds)
        title = "decode, compiled with a static cache (eager: dense, without either)"
        results["compiled"] = report(title, compiled, 1, compiled["eager"])
    for side, process in zip(sides.values(), processes, strict=True):
        side.send(None)
        process.join()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
