"""The peers of `benchmarks equilibria`, each a function to log-probabilities.

Arguments: the matrix P and the log-probabilities of the reference (numpy), beta, the duality gap to reach, and a
setting 0, 1 or 2, ever tighter, for what a peer's own tolerance has to be; the loosest that reaches the gap is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["NEEDS", "PEERS", "TOLD", "UNTOLD"]

NEEDS = {
    "hybr": "scipy",
    "newton_krylov": "scipy",
    "newton_krylov_untold": "scipy",
    "clarabel": "clarabel",
    "ecos": "ecos",
    "gambit": "pygambit",
    "openspiel": "open_spiel",
}
"""What each of them imports."""


def hybr(P: Any, log_reference: Any, beta: float, tol: float, setting: int) -> Any:
    from scipy.optimize import root

    answer = root(_residual(P, log_reference, beta), log_reference, method="hybr", tol=(1e-5, 1e-8, 1e-12)[setting])
    return answer.x


def newton_krylov(P: Any, log_reference: Any, beta: float, tol: float, setting: int) -> Any:
    from scipy.optimize import newton_krylov

    # Told what it cannot know: gap = 2 beta KL(pi || best response) is about beta times the variance of the residual.
    reach = (tol / beta) ** 0.5 * (1.0, 0.1, 0.01)[setting]
    return newton_krylov(_residual(P, log_reference, beta), log_reference, f_tol=reach, maxiter=1000)


def newton_krylov_untold(P: Any, log_reference: Any, beta: float, tol: float, setting: int) -> Any:
    """As a user can run it: its own f_tol first, then a tenth of that, and so on until the gap is reached."""
    import numpy as np
    from scipy.optimize import newton_krylov

    z, reach = log_reference, float(np.finfo(float).eps) ** (1 / 3)
    residual = _residual(P, log_reference, beta)
    for _ in range(6):
        z = newton_krylov(residual, z, f_tol=reach, maxiter=1000)
        p = np.exp(z - z.max())
        p /= p.sum()
        r = residual(z)
        r -= p @ r
        if 2 * beta * (np.log(p @ np.exp(-r)) + p @ r) <= tol:  # 2 beta KL(p || best response)
            break
        reach /= 10
    return z


def _residual(P: Any, log_reference: Any, beta: float) -> Callable[[Any], Any]:
    import numpy as np

    def residual(z: Any) -> Any:
        p = np.exp(z - z.max())
        p /= p.sum()
        u = P @ p
        return z - log_reference - (u - u @ p) / beta

    return residual


def clarabel(P: Any, log_reference: Any, beta: float, tol: float, setting: int) -> Any:
    accuracy = (1e-9, 1e-11, 1e-13)[setting]
    keywords = {"tol_gap_abs": accuracy, "tol_gap_rel": accuracy, "tol_feas": accuracy}
    return _conic(P, log_reference, beta, solver="CLARABEL", **keywords)


def ecos(P: Any, log_reference: Any, beta: float, tol: float, setting: int) -> Any:
    accuracy = (1e-9, 1e-11, 1e-13)[setting]
    return _conic(P, log_reference, beta, solver="ECOS", abstol=accuracy, reltol=accuracy, feastol=accuracy)


def _conic(P: Any, log_reference: Any, beta: float, **keywords: Any) -> Any:
    """min over p of beta KL(p || ref) + beta log sum_y ref(y) exp((P - 1/2) p / beta), which is half the gap."""
    import cvxpy as cp  # pyright: ignore[reportMissingImports]
    import numpy as np

    p = cp.Variable(len(P))
    skew, reference = P - 0.5, np.exp(log_reference)
    divergence = cp.sum(cp.rel_entr(p, reference))
    conjugate = cp.log_sum_exp(log_reference + skew @ p / beta)
    cp.Problem(cp.Minimize(divergence + conjugate), [cp.sum(p) == 1]).solve(**keywords)
    return np.log(np.maximum(p.value, 1e-300))


def gambit(P: Any, log_reference: Any, beta: float, tol: float, setting: int) -> Any:
    """Logit quantal response at lambda = 1 / beta; the uniform reference is built into it."""
    import numpy as np
    import pygambit  # pyright: ignore[reportMissingImports]

    game = pygambit.Game.from_arrays(P, P.T)
    first, faster = ((0.03, 1.1), (0.01, 1.05), (0.003, 1.02))[setting]
    found = pygambit.qre.logit_solve_lambda(game, lam=1 / beta, first_step=first, max_accel=faster)
    profile = found[0].profile if isinstance(found, list) else found.profile
    first_player = next(iter(game.players))
    row = [float(profile[strategy]) for strategy in first_player.strategies]
    return np.log(np.maximum(row, 1e-300))


def openspiel(P: Any, log_reference: Any, beta: float, tol: float, setting: int) -> Any:
    """Magnetic mirror descent with the dilated entropy, its own step size, until its own gap is below `tol`."""
    import numpy as np
    import pyspiel  # pyright: ignore[reportMissingImports]
    from open_spiel.python.algorithms import mmd_dilated  # pyright: ignore[reportMissingImports]

    game = pyspiel.create_matrix_game((2 * P - 1) / 2, (2 * P.T - 1) / 2)
    solver = mmd_dilated.MMDDilatedEnt(pyspiel.convert_to_turn_based(game), beta)
    for _ in range(10**6):
        solver.update_sequences()
        if solver.get_gap() <= tol * (1.0, 0.1, 0.01)[setting]:
            break
    return np.log(np.maximum(np.asarray(solver.current_sequences()[0])[1:], 1e-300))


PEERS = {f.__name__: f for f in (hybr, newton_krylov, newton_krylov_untold, clarabel, ecos, gambit, openspiel)}
TOLD, UNTOLD = "newton_krylov", "newton_krylov_untold"
