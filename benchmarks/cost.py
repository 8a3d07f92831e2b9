"""The time that `nlhf-zoo train --estimate` predicts against training steps on this CPU, by model size and solver.

    python -m benchmarks cost

The machine is measured first, and not by the runs: its bandwidth by a read of 256 MB, its FLOP/s by a matrix product,
and what a layer's calls cost by a model of almost no width; the shares that a GPU is assumed to reach are 1. Seconds
are those of the processor, of one thread, so that other work on the machine disturbs less. Memory is checked in
tests/test_cost.py. Results belong in benchmarks/RESULTS.md, with date and device.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from nlhf_zoo.drive import configure
from nlhf_zoo.interfaces import Game, PreferenceOracle
from nlhf_zoo.llm import CausalLMPolicy, Decoding
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.cost import Device, Held, Shape, seconds
from nlhf_zoo.training.estimate import passes
from nlhf_zoo.training.module import NashTraining
from nlhf_zoo.training.run import train

SOLVERS: dict[str, dict[str, Any]] = {
    "nash_mp": {"eta": 0.1, "kappa": 0.1},
    "nash_md": {"eta": 0.25},
    "online_dpo": {},
    "online_ipo": {},
}
PROMPT, RESPONSE, PROMPTS, SAMPLES = 33, 32, 4, 2


class _Absent(PreferenceOracle):
    def probability(self, prompts: Any, first: Any, second: Any) -> Any:
        raise NotImplementedError


def even(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
    """A judge that costs nothing."""
    return [0.4 if a < b else 0.6 for a, b in zip(first, second, strict=True)]


def timed(work: Callable[[], Any], runs: int = 5) -> float:
    """The least of the processor's seconds after one warm-up: other work on the machine only adds."""
    work()
    return min(_once(work) for _ in range(runs))


def _once(work: Callable[[], Any]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def this_machine() -> Device:
    words, matrix = torch.rand(64 * 2**20), torch.rand(768, 768)
    bandwidth = words.nbytes / timed(words.sum)
    flops = 2 * len(matrix) ** 3 / timed(lambda: matrix @ matrix)
    layers = 8
    narrow = small_llama(byte_tokenizer(), hidden=8, layers=layers, heads=2, seed=0).eval()
    with torch.no_grad():
        calling = timed(lambda: narrow(torch.zeros(1, 1, dtype=torch.long)), runs=20) / layers
    return Device(0, bandwidth, flops, flops, 1, 1, reached=1, streamed=1, calling=calling)


@contextlib.contextmanager
def watched() -> Iterator[list[float]]:
    """The processor's seconds of each gradient step of the runs inside: generation, forward, backward, update."""
    found: list[float] = []
    original = NashTraining.optimizer_step

    def step(self: NashTraining, *args: Any, **kwargs: Any) -> None:
        found.append(_once(lambda: original(self, *args, **kwargs)))

    NashTraining.optimizer_step = step
    try:
        yield found
    finally:
        NashTraining.optimizer_step = original


def measured(folder: Path, solver: str, steps: int) -> float:
    """Seconds of a step, the least after the first."""
    config = TrainConfig(
        model=str(folder / "lm"),
        prompts=str(folder / "prompts.jsonl"),
        oracle="callable",
        oracle_options={"function": "benchmarks.cost:even"},
        solver=solver,
        solver_options=SOLVERS[solver],
        beta=0.1,
        out=folder / solver,
        steps=steps,
        batch_size=PROMPTS,
        num_samples=SAMPLES,
        max_new_tokens=RESPONSE,
        eval_size=2,
        accelerator="cpu",
        logger="none",
        progress=False,
    )
    with contextlib.redirect_stderr(io.StringIO()), watched() as found:
        train(config)
    return min(found[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device, tokenizer = this_machine(), byte_tokenizer()
    print(json.dumps({name: f"{getattr(device, name):.3g}" for name in ("bandwidth", "single", "calling")}))
    print("| parameters | solver | predicted s | measured s | predicted/measured |\n| --- | --- | --- | --- | --- |")
    for hidden in options.hidden:
        network = small_llama(tokenizer, hidden=hidden, layers=4, heads=4, seed=0)
        with torch.no_grad():
            network.lm_head.weight[2] = 0  # of all tokens the end is then as likely as any: few responses are short
        game = Game(_Absent(), CausalLMPolicy(network, tokenizer, Decoding()), 0.1)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            network.save_pretrained(folder / "lm")
            tokenizer.save_pretrained(folder / "lm")
            texts = [json.dumps({"prompt": f"{i:032d}"}) for i in range(32)]
            (folder / "prompts.jsonl").write_text("\n".join(texts), encoding="utf-8")
            for solver in options.solvers:
                work, held = passes(configure(solver, **SOLVERS[solver]), game, 1)
                rows = PROMPTS * SAMPLES
                expected = seconds(
                    Shape.of(network), Held(held), work, device, rows=rows, prompt=PROMPT, response=RESPONSE
                )
                took = measured(folder, solver, options.steps)
                parts = ", ".join(f"{part} {value:.3f}" for part, value in attrs.asdict(expected).items() if value)
                ratio = expected.step / took
                print(
                    f"| {Shape.of(network).parameters:,} | `{solver}` | {expected.step:.3f} ({parts}) | {took:.3f}"
                    f" | {ratio:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
