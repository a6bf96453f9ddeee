import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from optimum.quanto import demo


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    words = sorted({*demo.TEXT.split(), *demo.PROMPT.split()})
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<eos>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=1,
        vocab_size=len(vocabulary),
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_compares_the_versions_of_a_model(checkpoint, capsys):
    assert demo.main(["--model", str(checkpoint), "--max-new-tokens", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["weights", "MB", "tokens/s", "perplexity"]
    rows = {line.split()[0]: [float(cell) for cell in line.split()[1:]] for line in lines[1:6]}
    assert list(rows) == ["bfloat16", "int8", "float8", "int4", "int2"]
    assert rows["bfloat16"][0] > rows["int8"][0] >= rows["float8"][0] > rows["int4"][0] > rows["int2"][0] > 0
    assert all(speed > 0 and perplexity > 1 for _, speed, perplexity in rows.values())
    assert abs(rows["int8"][2] / rows["bfloat16"][2] - 1) < 0.05
    assert sum(line.startswith(("bfloat16: ", "int4: ")) for line in lines) == 2


def test_a_wrong_path_is_one_line_on_stderr(tmp_path):
    command = [sys.executable, "-m", "optimum.quanto.demo", "--model", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("demo: --model: got ")
    assert "Traceback" not in result.stderr
