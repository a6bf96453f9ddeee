"""Models that diffusers quantizes while it loads them, with its own `QuantoConfig`."""

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from diffusers import QuantoConfig as DiffusersConfig
from test_models import denoised, pixart

from optimum.quanto import QLinear, coverage, freeze, quantize


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pixart")
    pixart().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("weights", ["int8", "float8", "int4", "int2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_load(checkpoint, weights, dtype):
    options = DiffusersConfig(weights_dtype=weights, modules_to_not_convert=["proj_out"])
    model = PixArtTransformer2DModel.from_pretrained(checkpoint, quantization_config=options, torch_dtype=dtype)
    reference = PixArtTransformer2DModel.from_pretrained(checkpoint, torch_dtype=dtype)
    names = [name for name, m in model.named_modules() if isinstance(m, QLinear)]
    assert len(names) > 10
    assert "proj_out" not in names
    assert all(model.get_submodule(name).frozen for name in names)
    quantize(reference, weights=f"q{weights}", include=names)
    freeze(reference)
    assert torch.equal(denoised(model, dtype), denoised(reference, dtype))
    assert coverage(model).float_share < 0.5


@pytest.mark.parametrize("weights", ["int8", "float8", "int4", "int2"])
def test_save_and_reload(checkpoint, weights, tmp_path):
    options = DiffusersConfig(weights_dtype=weights)
    model = PixArtTransformer2DModel.from_pretrained(checkpoint, quantization_config=options)
    model.save_pretrained(tmp_path)
    loaded = PixArtTransformer2DModel.from_pretrained(tmp_path)
    assert torch.equal(denoised(loaded), denoised(model))
