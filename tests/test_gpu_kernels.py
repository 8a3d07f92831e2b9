"""The kernels of a table's improvement against torch's own formulas, in Triton's interpreter: no device is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds only")

CHECK = """
import itertools, math, torch
from nlhf_zoo.interfaces import ReverseKL
from nlhf_zoo.tabular import kernels, triton_kernels

generator = torch.Generator().manual_seed(0)

def draw(*shape, dtype):
    return torch.rand(*shape, generator=generator, dtype=dtype)

for dtype, close in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
    for shape in ((3, 3), (1, 1, 1), (3, 5, 5), (2, 10, 10), (2, 33, 33), (2, 2, 40, 40), (1, 4, 300)):
        matrix, vector = draw(*shape, dtype=dtype), draw(*shape[:-2], shape[-1], dtype=dtype)
        want = (matrix @ vector.unsqueeze(-1)).squeeze(-1)
        made = [
            kernels.launch_product(triton_kernels, matrix, vector, backwards, nbytes, columns)
            for backwards, (nbytes, columns) in itertools.product((0, 1), ((16_384, 1024), (2048, 128)))
        ]
        assert all(torch.allclose(got, want, rtol=close) for got in made), (shape, dtype)
        assert torch.equal(made[0], made[2]), "the order of the programs changes nothing"
    for shape in ((5,), (3, 5), (2, 3, 100), (1, 1), (1, 1000)):
        payoff = draw(*shape, dtype=dtype)
        tables = [draw(*shape, dtype=dtype), draw(shape[-1], dtype=dtype), draw(*shape, dtype=dtype)]
        anchors = [(table.log_softmax(-1), weight) for table, weight in zip(tables, (0.1, 0.37, 3.1))]
        if shape[-1] > 1:
            anchors[1][0][0] = -math.inf  # a response that the reference leaves out
        for count in (1, 2, 3):
            want = ReverseKL().improve(payoff, anchors[:count])
            got, probs = kernels.launch_improvement(triton_kernels, payoff, anchors[:count])
            assert torch.allclose(probs, want.exp(), rtol=close, atol=close)
            assert torch.equal(got.isfinite(), want.isfinite())
            assert torch.allclose(got, want, rtol=close, atol=close), (shape, dtype, count)
    payoff = draw(3, 5, dtype=dtype)
    payoff[1, 2], payoff[2, 1] = math.nan, math.inf
    both = kernels.launch_improvement(triton_kernels, payoff, [(torch.zeros(3, 5, dtype=dtype), 1.0)])
    for made in both:
        assert made.isnan().all(-1).tolist() == [False, True, True], "what is no number is so from end to end"
    for source, seen in ((both, torch.zeros(3, dtype=dtype)), (both[0].contiguous(), torch.zeros(3, dtype=dtype))):
        target = torch.empty_like(source)
        kernels.launch_carry(triton_kernels, target, source, seen)
        assert torch.equal(target.nan_to_num(7), source.nan_to_num(7))
        assert seen.isnan().tolist() == [False, True, True]
        kernels.launch_carry(triton_kernels, target, torch.ones_like(source), seen)
        assert seen.isnan().tolist() == [False, True, True], "what was seen once stays so"
    long = draw(2, 700, 3, dtype=dtype)
    target, seen = torch.empty_like(long), torch.zeros(700, dtype=dtype)
    kernels.launch_carry(triton_kernels, target, long, seen)
    assert torch.equal(target, long)
    assert not seen.any()
"""


@pytest.mark.slow
def test_kernels_equal_torch_up_to_rounding() -> None:
    # A process of its own: Triton decides when it is imported whether to interpret.
    program = f"import os; os.environ['TRITON_INTERPRET'] = '1'\n{CHECK}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
