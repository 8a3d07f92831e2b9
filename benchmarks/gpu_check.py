"""A GPU against the CPU: a batched tabular solve in float32 and float64, and an LLM run in float32 and bf16.

    python -m benchmarks gpu_check --out benchmarks/gpu_check.json

Without a CUDA device it says so and ends with 0. Results belong in benchmarks/RESULTS.md, with date and device.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nlhf_zoo import Game, MatrixOracle, TabularPolicy, equilibrium, solve
from nlhf_zoo.demo import language
from nlhf_zoo.metrics import kl_divergence
from nlhf_zoo.registry import lookup


def timed(work: Callable[[], Any], runs: int = 5) -> tuple[Any, float]:
    """The last answer, and the median of the seconds after one warm-up."""
    seconds: list[float] = []
    answer = None
    for _ in range(runs + 1):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        answer = work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return answer, statistics.median(seconds[1:])


def tabular(games: int, size: int, steps: int) -> list[dict[str, Any]]:
    matrix = lookup("games", "random")(seed=0, responses=size, games=games).matrix()
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(games, size, generator=generator, dtype=torch.float64)
    truth = equilibrium(Game(MatrixOracle(matrix), TabularPolicy(logits), 0.1)).log_probs
    rows: list[dict[str, Any]] = []
    for device in ("cpu", "cuda"):
        for dtype in (torch.float32, torch.float64):
            oracle = MatrixOracle(matrix, dtype=dtype, device=device)
            game = Game(oracle, TabularPolicy(logits.to(device, dtype)), 0.1)
            target = TabularPolicy(truth.to(device, dtype))
            runs = 5 if device == "cuda" else 2
            result, seconds = timed(
                lambda g=game, t=target: solve(g, "nash_mp", steps=steps, every=10**9, target=t), runs
            )
            error = float(kl_divergence(truth, result.policy.log_probs.double().cpu()).max())
            rows.append({"device": device, "dtype": str(dtype), "seconds": seconds, "worst_kl_to_equilibrium": error})
    return rows


def llm(out: Path, steps: int) -> list[dict[str, Any]]:
    from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
    from nlhf_zoo.training.config import TrainConfig
    from nlhf_zoo.training.run import train

    tokenizer = byte_tokenizer()
    small_llama(tokenizer, hidden=256, layers=4, heads=4, seed=0).save_pretrained(out / "lm")
    tokenizer.save_pretrained(out / "lm")
    prompts = language.all_prompts()
    (out / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    rows: list[dict[str, Any]] = []
    runs: list[tuple[str, str, dict[str, Any]]] = [
        ("cpu", "32-true", {}),
        ("cuda", "32-true", {}),
        ("cuda", "bf16-mixed", {}),
        ("cuda", "bf16-true", {}),
        ("cuda", "32-true", {"frozen_device": "cpu"}),
        ("cuda", "bf16-mixed", {"frozen_dtype": "bfloat16"}),
        ("cuda", "bf16-mixed", {"lora_rank": 16, "frozen_dtype": "bfloat16", "gradient_checkpointing": True}),
        ("cuda", "bf16-mixed", {"lora_rank": 16, "load_in_4bit": True}),
    ]
    for number, (accelerator, precision, held) in enumerate(runs):
        for solver in ("nash_mp", "online_dpo"):
            folder = out / f"{solver}_{number}"
            result = train(
                TrainConfig(
                    model=str(out / "lm"),
                    prompts=str(out / "prompts.jsonl"),
                    oracle="callable",
                    oracle_options={"function": "nlhf_zoo.demo.language:judge"},
                    solver=solver,
                    out=folder,
                    steps=steps,
                    batch_size=16,
                    num_samples=4,
                    beta=0.02,
                    max_new_tokens=48,
                    learning_rate=3e-4,
                    accelerator=accelerator,
                    precision=precision,
                    logger="none",
                    **held,
                )
            )
            rows.append(
                {
                    "device": accelerator,
                    "precision": precision,
                    "held": held,
                    "solver": solver,
                    "seconds": result["seconds"],
                    "tokens_per_second": result["tokens_generated"] / result["seconds"],
                    "win_rate": result["win_rate"]["training"],
                    "kl_to_reference": result["kl_to_reference"]["mean"],
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--steps", type=int, default=30, help="training batches of each LLM run")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return
    with tempfile.TemporaryDirectory() as scratch:
        figures = {
            "date": datetime.date.today().isoformat(),
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "tabular 1024 games of 64, 200 steps": tabular(1024, 64, 200),
            "llm": llm(Path(scratch), options.steps),
        }
    text = json.dumps(figures, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
