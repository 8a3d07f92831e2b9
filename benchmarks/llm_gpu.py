"""Training steps of language models of real shapes on a GPU: tokens a second, FLOP utilisation, memory, beside TRL.

    python -m benchmarks llm_gpu --out llm_gpu.json
    python -m benchmarks llm_gpu --cells 0.5B:nash_md 3B:nash_mp:lora --new-tokens 256 --no-trl
    python -m benchmarks llm_gpu --device cpu --tiny          # the same code where there is no GPU

Weights are random, in the shapes of a 0.1 B Llama and of Qwen2.5 0.5, 1.5 and 3 B; attention is torch's scaled dot
product. Both contenders hold and compute everything in bfloat16, optimizer state too (`full`), and get the same
prompts, scorer and number of responses, as in `llm_step`. `eager` is ours without CUDA graphs, `mixed` with float32
weights under autocast, `lora` with adapters of rank 16 on a frozen bfloat16 model. Random models hardly ever stop, so
responses have their full length; the policy begins as its reference, so nearly all drafts of a mixture are accepted.
Each phase begins and ends with the device idle.

Reported: median seconds of a step, and its phases; generated tokens a second of generation; positions with gradient a
second of forward and backward passes; the peak of torch's allocator; and model FLOP utilisation,

    FLOP of a pass = 2 N positions + 2 V H logits + 4 L A pairs,

N the weights without embedding and head, V the vocabulary, H the width, L the layers, A heads times head size, pairs
the (query, key) pairs of causal attention; three times that with gradient (twice with adapters, whose base gets none),
over the seconds and the device's dense bfloat16 peak by its data sheet. Only what the update needs is counted.
"training" is forward and backward passes; "step" has generation too, where each drawn token is read once by every
model of its policy. TRL's is of the same FLOP. Beside the seconds stand those that `train --estimate` says.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import attrs
import torch

from benchmarks.llm_shapes import HELD, LORA_RANK, SHAPES, DeviceModels, Work
from benchmarks.llm_step import BETA, YARDSTICK, Setting, options_of, run_ours, run_trl
from benchmarks.memory import Longer
from nlhf_zoo.drive import configure
from nlhf_zoo.interfaces import Game
from nlhf_zoo.llm.tokens import Decoding
from nlhf_zoo.training.cost import DEVICES, Held, Shape, seconds
from nlhf_zoo.training.estimate import passes
from nlhf_zoo.training.networks import SlotPolicy

GIB = 2**30
CELLS = [
    *("0.5B:online_dpo", "0.5B:nash_md", "0.5B:nash_mp", "1.5B:nash_mp", "3B:nash_mp:lora"),
    *("0.1B:online_dpo", "0.1B:nash_md", "0.1B:nash_mp", "0.5B:online_dpo:mixed", "0.5B:online_dpo:eager"),
]
TINY = ["tiny:online_dpo", "tiny:nash_md", "tiny:nash_mp:lora", "tiny:online_dpo:mixed", "tiny:online_dpo:eager"]


@attrs.frozen
class Cell:
    """One model shape, solver, and way to hold the networks."""

    size: str
    solver: str
    held: str = "full"

    @classmethod
    def of(cls, text: str) -> Cell:
        cell = cls(*text.split(":"))
        if cell.size not in SHAPES or cell.held not in HELD:
            raise SystemExit(f"{text}: give SHAPE:SOLVER[:HELD] of {', '.join(SHAPES)} and {', '.join(HELD)}")
        return cell


def measure(
    cell: Cell, contender: str, setting: Setting, device: str, ours: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One contender's run of one cell; TRL's beside `ours`, where that came to an end."""
    models = DeviceModels(cell.size, cell.held, setting, device)
    before = _reset_peak(device)
    work = _work(cell, models, setting)
    row: dict[str, Any] = {**attrs.asdict(cell), "contender": contender, "parameters": work.shape.parameters}
    if contender == "TRL":
        found = run_trl(YARDSTICK[cell.solver], setting, models, seed=0)
    else:
        precision = "bf16-mixed" if cell.held == "mixed" else "32-true"
        found = run_ours(cell.solver, setting, models, seed=0, counting=device == "cpu", precision=precision)
    median, peak = statistics.median(found.seconds), DEVICES[_kind(device)].half
    row |= {"seconds": found.seconds, "step": median, "counted": found.counted}
    if ours is not None:
        row |= {"mfu_step": sum(ours["flops"].values()) / median / peak, "ours_faster": median / ours["step"]}
    if found.scored is not None:
        phases = {name: spent / setting.steps for name, spent in found.phases.items()}
        trained = work.training(found.scored, setting.steps)
        generated = work.generation(found.counted["response tokens"])
        training = phases["forward"] + phases["backward"]
        row |= {
            "phases": phases | {"rest": statistics.fmean(found.seconds) - sum(phases.values())},
            "generated_per_second": found.counted["response tokens"] / phases["generation"],
            "trained_per_second": found.scored.positions[1] / setting.steps / training,
            "flops": {"training": trained, "generation": generated},
            "mfu_training": trained / training / peak,
            "mfu_step": (trained + generated) / median / peak,
            "estimated": _estimated(cell, work, device),
        }
    if device == "cuda":
        row["peak_gib"] = (torch.cuda.max_memory_allocated() - before) / GIB
    return row


def _work(cell: Cell, models: DeviceModels, setting: Setting) -> Work:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        shape = Shape.of(AutoModelForCausalLM.from_config(models.config))
    game = Game(Longer(), SlotPolicy(None, None, Decoding()), BETA)
    asked, networks = passes(configure(cell.solver, **options_of(cell.solver)), game, 1)
    numbers = 4 if cell.held == "mixed" else 2
    held = Held(networks, numbers, numbers)
    if cell.held == "lora":
        # In and out of q, k, v and o, and of the three of the feed-forward layer.
        attention = 4 * shape.hidden + 2 * (shape.heads + shape.kv_heads) * shape.head_size
        sides = attention + 3 * (shape.hidden + shape.inner)
        held = Held(networks, 4, 2, adapter=LORA_RANK * shape.layers * sides)
    return Work(shape, held, asked, setting)


def _estimated(cell: Cell, work: Work, device: str) -> dict[str, float]:
    """What `train --estimate` says of a step on this device."""
    rows, prompt, response = work.setting.batch * work.samples, work.setting.prompt_tokens, work.setting.new_tokens
    sizes: dict[str, Any] = {"rows": rows, "prompt": prompt, "response": response}
    sizes |= {"compute_bytes": 2, "captured": cell.held != "eager"}
    found = seconds(work.shape, work.held, work.passes, DEVICES[_kind(device)], **sizes)
    return attrs.asdict(found) | {"step": found.step}


def _kind(device: str) -> str:
    """Whose data sheet counts; an H100's, where there is no GPU."""
    return "h200" if device == "cuda" and "H200" in torch.cuda.get_device_name() else "h100"


def _reset_peak(device: str) -> int:
    """Forget what earlier runs held; the bytes that are in use now."""
    gc.collect()
    if device != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


HEADER = (
    "| model | solver | held | by | s a step (range) | generation, judging, forward, backward, optimizer, rest |"
    " generated/s | trained/s | MFU training, step | peak GiB | estimate: s a step |"
)


def line(row: dict[str, Any]) -> str:
    cells = [row[name] for name in ("size", "solver", "held", "contender")]
    cells.append(f"{row['step']:.3f} ({min(row['seconds']):.3f} to {max(row['seconds']):.3f})")
    if "phases" in row:
        names = ("generation", "judging", "forward", "backward", "optimizer", "rest")
        cells.append(", ".join(f"{row['phases'].get(name, 0):.3f}" for name in names))
        cells += [f"{row['generated_per_second']:,.0f}", f"{row['trained_per_second']:,.0f}"]
        cells.append(f"{row['mfu_training']:.1%}, {row['mfu_step']:.1%}")
    else:
        beside = f"{row['ours_faster']:.2f} times ours" if "ours_faster" in row else ""
        cells += [beside, "", "", f"{row['mfu_step']:.1%}" if "mfu_step" in row else ""]
    cells.append(f"{row['peak_gib']:.1f}" if "peak_gib" in row else "")
    cells.append(f"{row['estimated']['step']:.3f}" if "estimated" in row else "")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="SHAPE:SOLVER[:HELD]", help="in this order")
    parser.add_argument("--tiny", action="store_true", help="a few cells of a model of almost no size")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=16, help="prompts a step")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2, help="counted steps of each run, after one of warm-up")
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--trl-sizes", nargs="*", default=["tiny", "0.1B", "0.5B"], choices=list(SHAPES))
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no run is begun")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON, after every run")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return
    warnings.simplefilter("ignore")
    torch.set_float32_matmul_precision("highest")
    size = {"batch": 2, "prompt_tokens": 8, "new_tokens": 8} if given.tiny else {}
    asked = {name: getattr(given, name) for name in ("batch", "prompt_tokens", "new_tokens", "steps")}
    setting = Setting(**(asked | size), warmup=1)
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "setting": attrs.asdict(setting),
        "rows": [],
        "failed": {},
    }
    print(f"{figures['device']}, torch {torch.__version__}; {setting}\n{HEADER}\n|{' --- |' * 11}", flush=True)
    trl = not given.no_trl and importlib.util.find_spec("trl") is not None
    begun = time.perf_counter()
    for cell in map(Cell.of, TINY if given.tiny else given.cells):
        beside = trl and cell.solver in YARDSTICK and cell.held == "full" and cell.size in given.trl_sizes
        ours = None
        for contender in ("ours", "TRL") if beside else ("ours",):
            name = f"{':'.join(attrs.astuple(cell))} by {contender}"
            if time.perf_counter() - begun > given.budget:
                figures["failed"][name] = "not begun: the time was up"
                continue
            try:
                row = measure(cell, contender, setting, given.device, ours)
                ours = row
                figures["rows"].append(row)
                print(line(row), flush=True)
            except Exception as error:
                figures["failed"][name] = traceback.format_exc()[-3000:]
                print(f"{name} failed: {type(error).__name__}: {str(error)[:300]}", flush=True)
            if given.out:
                given.out.write_text(json.dumps(figures, indent=1) + "\n")
    for name, why in figures["failed"].items():
        print(f"{name}: {why.strip().splitlines()[-1][:300]}")


if __name__ == "__main__":
    main()
