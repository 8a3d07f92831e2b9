"""Batched Nash-MP on a CUDA device beside its memory's bandwidth: payoffs, eager steps, CUDA graphs.

    python -m benchmarks payoffs_gpu --out payoffs_gpu.json

GB/s is the bytes of P read over time, two payoffs an iteration; the bandwidth is the largest figure of reading (a sum)
and of copying (read and written) a gigabyte. Kernels alone are timed inside a CUDA graph of many calls, by events;
100 iterations by the clock, between two synchronisations: `first` is the first run of a solver in a game, which records
the graphs, `iterates` and `solve` are later ones, `solver` is what `solve` itself says that its steps took (it measures
twice besides), `thousand` is 1,000 iterations by `solve`, `replay` is the graph alone.
`--tiny` runs the same code on the CPU, where nothing is measured. No part takes the others down when it fails.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import itertools
import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nlhf_zoo as nz
from nlhf_zoo import drive
from nlhf_zoo.drive import configure, iterates
from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import ReverseKL
from nlhf_zoo.oracles.products import matrix_vector
from nlhf_zoo.tabular import graphs, kernels
from nlhf_zoo.tabular.graphs import CudaRecorder, ReplayedSteps
from nlhf_zoo.tabular.recordings import Spares

# The most telling first, in case that time runs out.
LARGE = [(16, 1000), (4096, 128), (256, 1000)]
OTHERS = [(1, 10_000), (1024, 64), (256, 100), (4096, 10), (64, 2000)]
DTYPES = (torch.float64, torch.float32)
TINY = [(5, 3), (2, 40)]
ODD_SHAPES = [(1, 1), (7, 3), (2, 100), (3, 1001), (2, 2048)]
STEPS, MANY, BETA = 100, 1000, 0.1
# Bytes, columns and warps of a program; for short rows, and for long ones.
SWEEP = (
    ((16_384, 1024, 4), (8192, 1024, 4), (16_384, 1024, 8), (32_768, 1024, 8), (8192, 512, 4)),
    ((16_384, 1024, 4), (32_768, 1024, 8), (65_536, 1024, 8), (65_536, 2048, 16), (16_384, 512, 4), (32_768, 512, 4)),
)


class Bench:
    """One run: the device, the figures so far, and the time left."""

    def __init__(self, device: torch.device, tiny: bool, seconds: float) -> None:
        self.device, self.tiny, self.cuda = device, tiny, device.type == "cuda"
        self.until = time.perf_counter() + seconds
        self.figures: dict[str, Any] = {}

    def part(self, name: str, work: Callable[[], Any], needs: float = 0.0) -> Any:
        """Keep what `work` returns, or how it failed; leave it out where fewer than `needs` seconds are left."""
        begun = time.perf_counter()
        if begun + needs > self.until:
            self.figures[name] = "left out: no time"
        else:
            try:
                self.figures[name] = work()
            except Exception:
                self.figures[name] = {"failed": traceback.format_exc()}
        text = json.dumps(self.figures[name], default=str)
        print(
            f"== {name} ({time.perf_counter() - begun:.1f} s)\n{text if len(text) < 1500 else text[:1500]}", flush=True
        )
        return self.figures[name]

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def clock(self, work: Callable[[], Any], runs: int = 5) -> list[float]:
        """Seconds of each run, sorted, after one that does not count."""
        seconds: list[float] = []
        for _ in range(runs + 1):
            self.wait()
            begun = time.perf_counter()
            work()
            self.wait()
            seconds.append(time.perf_counter() - begun)
        return sorted(seconds[1:])

    def on_device(self, work: Callable[[], Any], calls: int = 20, runs: int = 5) -> float:
        """Seconds of one call on the device alone: median over replays of a graph of many calls."""
        work()
        if not self.cuda:
            return self.by_events(work, runs)
        self.wait()
        replay, _ = CudaRecorder(self.device).record(lambda: [work() for _ in range(calls)])
        return self.by_events(replay, runs) / calls

    def by_events(self, work: Callable[[], Any], runs: int = 5) -> float:
        if not self.cuda:
            return self.clock(work, runs)[runs // 2]
        work()
        seconds: list[float] = []
        for _ in range(runs):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1000)
        return statistics.median(seconds)


def machine(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = {"date": datetime.date.today().isoformat(), "torch": torch.__version__}
    if bench.cuda:
        properties = torch.cuda.get_device_properties(bench.device)
        found |= {"device": properties.name, "L2 bytes": getattr(properties, "L2_cache_size", None)}
        found["kernels"] = kernels.loaded(bench.device) is not None
        found["triton"] = importlib.metadata.version("triton")
    return found


def ceilings(bench: Bench) -> dict[str, float]:
    """GB/s of reading, and of copying (read and written), 2 GiB."""
    count = 1000 if bench.tiny else 1 << 28
    found: dict[str, float] = {}
    for dtype in DTYPES:
        big = torch.ones(count * 8 // (8 if dtype is torch.float64 else 4), dtype=dtype, device=bench.device)
        other = torch.empty_like(big)
        rows = big.view(-1, 1000 if bench.tiny else 4096)
        name = str(dtype)[6:]
        found[f"sum {name}"] = big.nbytes / bench.on_device(big.sum, 2) / 1e9
        found[f"sum of rows {name}"] = big.nbytes / bench.on_device(functools.partial(rows.sum, -1), 2) / 1e9
        copy = functools.partial(other.copy_, big)
        found[f"copy {name}"] = 2 * big.nbytes / bench.on_device(copy, 2) / 1e9
    found["bandwidth"] = max(found.values())
    return found


def random_batch(games: int, y: int, dtype: torch.dtype, device: torch.device) -> nz.MatrixOracle:
    generator = torch.Generator(device).manual_seed(0)
    upper = torch.rand(games, y, y, generator=generator, dtype=torch.float64, device=device).triu_(1)
    matrix = upper + (1 - upper).mT.tril(-1)
    matrix.diagonal(dim1=-2, dim2=-1).fill_(0.5)
    return nz.MatrixOracle(matrix, dtype=dtype)


def correct(bench: Bench) -> dict[str, float]:
    """Largest error of the kernels beside torch's own, relative, over awkward shapes; and beside float64."""
    worst: dict[str, float] = {}
    for dtype in DTYPES:
        generator = torch.Generator(bench.device).manual_seed(1)
        for games, y in ODD_SHAPES[: 4 if bench.tiny else None]:
            matrix, vector, *tables = (
                torch.rand(*shape, generator=generator, dtype=dtype, device=bench.device)
                for shape in ((games, y, y), *[(games, y)] * 3)
            )
            for _ in range(2):  # forwards and backwards
                got = matrix_vector(matrix, vector)
                true = (matrix.double() @ vector.double().unsqueeze(-1)).squeeze(-1)
                error = float(((got - true) / true).abs().max())
                worst[f"product {dtype}"] = max(error, worst.get(f"product {dtype}", 0.0))
            anchors = [(table.log_softmax(-1), 0.1 + index) for index, table in enumerate(tables)]
            for count in (1, 2):
                both = kernels.reverse_kl_improvement(tables[0], anchors[:count])
                if both is not None:
                    got, probs = both
                    apart = float(((probs - got.exp()) / probs).abs().max())
                    worst[f"exp {dtype}"] = max(apart, worst.get(f"exp {dtype}", 0.0))
                    true = ReverseKL().improve(tables[0].double(), [(t.double(), w) for t, w in anchors[:count]])
                    error = float((got - true).abs().max())
                    worst[f"improvement {dtype}"] = max(error, worst.get(f"improvement {dtype}", 0.0))
    return worst


@torch.no_grad()
def cell(bench: Bench, games: int, y: int, dtype: torch.dtype, bandwidth: float) -> dict[str, Any]:
    """One batch: GB/s of the payoff in each formulation and of 100 iterations, and their share of the bandwidth."""
    oracle = random_batch(games, y, dtype, bench.device)
    matrix = oracle.matrix()
    mu = torch.full((games, y), 1 / y, dtype=dtype, device=bench.device)
    row: dict[str, Any] = {"games": games, "Y": y, "dtype": str(dtype)[6:], "MB": matrix.nbytes / 1e6}
    anchors = [(mu.log(), 0.1), (mu.log(), 0.5)]
    forms: dict[str, Callable[[], Any]] = {
        "matmul": lambda: matrix @ mu.unsqueeze(-1),
        "row": lambda: mu.unsqueeze(-2) @ matrix.mT,
        "einsum": lambda: torch.einsum("gij,gj->gi", matrix, mu),
        "payoff": lambda: matrix_vector(matrix, mu),
        "payoff, improvement": lambda: kernels.reverse_kl_improvement(matrix_vector(matrix, mu), anchors),
    }
    module = kernels.loaded(bench.device) if bench.cuda else None
    if module is not None:
        forms["one way"] = lambda: kernels.launch_product(module, matrix, mu, 0)
    for name, form in forms.items():
        row[f"{name} GB/s"] = round(matrix.nbytes / bench.on_device(form, 20) / 1e9, 1)
    parts: dict[str, Callable[[], Any]] = {
        "improvement": lambda: kernels.reverse_kl_improvement(mu, anchors),
        "torch's improvement": lambda: ReverseKL().improve(mu, anchors),
        "exp": mu.exp,
        "clone": mu.clone,
    }
    for name, work in parts.items():
        row[f"{name} us"] = round(bench.on_device(work, 50) * 1e6, 2)
    row |= whole_runs(bench, oracle)
    row |= against_the_cpu(bench, oracle, min(games, max(1, 1000 // y)), y)
    for name, _ in list(row.items()):
        if name.endswith("GB/s"):
            row[name.replace("GB/s", "share")] = round(row[name] / bandwidth, 3)
    return row


def whole_runs(bench: Bench, oracle: nz.MatrixOracle) -> dict[str, Any]:
    game = nz.Game(oracle, beta=BETA)
    steps, many = (5, 10) if bench.tiny else (STEPS, MANY)
    runs = 3 if oracle.matrix().nbytes > 3e8 else 5
    found: dict[str, Any] = {}
    start = nz.TabularPolicy(_table(game.reference))  # an equilibrium that is given need not be found

    def solved(count: int = steps) -> nz.Result:
        return nz.solve(game, "nash_mp", steps=count, every=10**9, target=start)

    def first() -> None:
        graphs._spares = Spares()
        solved()

    def note(name: str, seconds: list[float], count: int = steps) -> None:
        found[f"{name} ms"] = [round(s * 1e3, 3) for s in seconds]
        found[f"{name} GB/s"] = round(2 * count * oracle.matrix().nbytes / statistics.median(seconds) / 1e9, 1)

    note("first", bench.clock(first, 3))
    last(game, steps)  # records the first step too
    note("iterates", bench.clock(lambda: last(game, steps), runs))
    note("solve", bench.clock(solved, runs))
    note("solver", [solved().seconds for _ in range(runs)])
    found["no steps ms"] = [round(s * 1e3, 3) for s in bench.clock(lambda: solved(0), 3)]
    bench.wait()
    begun = time.perf_counter()
    solved(many)
    bench.wait()
    note("thousand", [time.perf_counter() - begun], many)
    with eager():
        plain = _table(solved().policy)
        note("eager", bench.clock(solved, 2))
    found["graph equals eager"] = torch.equal(_table(solved().policy), plain)
    found["iterates equal eager"] = torch.equal(last(game, steps), plain)
    return found | replay_alone(bench, game, oracle.matrix().nbytes)


def replay_alone(bench: Bench, game: nz.Game, nbytes: int) -> dict[str, Any]:
    """The recorded step on the device, without anything around it; and how long it takes to come to it."""
    solver = configure("nash_mp")
    found: dict[str, Any] = {}
    graphs._spares = Spares()
    steps: Any = None
    for name in ("first", "second", "third"):
        steps = None  # hands its recordings on
        steps = drive._stepping(game, solver, None)
        assert isinstance(steps, ReplayedSteps)
        state = solver.init(game, game.reference)
        seconds: list[float] = []
        for _ in range(3):
            bench.wait()
            begun = time.perf_counter()
            state = steps(state)
            bench.wait()
            seconds.append(round((time.perf_counter() - begun) * 1e3, 3))
        found[f"steps of a {name} run ms"] = seconds
    recording = steps.recording
    if recording is None:
        return found | {"recorded": False}
    device = bench.by_events(lambda: [recording.replay() for _ in range(50)]) / 50
    found |= {"replay us": round(device * 1e6, 2), "replay GB/s": round(2 * nbytes / device / 1e9, 1)}
    for name, work in (("replay", recording.replay), ("step", recording.step), ("check", recording.ask)):
        bench.wait()
        begun = time.perf_counter()
        for _ in range(100):
            work()
        found[f"host us a {name}"] = round((time.perf_counter() - begun) * 1e4, 2)
    bench.wait()
    return found


def last(game: nz.Game, steps: int, solver: str = "nash_mp") -> Tensor:
    return _table(next(itertools.islice(iterates(game, configure(solver)), steps, None)).current)


def _table(policy: nz.Policy) -> Tensor:
    assert isinstance(policy, nz.TabularPolicy)
    return policy.log_probs


class replaced:  # noqa: N801  # reads as a statement
    """A module's name has another value inside."""

    def __init__(self, module: Any, name: str, value: Any) -> None:
        self.module, self.name, self.value = module, name, value

    def __enter__(self) -> None:
        self.before = getattr(self.module, self.name)
        setattr(self.module, self.name, self.value)

    def __exit__(self, *_: object) -> None:
        setattr(self.module, self.name, self.before)


def eager() -> replaced:
    return replaced(drive, "_recorder", lambda game: None)


def against_the_cpu(bench: Bench, oracle: nz.MatrixOracle, games: int, y: int) -> dict[str, Any]:
    """Largest difference of log-probabilities after 100 iterations, on some of the games, from the CPU's float64."""
    steps = 10 if y > 2000 or bench.tiny else STEPS
    some = oracle.matrix()[:games].double().cpu()
    true = last(nz.Game(nz.MatrixOracle(some), beta=BETA), steps)
    got = last(nz.Game(oracle, beta=BETA), steps)[:games].double().cpu()
    return {"largest difference from the CPU": float((got - true).abs().max()), "after": steps}


def sweep(bench: Bench, games: int, y: int, dtype: torch.dtype) -> dict[str, float]:
    """GB/s of the product, to and fro, by bytes, columns and warps of a program; and the improvement by its warps."""
    module = kernels.loaded(bench.device)
    matrix = torch.rand(games, y, y, dtype=dtype, device=bench.device)
    mu = torch.rand(games, y, dtype=dtype, device=bench.device)
    found: dict[str, float] = {}
    anchors = [(mu, 0.1), (mu, 0.5)]
    for entries in (64, 128, 256, 512):
        improve = functools.partial(kernels.launch_improvement, module, mu, anchors, entries)
        found[f"improvement, {entries} entries a warp, us"] = round(bench.on_device(improve, 50) * 1e6, 2)
    for nbytes, columns, warps in SWEEP[y > 5000]:
        turns = itertools.cycle((0, 1))

        def work(n: int = nbytes, c: int = columns, w: int = warps, way: Iterator[int] = turns) -> Tensor:
            return kernels.launch_product(module, matrix, mu, next(way), n, c, w)

        found[f"{nbytes} B, {columns} columns, {warps} warps"] = round(
            matrix.nbytes / bench.on_device(work, 20) / 1e9, 1
        )
    return found


def every_solver(bench: Bench) -> dict[str, Any]:
    """Each registered solver on a small batch: whether its steps were replayed, and whether they are the plain ones."""
    found: dict[str, Any] = {}
    for name in nz.solvers():
        solver = configure(name)
        if "table" not in solver.backends or time.perf_counter() > bench.until - 3:
            continue
        try:
            games = () if name == "adaptive_nash_mp" else (3,)
            found[name] = _as_played(bench, solver, games)
        except Exception as error:
            found[name] = f"failed: {type(error).__name__}: {error}"
    return found


def _as_played(bench: Bench, solver: nz.Solver, games: tuple[int, ...]) -> str:
    made: list[tuple[Any, Any]] = []
    replayed = False
    for plain in (False, True):
        oracle = random_batch(3, 7, torch.float64, bench.device)
        oracle = oracle if games else nz.MatrixOracle(oracle.matrix()[0])
        game = nz.Game(oracle, beta=0.3)
        step = drive._stepping(game, solver, None) if not plain else None
        state = solver.init(game, game.reference)
        for _ in range(12):
            state = drive._step(game, solver, state, None) if step is None else step(state, 4)
        replayed = replayed or (isinstance(step, ReplayedSteps) and step.recording is not None)
        made.append((state, oracle.queries))
    (one, counted), (other, count) = made
    tables = all(torch.equal(p.log_probs, other.policies[slot].log_probs) for slot, p in one.policies.items())
    same = tables and counted == count and (one.step, one.queries) == (other.step, other.queries)
    return f"{'replayed' if replayed else 'played'}, {'equal' if same else 'NOT EQUAL'}"


def bad_payoffs(bench: Bench) -> str:
    """A payoff that turns NaN in the middle of a run is named, before any state that it spoiled is handed out."""
    oracle = random_batch(3, 7, torch.float64, bench.device)
    states = iterates(nz.Game(oracle, beta=0.3), configure("nash_mp"))
    finite = [bool(_table(state.current).isfinite().all()) for state in itertools.islice(states, 20)]
    oracle.matrix()[0, 0, 1] = torch.nan
    try:
        finite.extend(bool(_table(state.current).isfinite().all()) for state in itertools.islice(states, 20))
    except BadInput as error:
        return f"raised, all before finite: {all(finite)}: {str(error)[:60]}"
    return "NOT RAISED"


def compiled(bench: Bench, games: int, y: int, dtype: torch.dtype) -> dict[str, float]:
    """What torch.compile makes of (P * v).sum(-1)."""
    matrix = torch.rand(games, y, y, dtype=dtype, device=bench.device)
    mu = torch.rand(games, y, dtype=dtype, device=bench.device)
    product = torch.compile(lambda p, v: (p * v.unsqueeze(-2)).sum(-1), dynamic=False)
    return {"GB/s": round(matrix.nbytes / bench.on_device(lambda: product(matrix, mu), 20) / 1e9, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--seconds", type=float, default=70, help="begin nothing that would end later")
    parser.add_argument("--tiny", action="store_true", help="the same code on the CPU, a few small games")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return
    bench = Bench(torch.device("cpu") if options.tiny else torch.device("cuda", 0), options.tiny, options.seconds)
    if options.tiny:
        _without_a_device()

    def keep() -> None:
        if options.out:
            options.out.write_text(json.dumps(bench.figures, indent=1, default=str) + "\n")

    bench.part("machine", lambda: machine(bench))
    speeds = bench.part("ceilings", lambda: ceilings(bench))
    bandwidth = speeds.get("bandwidth", 3350.0) if isinstance(speeds, dict) else 3350.0
    bench.part("errors of the kernels", lambda: correct(bench))
    keep()

    def cells(shapes: list[tuple[int, int]], needs: float) -> None:
        for (games, y), dtype in itertools.product(shapes, DTYPES):
            name = f"{games} x {y} {str(dtype)[6:]}"
            bench.part(name, lambda g=games, n=y, d=dtype: cell(bench, g, n, d, bandwidth), needs)
            keep()

    cells(TINY if options.tiny else LARGE, 3)
    bench.part("bad payoffs", lambda: bad_payoffs(bench))

    def sweeps(shape: tuple[int, int], needs: float) -> None:
        for dtype in DTYPES:
            bench.part(
                f"sweep {shape[0]} x {shape[1]} {str(dtype)[6:]}", lambda d=dtype: sweep(bench, *shape, d), needs
            )

    if bench.cuda:
        sweeps(LARGE[0], 2)
    bench.part("every solver", lambda: every_solver(bench), 4)
    keep()
    if bench.cuda:
        bench.part("torch.compile 16 x 1000", lambda: compiled(bench, 16, 1000, torch.float32), 9)
        cells(OTHERS[:1], 4)
        sweeps(OTHERS[0], 2)
        cells(OTHERS[1:], 3)
    keep()
    table(bench.figures)


def _without_a_device() -> None:
    """A tape in place of CUDA graphs, and torch's products, which are on it, in place of numpy's."""
    from nlhf_zoo.oracles import products
    from tests.tape import Tape

    tape = Tape()
    drive._recorder = lambda game: tape
    products._plain = lambda matrix, vector: False


def table(figures: dict[str, Any]) -> None:
    names = ("payoff", "eager", "first", "iterates", "solve", "solver", "thousand", "replay")
    print(f"\n{'games x Y':>16}{'dtype':>9}{'MB':>8} | share of the bandwidth: " + "".join(f"{n:>10}" for n in names))
    for row in figures.values():
        if isinstance(row, dict) and "games" in row:
            shares = "".join(f"{row.get(f'{n} share', float('nan')):>10.1%}" for n in names)
            label = f"{row['games']:,} x {row['Y']:,}"
            print(f"{label:>16}{row['dtype']:>9}{row['MB']:>8.1f} | {'':>24}{shares}")


if __name__ == "__main__":
    main()
