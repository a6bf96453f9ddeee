"""What a frozen model keeps in memory: the resident set against the packed bytes and scales.

    .venv/bin/python bench/memory.py --weights int4

Builds a random Llama of about a billion parameters layer by layer, quantizing and freezing each before the next is
made, so that the float model never exists as a whole. Prints what the resident set grew by after that, and after
forwards of one token and of a prompt, beside the bytes that the model's tensors hold.
"""

import argparse
import gc
import sys
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from optimum.quanto import coverage, freeze, qtypes, quantize


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def build(config: LlamaConfig, weights: str) -> Any:
    """The frozen model, in bfloat16."""
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    for index in range(config.num_hidden_layers):
        model.model.layers[index] = frozen(LlamaDecoderLayer(config, index), weights)
    model.model.norm = model.model.norm.to_empty(device="cpu").bfloat16()
    torch.nn.init.ones_(model.model.norm.weight)
    model.model.embed_tokens = torch.nn.Embedding(config.vocab_size, config.hidden_size, dtype=torch.bfloat16)
    head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
    model.lm_head = frozen(torch.nn.Sequential(head), weights)[0]
    return model.eval()


def frozen(module: Any, weights: str) -> Any:
    """The module in bfloat16 with frozen weights."""
    module = module.bfloat16()
    quantize(module, weights=qtypes[f"q{weights}"])
    freeze(module)
    return module


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--prompt", type=int, default=128)
    options = parser.parse_args()
    config = LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=options.layers,
        num_attention_heads=32, num_key_value_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    frozen(torch.nn.Sequential(torch.nn.Linear(256, 256)), options.weights)(torch.zeros(1, 256, dtype=torch.bfloat16))
    gc.collect()
    before = resident()
    model = build(config, options.weights)
    gc.collect()
    held = coverage(model).bytes
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{options.weights}: {parameters / 1e6:.0f} M parameters, {held / 1e6:.1f} MB of tensors")
    grown = {"frozen": resident() - before}
    with torch.inference_mode():
        for tokens in (1, options.prompt):
            model(torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
            gc.collect()
            grown[f"after a forward of {tokens}"] = resident() - before
    for what, size in grown.items():
        print(f"  {what:26} {size / 1e6:8.1f} MB, {size / held:.3f} of the tensors' bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
