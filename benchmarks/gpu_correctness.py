"""What a GPU computes in training, beside the CPU: gradients, a run resumed after a kill, and engines of one process.

Part of `python -m benchmarks gpu_check`. Losses and gradients of one update are of the same weights and the same
responses, drawn on the CPU and replayed, and stand beside float64 on the CPU. Runs are `nlhf-zoo train` in processes of
their own, all at once: nothing of them is timed. One is run twice, for what a GPU does not repeat by itself; one is
killed in the middle and resumed; the others are engines (DDP, FSDP2, DeepSpeed) that have one device, and must come to
the losses of the plain run.
"""

from __future__ import annotations

import importlib.util
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import Longer
from benchmarks.multi_gpu_check import command, furthest, prepare, run, weights_apart
from nlhf_zoo.drive import configure
from nlhf_zoo.interfaces import Game, Rollout, RolloutEngine
from nlhf_zoo.llm.builtin_engine import BuiltinEngine
from nlhf_zoo.llm.objective import sampled_objective
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.llm.tokens import Decoding
from nlhf_zoo.registry import lookup
from nlhf_zoo.training.networks import NetworkPool

BETA = 0.1
LIMIT = 60.0
"""Seconds that a run may take; a few times what a GPU needs, with the start of its process."""
SOLVERS = ("nash_mp", "nash_md", "online_dpo")
PRECISIONS = {
    "float32": (torch.float32, False),
    "bf16 autocast": (torch.float32, True),
    "bf16 weights": (torch.bfloat16, False),
}


class Replayed(RolloutEngine):
    """Draws on the first call, and gives the same responses ever after."""

    def __init__(self) -> None:
        self.drawn: list[Rollout] = []

    def generate(self, requests: Any, prompts: Any, prompt_mask: Any, **how: Any) -> list[Rollout]:
        if not self.drawn:
            self.drawn = BuiltinEngine().generate(requests, prompts, prompt_mask, **how)
        return [Rollout(one.tokens.to(prompts.device), one.mask.to(prompts.device)) for one in self.drawn]


def gradients(device: str) -> list[dict[str, Any]]:
    """Relative errors of loss and gradient, by solver, device and precision, against float64 on the CPU."""
    rows: list[dict[str, Any]] = []
    for solver in SOLVERS:
        engine = Replayed()
        loss, gradient = _step(solver, "cpu", torch.float64, False, engine)
        for where in dict.fromkeys(("cpu", device)):
            for precision, (dtype, autocast) in PRECISIONS.items():
                if where != device and precision != "float32":
                    continue
                found, own = _step(solver, where, dtype, autocast, engine)
                rows.append(
                    {
                        "solver": solver,
                        "device": where,
                        "precision": precision,
                        "loss": float(abs(found - loss) / abs(loss)),
                        "gradient": float((own - gradient).norm() / gradient.norm()),
                    }
                )
    return rows


def _step(solver: str, device: str, dtype: torch.dtype, autocast: bool, engine: Replayed) -> tuple[Any, Any]:
    """The loss and the gradient of a first update, whose student has moved from its reference, in float64."""
    tokenizer = byte_tokenizer()
    student, reference = (small_llama(tokenizer, hidden=256, layers=4, heads=4, seed=0) for _ in range(2))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in student.parameters():
            weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=draw) if weight.ndim > 1 else 0
    pool = NetworkPool(student, reference.eval(), tokenizer, Decoding(48, engine=engine)).to(device, dtype)
    options = {"eta": 0.5 / BETA} if solver == "nash_md" else lookup("solvers", solver).practical(BETA)
    made = configure(solver, **options)
    game = Game(Longer(), pool.policy(pool.reference), BETA)
    state = pool.own_slots(made.init(game, pool.policy()))
    update = made.propose(game, state)
    pool.begin(made, game, state, update, 1)
    prompts = pool.policy().encode([f"prompt {'x' * i}" for i in range(8)])
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        generator = torch.Generator(device).manual_seed(0)
        loss = sampled_objective(pool.policy(), update, game, prompts, 2, generator).loss
    loss.backward()
    flat = [p.grad.double().cpu().flatten() for p in pool.student.parameters() if p.grad is not None]
    return loss.detach().double().cpu(), torch.cat(flat)


def runs(folder: Path, device: str, steps: int = 10) -> dict[str, Any]:
    """How far apart weights and losses are: of the same run twice, of a resumed one, and of each engine."""
    prepare(folder)
    common: dict[str, Any] = {"accelerator": device, "steps": steps, "checkpoint_every": 2, "show_audit": False}
    engines = ["ddp", "fsdp2"] + ["deepspeed_stage_2"] * bool(importlib.util.find_spec("deepspeed"))
    with ThreadPoolExecutor(8) as processes:
        begun = {name: processes.submit(run, folder, name, limit=LIMIT, **common) for name in ("alone", "again")}
        begun |= {name: processes.submit(run, folder, name, limit=LIMIT, strategy=name, **common) for name in engines}
        begun["resumed"] = processes.submit(_killed_and_resumed, folder, common)
        found = {name: one.result() for name, one in begun.items()}
    alone = found.pop("alone")
    if "failed" in alone:
        return {"alone": alone}
    for name, row in found.items():
        if "failed" not in row:
            count = len(row["losses"])
            row["loss_apart"] = furthest(alone["losses"][-count:], row["losses"])
            row["weights_apart"] = weights_apart(folder / "alone", folder / name)
    return {"alone": alone, **found}


def _killed_and_resumed(folder: Path, common: dict[str, Any]) -> dict[str, Any]:
    """Kill a run without warning once its second checkpoint is there, and resume it."""
    running = subprocess.Popen(
        command(folder, "resumed", **{**common, "steps": 10**6}),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + LIMIT
    try:
        while running.poll() is None and time.monotonic() < deadline:
            steps = [path.name for path in (folder / "resumed" / "checkpoints").glob("*.ckpt")]
            if len(steps) > 1:
                break
            time.sleep(0.02)
    finally:
        running.kill()
        running.wait()
    kept = sorted(path.name for path in (folder / "resumed" / "checkpoints").glob("*.ckpt"))
    return {"killed_with": kept, **run(folder, "resumed", limit=LIMIT, resume=True, **common)}
