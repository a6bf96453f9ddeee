"""Write a model folder with optimum-quanto 0.2.7: run this with that version and transformers in an environment.

python model_0_2_7.py llama_0_2_7
"""

import sys
from pathlib import Path

import torch
from cases import base_tensor
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from optimum.quanto import QuantizedModelForCausalLM


IDS = torch.tensor([[1, 5, 9, 13, 17]])


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=32,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(base_tensor(tuple(parameter.shape), torch.float32))
    return model


def main() -> None:
    folder = Path(sys.argv[1])
    model = QuantizedModelForCausalLM.quantize(llama(), weights="qint4")
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    with torch.no_grad():
        save_file({"logits": model(IDS).logits}, folder / "expected.st")


if __name__ == "__main__":
    main()
