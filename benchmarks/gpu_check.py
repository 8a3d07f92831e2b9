"""A GPU against the CPU: gradients, resumed and sharded runs, LLM runs by precision, a batched tabular solve.

    python -m benchmarks gpu_check --out benchmarks/gpu_check.json
    python -m benchmarks gpu_check --sections runs --device cpu     # the same code where there is no GPU

Sections: `gradients` and `runs` are those of `benchmarks.gpu_correctness`; `llm` trains a small model in every
precision and way to hold the networks; `tabular` solves 1024 games in float32 and float64. Without a CUDA device it
says so and ends with 0. Results belong in benchmarks/RESULTS.md, with date and device.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_correctness
from benchmarks.llm_step import now
from benchmarks.multi_gpu_check import prepare
from nlhf_zoo import Game, MatrixOracle, TabularPolicy, equilibrium, solve
from nlhf_zoo.metrics import kl_divergence
from nlhf_zoo.registry import lookup


def timed(work: Callable[[], Any], device: str, runs: int = 5) -> tuple[Any, float]:
    """The last answer, and the median of the seconds after one warm-up."""
    seconds: list[float] = []
    answer = None
    for _ in range(runs + 1):
        begun = now(device)
        answer = work()
        seconds.append(now(device) - begun)
    return answer, statistics.median(seconds[1:])


def tabular(games: int, size: int, steps: int, devices: Sequence[str]) -> list[dict[str, Any]]:
    matrix = lookup("games", "random")(seed=0, responses=size, games=games).matrix()
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(games, size, generator=generator, dtype=torch.float64)
    truth = equilibrium(Game(MatrixOracle(matrix), TabularPolicy(logits), 0.1)).log_probs
    rows: list[dict[str, Any]] = []
    for device in devices:
        for dtype in (torch.float32, torch.float64):
            oracle = MatrixOracle(matrix, dtype=dtype, device=device)
            game = Game(oracle, TabularPolicy(logits.to(device, dtype)), 0.1)
            target = TabularPolicy(truth.to(device, dtype))
            result, seconds = timed(
                lambda g=game, t=target: solve(g, "nash_mp", steps=steps, every=10**9, target=t), device
            )
            error = float(kl_divergence(truth, result.policy.log_probs.double().cpu()).max())
            rows.append({"device": device, "dtype": str(dtype), "seconds": seconds, "worst_kl_to_equilibrium": error})
    return rows


RUNS: list[tuple[str, dict[str, Any], Sequence[str]]] = [
    ("32-true", {}, ("nash_mp", "online_dpo")),
    ("bf16-mixed", {}, ("nash_mp", "online_dpo")),
    ("bf16-true", {}, ("nash_mp",)),
    ("32-true", {"frozen_device": "cpu"}, ("nash_mp",)),
    ("bf16-mixed", {"frozen_dtype": "bfloat16"}, ("nash_mp",)),
    ("bf16-mixed", {"lora_rank": 16, "frozen_dtype": "bfloat16", "gradient_checkpointing": True}, ("nash_mp",)),
    ("bf16-mixed", {"lora_rank": 16, "load_in_4bit": True}, ("nash_mp",)),
]
"""Precision, how the networks are held, and with which solvers."""


def llm(out: Path, device: str, steps: int) -> list[dict[str, Any]]:
    from nlhf_zoo.training.config import TrainConfig
    from nlhf_zoo.training.run import train

    prepare(out)
    runs = [("cpu", *RUNS[0]), *((device, *one) for one in RUNS if device != "cpu")]
    rows: list[dict[str, Any]] = []
    for number, (accelerator, precision, held, solvers) in enumerate(runs):
        for solver in solvers:
            row: dict[str, Any] = {"device": accelerator, "precision": precision, "held": held, "solver": solver}
            rows.append(row)
            if "load_in_4bit" in held and importlib.util.find_spec("bitsandbytes") is None:
                row["skipped"] = "bitsandbytes is not installed"
                continue
            try:
                config = TrainConfig(
                    model=str(out / "lm"),
                    prompts=str(out / "prompts.jsonl"),
                    oracle="callable",
                    oracle_options={"function": "nlhf_zoo.demo.language:judge"},
                    solver=solver,
                    out=out / f"{solver}_{number}",
                    steps=steps,
                    batch_size=16,
                    num_samples=4,
                    beta=0.02,
                    max_new_tokens=48,
                    learning_rate=3e-4,
                    accelerator=accelerator,
                    precision=precision,
                    logger="none",
                    progress=False,
                    show_audit=False,
                    **held,
                )
                row |= _said(train(config))
            except Exception as error:
                row["failed"] = f"{type(error).__name__}: {error}"[:500]
    return rows


def _said(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "seconds": result["seconds"],
        "tokens_per_second": result["tokens_generated"] / result["seconds"],
        "win_rate": result["win_rate"]["training"],
        "kl_to_reference": result["kl_to_reference"]["mean"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON, after every section")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--steps", type=int, default=8, help="training batches of each LLM run")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return
    warnings.simplefilter("ignore")
    figures: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    for section in options.sections:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            try:
                figures[section] = SECTIONS[section](Path(scratch), options)
            except Exception:
                figures[section] = {"failed": traceback.format_exc()[-2000:]}
        print(f"== {section} ({time.perf_counter() - begun:.0f} s)")
        _show(figures[section])
        if options.out:
            options.out.write_text(json.dumps(figures, indent=2) + "\n")


SECTIONS: dict[str, Callable[[Path, argparse.Namespace], Any]] = {
    "gradients": lambda _, given: gpu_correctness.gradients(given.device),
    "runs": lambda folder, given: gpu_correctness.runs(folder, given.device),
    "llm": lambda folder, given: llm(folder, given.device, given.steps),
    "tabular": lambda _, given: tabular(1024, 64, 200, ("cpu", "cuda") if given.device == "cuda" else ("cpu",)),
}


def _show(found: Any) -> None:
    """One row of a section a line."""
    rows = [{"run": name, **row} if isinstance(row, dict) else {name: row} for name, row in found.items()] if (
        isinstance(found, dict)
    ) else found  # fmt: skip
    for row in rows:
        print("  " + json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
