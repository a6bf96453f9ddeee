"""Show that optimum-quanto 0.2.7 loads what this version saves, bit for bit.

python roundtrip.py write FOLDER    # with this version installed
python roundtrip.py check FOLDER    # with 0.2.7 and transformers, in an environment of its own
"""

import json
import sys
from pathlib import Path

import torch
from cases import CHECKPOINTS, calibration_model, calibration_samples, float_model
from model_0_2_7 import IDS, llama
from safetensors.torch import load_file, save_file

import optimum.quanto
from optimum.quanto import Calibration, QuantizedModelForCausalLM, freeze, quantization_map, quantize, requantize


ACTIVATIONS = {f"calibration.{name}": name for name in ("qint8", "qfloat8_e4m3fn")}


def _bytes(t: torch.Tensor) -> bytes:
    return t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _float_model(name: str) -> torch.nn.Module:
    return calibration_model() if name in ACTIVATIONS else float_model(CHECKPOINTS[name][1])


def _dequantized(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    modules = [(name, m) for name, m in model.named_modules() if getattr(m, "weight_qtype", None) is not None]
    return {f"dequantized.{name}": m.weight.dequantize() for name, m in modules}


def write(folder: Path) -> None:
    """Save every kind of checkpoint with the weights that it stands for."""
    for name in (*CHECKPOINTS, *ACTIVATIONS):
        model = _float_model(name)
        if name in ACTIVATIONS:
            quantize(model, weights="qint8", activations=ACTIVATIONS[name])
            with torch.no_grad(), Calibration():
                for x in calibration_samples():
                    model(x)
        else:
            quantize(model, weights=CHECKPOINTS[name][0])
        freeze(model)
        (folder / name).mkdir(parents=True)
        save_file(model.state_dict(), folder / name / "state.safetensors")
        torch.save(model.state_dict(), folder / name / "state.pt")
        save_file(_dequantized(model), folder / name / "dequantized.safetensors")
        (folder / name / "map.json").write_text(json.dumps(quantization_map(model)))
    for weights in ("qint8", "qint4", "qint2", "qfloat8"):
        model = QuantizedModelForCausalLM.quantize(llama(), weights=weights)
        model.save_pretrained(folder / f"llama.{weights}", max_shard_size="6KB")
        with torch.no_grad():
            save_file({"logits": model(IDS).logits}, folder / f"llama.{weights}" / "expected.st")


def check(folder: Path) -> None:
    """Load all of them."""
    for name in (*CHECKPOINTS, *ACTIVATIONS):
        states = [load_file(folder / name / "state.safetensors")]
        states.append(torch.load(folder / name / "state.pt", weights_only=True))
        for state in states:
            model = _float_model(name)
            requantize(model, dict(state), json.loads((folder / name / "map.json").read_text()))
            loaded = model.state_dict()
            assert loaded.keys() == state.keys(), name
            assert all(_bytes(t) == _bytes(state[key]) for key, t in loaded.items()), name
            for key, t in load_file(folder / name / "dequantized.safetensors").items():
                assert _bytes(t) == _bytes(_dequantized(model)[key]), (name, key)
    for weights in ("qint8", "qint4", "qint2", "qfloat8"):
        path = folder / f"llama.{weights}"
        with torch.no_grad():
            found = QuantizedModelForCausalLM.from_pretrained(path)(IDS).logits
        torch.testing.assert_close(found, load_file(path / "expected.st")["logits"], rtol=1e-4, atol=1e-4)


def main() -> None:
    {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
    print(f"{sys.argv[1]}: done with optimum-quanto {optimum.quanto.__version__}")


if __name__ == "__main__":
    main()
