"""The von Neumann winner: an optimal mixed strategy of the unregularised game."""

from __future__ import annotations

import torch
from torch import Tensor

from nlhf_zoo.interfaces import EnumerableOracle
from nlhf_zoo.tabular.policy import TabularPolicy

__all__ = ["von_neumann_winner"]


def von_neumann_winner(oracle: EnumerableOracle) -> TabularPolicy:
    """A policy that no response beats: max_y P(y > pi) <= 1/2. Responses outside its support have -inf.

    A response that nobody beats is optimal alone, and is taken where there is one (the first of several).
    Otherwise the linear programme is solved by HiGHS (through scipy), and its vertex made exact on its
    support. Where several policies are optimal, one of them is returned. Batched games are solved one by one.

    Raises:
        ArithmeticError: HiGHS failed.
    """
    matrix = oracle.matrix().double()
    flat = matrix.reshape(-1, oracle.num_responses, oracle.num_responses)
    winners = torch.stack([_winner(one.cpu()) for one in flat]).to(matrix.device)
    return TabularPolicy(winners.log().reshape(*matrix.shape[:-2], -1))


def _winner(matrix: Tensor) -> Tensor:
    import numpy as np
    from scipy.optimize import linprog

    unbeaten = torch.nonzero(matrix.amin(-1) >= 0.5)
    if len(unbeaten):
        return torch.zeros_like(matrix[0]).index_fill_(0, unbeaten[0], 1.0)
    size = matrix.shape[-1]
    skew = (matrix - 0.5).numpy()
    # Variables x (the policy) and t (what the best response wins over 1/2): minimise t with skew x <= t.
    answer = linprog(
        c=np.append(np.zeros(size), 1.0),
        A_ub=np.hstack([skew, -np.ones((size, 1))]),
        b_ub=np.zeros(size),
        A_eq=np.append(np.ones(size), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * size + [(None, None)],
        method="highs",
    )
    if answer.status != 0:
        raise ArithmeticError(f"von Neumann winner: the linear programme ended with {answer.message}")
    x = torch.from_numpy(np.clip(answer.x[:size], 0, None))
    return _made_exact(matrix, x / x.sum())


def _made_exact(matrix: Tensor, x: Tensor) -> Tensor:
    """Solve the indifference equations on the support that the programme found; keep the better policy."""
    support = torch.nonzero(x > 1e-9).flatten()
    skew = matrix[support][:, support] - 0.5
    ones = torch.ones(len(support), 1, dtype=skew.dtype)
    system = torch.cat([skew, ones.T])
    right = torch.cat([torch.zeros(len(support), 1, dtype=skew.dtype), torch.ones(1, 1, dtype=skew.dtype)])
    exact = torch.zeros_like(x)
    exact[support] = torch.linalg.lstsq(system, right, driver="gelsd").solution.flatten()
    if bool((exact < 0).any()):
        return x
    exact = exact / exact.sum()
    worse = (matrix @ exact).max() > (matrix @ x).max()
    return x if bool(worse) else exact
