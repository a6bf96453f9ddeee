"""The examples, shortened, and what they show."""

import importlib
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(monkeypatch):
    """A function that runs an example of that name and returns its results."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return lambda name, *options: importlib.import_module(name).main(["--quick", *options])


def by_weights(results):
    return {r["weights"]: r for r in results}


def test_training_quantized_gets_accuracy_back(run, tmp_path):
    plot = tmp_path / "plot.png"
    found = by_weights(run("qat_digits", "--output", str(plot)))
    assert found["float32"]["aware"] > 0.9
    assert found["qint2"]["after"] < found["float32"]["after"] - 0.1
    assert found["qint2"]["aware"] > found["float32"]["after"] - 0.04
    assert found["qint4"]["aware"] > found["float32"]["after"] - 0.02
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_images_are_classified_alike(run):
    found = by_weights(run("image_classification"))
    assert found["float32"]["accuracy"] > 0.7
    for weights in ("qint8", "qfloat8", "qfloat8_e5m2", "qfloat8_e4m3fnuz", "qint4"):
        assert found[weights]["accuracy"] > found["float32"]["accuracy"] - 0.08
    sizes = [found[weights]["MB"] for weights in ("float32", "qint8", "qint4", "qint2")]
    assert sizes == sorted(sizes, reverse=True)


def test_calibration_brings_the_outputs_close(run):
    baseline, *found = run("calibration")
    assert len(found) == 9
    for result in found:
        assert result["after"] < result["before"]
        assert result["accuracy"] > baseline["accuracy"] - 0.03


def test_sentences_are_found(run):
    found = by_weights(run("sentence_embeddings"))
    for weights, cosine in (("float32", 0.9999), ("qint8", 0.99), ("qfloat8", 0.99), ("qint4", 0.85)):
        assert found[weights]["found"] == 8
        assert found[weights]["cosine"] > cosine
    assert found["qint4"]["MB"] < found["qint8"]["MB"] < found["float32"]["MB"]


def test_latent_images_stay_close(run):
    found = by_weights(run("diffusion_transformer"))
    errors = [found[weights]["error"] for weights in ("float32", "qint8", "qfloat8", "qint4", "qint2")]
    assert errors == sorted(errors)
    assert errors[0] < 1e-5
    assert errors[1] < 0.01
    assert found["qint4"]["MB"] < 0.2 * found["float32"]["MB"]


@pytest.mark.slow
def test_speech_is_recognized(run):
    found = by_weights(run("speech_recognition"))
    assert all(result["rate"] <= 0.1 for result in found.values())
    assert found["qint4"]["MB"] < found["qint8"]["MB"] < found["float32"]["MB"]
    assert "mister" not in found["float32"]["texts"][0]  # Whisper writes Mr.
    assert "Dashwood" in found["float32"]["texts"][0]


@pytest.mark.slow
def test_a_language_model_writes(run):
    found = {result.name: result for result in run("causal_lm")}
    assert set(found) == {"bfloat16", "int8", "int4"}
    assert "Paris" in found["bfloat16"].text
    assert abs(found["int8"].perplexity / found["bfloat16"].perplexity - 1) < 0.05
    assert found["int4"].bytes < found["int8"].bytes < found["bfloat16"].bytes


def test_word_errors_are_an_edit_distance(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    speech = importlib.import_module("speech_recognition")
    assert speech.word_errors(["a", "b"], ["a", "b"]) == 0
    assert speech.word_errors(["a"], ["a", "b"]) == 1
    assert speech.word_errors(["b", "x", "a"], ["b", "a"]) == 1
    assert speech.word_errors(["x", "y"], ["a", "b", "c"]) == 3
    assert speech.spoken("Mr. Smith, well-known: it's 'so'.") == ["mister", "smith", "well", "known", "it's", "'so'"]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    notebook = nbformat.read(EXAMPLES / "quanto_tour.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace('"qat_digits.png"', repr(str(tmp_path / "plot.png")))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert "equal: True" in printed


def test_every_example_is_listed():
    readme = (EXAMPLES.parent / "README.md").read_text()
    makefile = (EXAMPLES.parent / "Makefile").read_text()
    programs = [p for p in EXAMPLES.glob("*.py") if "def main(" in p.read_text()]
    assert len(programs) == 7
    for program in programs:
        assert f"examples/{program.name}" in readme
        assert program.stem in makefile
        assert f"python examples/{program.name}" in program.read_text()


@pytest.fixture(autouse=True)
def _same_threads():
    threads = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == threads
