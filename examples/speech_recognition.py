"""Speech recognition: Whisper base with quantized weights, and its word error rate.

    python examples/speech_recognition.py [--quick] [--audio FOLDER]

The model comes from two packages (see whisper_checkpoint.py), the speech from Debian's `pocketsphinx-testdata`: five
sentences of "Sense and Sensibility", read for LibriVox. The table shows what each type of weights takes and the share
of words that it gets wrong, and below it what it wrote.
"""

import re
import time
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import arguments, megabytes, quantized, table
from torch import Tensor
from whisper_checkpoint import load, tokenizer


AUDIO = Path("/usr/share/pocketsphinx/test/data/librivox")
_RATE = 16000
_PROMPT = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
_END = "<|endoftext|>"


def recordings(folder: Path) -> list[tuple[Tensor, str]]:
    """Samples between -1 and 1, and the words that were said.

    Raises:
        FileNotFoundError: there are none in the folder.
    """
    if not (folder / "transcription").is_file():
        raise FileNotFoundError(f"{folder} has no transcription: install the package pocketsphinx-testdata")
    found = []
    for line in (folder / "transcription").read_text().splitlines():
        match = re.fullmatch(r"<s> (.*) </s> \((.*)\)", line.strip())
        if match is not None:
            found.append((_samples(folder / f"{match[2]}.wav"), match[1]))
    return found


def _samples(path: Path) -> Tensor:
    with wave.open(str(path)) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (_RATE, 1, 2):
            raise ValueError(f"{path}: got another format, expected {_RATE} Hz, one channel, 16 bits")
        data = bytearray(file.readframes(file.getnframes()))
    return torch.frombuffer(data, dtype=torch.int16).float() / 2**15


def transcribe(model: Any, words: Any, features: Tensor, limit: int = 60) -> str:
    """What the model hears, decoded greedily."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    end = words.token_to_id(_END)
    said: list[int] = []
    tokens = torch.tensor([[words.token_to_id(token) for token in _PROMPT]])
    with torch.no_grad():
        states = model.model.encoder(features)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        while len(said) < limit:
            logits = model(encoder_outputs=states, decoder_input_ids=tokens, past_key_values=cache).logits
            best = int(logits[0, -1].argmax())
            if best == end:
                break
            said.append(best)
            tokens = torch.tensor([[best]])
    return str(words.decode(said)).strip()


def spoken(text: str) -> list[str]:
    """The words of a text without what is not heard."""
    plain = re.sub(r"[^a-z' ]", " ", text.lower().replace("-", " "))
    return ["mister" if word == "mr" else word for word in plain.split()]


def word_errors(found: Sequence[str], expected: Sequence[str]) -> int:
    """The fewest words to insert, remove or replace in one sequence to get the other."""
    row = list(range(len(found) + 1))
    for i, word in enumerate(expected, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(found, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (word != other))
    return row[-1]


def recognize(model: Any, words: Any, speech: list[tuple[Tensor, str]]) -> tuple[float, list[str]]:
    """The word error rate, and what the model wrote."""
    texts = [transcribe(model, words, features) for features, _ in speech]
    pairs = [(spoken(text), spoken(said)) for text, (_, said) in zip(texts, speech, strict=True)]
    return sum(word_errors(*pair) for pair in pairs) / sum(len(said) for _, said in pairs), texts


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the example; a row for each version of the model."""
    from transformers import WhisperFeatureExtractor

    parser = arguments(__doc__)
    parser.add_argument("--audio", type=Path, default=AUDIO, help="folder with recordings and their transcription")
    options = parser.parse_args(argv)
    extractor, words = WhisperFeatureExtractor(feature_size=80), tokenizer()
    speech = [
        (extractor(samples.numpy(), sampling_rate=_RATE, return_tensors="pt").input_features, said)
        for samples, said in recordings(options.audio)[: 2 if options.quick else None]
    ]
    model = load()
    results = []
    for weights in [None, "qint8", "qint4"] if options.quick else [None, "qint8", "qfloat8", "qint4"]:
        # The two convolutions that read the sound are a hundredth of the weights, and 4 bits are too few for them.
        version = model if weights is None else quantized(model, weights, exclude="*conv*")
        start = time.perf_counter()
        rate, texts = recognize(version, words, speech)
        results.append(
            {
                "weights": weights or "float32",
                "MB": megabytes(version),
                "rate": rate,
                "seconds": (time.perf_counter() - start) / len(speech),
                "texts": texts,
            }
        )
    rows = [[r["weights"], r["MB"], f"{r['rate']:.1%}", r["seconds"]] for r in results]
    print(table(["weights", "MB", "word error rate", "seconds each"], rows))
    for result in results:
        print(f"\n{result['weights']}:", *result["texts"], sep="\n  ")
    return results


if __name__ == "__main__":
    main()
