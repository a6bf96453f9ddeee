"""Inputs of any leading shape, if their rows are equally far apart, are multiplied where they lie."""

from collections.abc import Callable

import pytest
import torch


QUANTO = torch.ops.quanto
K, N, ROWS = 64, 32, 24

IN_PLACE = {
    "vector": lambda x: x[0],
    "matrix": lambda x: x[:6],
    "3-D": lambda x: x[:12].view(3, 4, K),
    "4-D": lambda x: x.view(2, 3, 4, K),
    "every other row": lambda x: x[::2],
    "columns of wider rows": lambda x: x.view(ROWS // 2, 2 * K)[:, K:],
    "last token": lambda x: x.view(4, 6, K)[:, -1],
    "last token as a sequence": lambda x: x.view(4, 6, K)[:, -1:],
    "a sequence as a batch": lambda x: x.view(1, ROWS, K).transpose(0, 1),
    "one row many times": lambda x: x[3].expand(6, K),
    "one row as a batch": lambda x: x[3].expand(2, 3, K),
}
COPIED = {
    "columns as rows": lambda x: x.t().contiguous().t(),
    "sequences before batches": lambda x: x.view(4, 6, K).transpose(0, 1),
    "each row many times": lambda x: x[:4, None].expand(4, 3, K),
    "a batch many times": lambda x: x[:4].expand(3, 4, K),
}


def _copies(operator: Callable[[torch.Tensor], object], x: torch.Tensor) -> int:
    """How often an operator copies a tensor. Dispatch modes do not see what it calls."""
    with torch.autograd.profiler.profile() as profile:
        operator(x)
    return sum(event.count for event in profile.key_averages() if event.key in ("aten::copy_", "aten::clone"))


def _operators(dtype: torch.dtype) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Those that read rows, as functions of them; int8 codes for those whose name has `codes` in it."""
    base = torch.randn(N, K, generator=torch.Generator().manual_seed(3)).to(dtype)
    scale = QUANTO.absmax_scale(base, "qint8", 0)
    codes = QUANTO.quantize_symmetric(base, torch.int8, 0, scale)
    groups, shift = QUANTO.minmax_scale(base, "qint4", 0, 32)
    packed = QUANTO.quantize_affine_packed(base, 4, 0, 32, groups, shift)
    half = torch.tensor(0.5, dtype=dtype)
    return {
        "linear_qbytes": lambda x: QUANTO.linear_qbytes(x, codes, scale, None),
        "linear_qbits": lambda x: QUANTO.linear_qbits(x, packed, groups, shift),
        "linear_codes_qbytes": lambda x: QUANTO.linear_codes_qbytes(x, half, codes, scale, None, dtype),
        "linear_codes_qbits": lambda x: QUANTO.linear_codes_qbits(x, half, packed, groups, shift, None, dtype),
        "quantize_per_token": lambda x: QUANTO.quantize_per_token(x, torch.int8)[0],
    }


@pytest.mark.parametrize("name", [*IN_PLACE, *COPIED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_rows_that_no_single_stride_reaches_are_copied(name: str, dtype: torch.dtype) -> None:
    rows = torch.randn(ROWS, K, generator=torch.Generator().manual_seed(4)).to(dtype)
    view = {**IN_PLACE, **COPIED}[name]
    for operator, call in _operators(dtype).items():
        x = view((rows * 20).to(torch.int8) if "codes" in operator else rows)
        assert torch.equal(call(x), call(x.contiguous())), operator
        copies = _copies(call, x)
        assert (copies == 0) == (name in IN_PLACE), f"{operator}: {copies} copies"
