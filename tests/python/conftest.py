import os
import sys
from pathlib import Path

import pytest
import torch


os.environ["HF_HUB_OFFLINE"] = "1"
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "golden")]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=["qint8", "qint4", "qint2", "qfloat8_e4m3fn", "qfloat8_e4m3fnuz", "qfloat8_e5m2"])
def qtype_name(request: pytest.FixtureRequest) -> str:
    return request.param
