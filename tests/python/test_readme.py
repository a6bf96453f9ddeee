"""The README's Python snippets, typed as they stand."""

import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


README = Path(__file__).parents[2] / "README.md"


def test_the_snippets_run_in_order(tmp_path, monkeypatch):
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(snippets) >= 3
    monkeypatch.chdir(tmp_path)
    # A small model in the place of the one that the demo makes.
    (path,) = set(re.findall(r'path = "(\S+)"', "".join(snippets)))
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 64}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)
    LlamaForCausalLM(config).save_pretrained(tmp_path / path)
    names = {}
    for snippet in snippets:
        exec(compile(snippet, str(README), "exec"), names)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained("smollm2-int4")
        assert torch.equal(loaded(ids).logits, names["model"](ids).logits)
