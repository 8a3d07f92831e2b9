"""One run by every engine on two GPUs or more: equal losses, and seconds.

    python -m benchmarks multi_gpu_check --out multi_gpu_check.json

One process that reads as many batches a step as there are GPUs is the yardstick. DDP and FSDP2 must log the same
losses and save the same weights; DeepSpeed (pip install deepspeed) the same losses, and is skipped where it is not
installed. Then each is timed in bf16. With fewer than two GPUs it says so and ends with 0.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from nlhf_zoo.demo import language
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama


def prepare(folder: Path) -> None:
    """Write the model and the prompts that `run` trains with."""
    tokenizer = byte_tokenizer()
    small_llama(tokenizer, hidden=256, layers=4, heads=4, seed=0).save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    lines = [json.dumps({"prompt": prompt}) for prompt in language.all_prompts()]
    (folder / "prompts.jsonl").write_text("\n".join(lines))


def command(folder: Path, name: str, **changes: Any) -> list[str]:
    """The command line of one `nlhf-zoo train`."""
    config = {
        "model": str(folder / "lm"),
        "prompts": str(folder / "prompts.jsonl"),
        "oracle": "callable",
        "oracle_options": {"function": "nlhf_zoo.demo.language:judge"},
        "solver": "nash_mp",
        "out": str(folder / name),
        "steps": 10,
        "batch_size": 4,
        "num_samples": 4,
        "beta": 0.02,
        "max_new_tokens": 32,
        "learning_rate": 3e-4,
        "accelerator": "cuda",
        "logger": "csv",
        **changes,
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return [sys.executable, "-m", "nlhf_zoo", "train", "--config", str(file), "--json"]


def run(folder: Path, name: str, *, limit: float | None = None, **changes: Any) -> dict[str, Any]:
    """One `nlhf-zoo train` in processes of its own; what came of it, and the seconds by the clock.

    Args:
        limit: seconds after which it is ended, and has failed.
    """
    # Equal losses need float32 products: TF32 would differ by the order of its sums.
    env = {**os.environ, "NVIDIA_TF32_OVERRIDE": "0"}
    begun = time.perf_counter()
    line = command(folder, name, **changes)
    try:
        done = subprocess.run(line, env=env, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired as late:
        return {"failed": f"not done in {limit} s; {(late.stderr or b'').decode()[-1000:]}"}
    if done.returncode:
        return {"failed": done.stderr[-2000:]}
    found = json.loads(done.stdout)
    return {
        "seconds": found["seconds"],
        "with start": time.perf_counter() - begun,
        "tokens": found["tokens_generated"],
        "losses": losses(folder / name),
    }


def losses(out: Path) -> list[float]:
    (log,) = out.rglob("metrics.csv")
    with log.open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


def furthest(first: list[float], second: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


def weights_apart(one: Path, other: Path) -> float:
    first, second = (load_file(out / "policy" / "model.safetensors") for out in (one, other))
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="of losses, absolute")
    options = parser.parse_args()
    devices = torch.cuda.device_count()
    if devices < 2:
        print(f"{devices} CUDA devices here, and two are needed: nothing was checked")
        return 0
    engines = ["ddp", "fsdp2"]
    if importlib.util.find_spec("deepspeed"):
        engines += ["deepspeed_stage_1", "deepspeed_stage_2"]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder)
        alone = run(folder, "alone", accumulate=devices)
        if "failed" in alone:
            print(alone["failed"], file=sys.stderr)
            return 1
        for engine in engines:
            row = {"engine": engine, **run(folder, engine, strategy=engine, devices=devices)}
            if "failed" not in row:
                row["loss_apart"] = furthest(alone["losses"], row["losses"])
                row["weights_apart"] = weights_apart(folder / "alone", folder / engine)
            rows.append(row)
        for engine in engines:
            half = run(folder, f"{engine}_bf16", strategy=engine, devices=devices, precision="bf16-mixed")
            rows.append({"engine": engine, "precision": "bf16-mixed", **half})
    figures = {
        "device": torch.cuda.get_device_name(),
        "devices": devices,
        "torch": torch.__version__,
        "alone": alone,
        "rows": rows,
        "skipped": [] if len(engines) > 2 else ["deepspeed: not installed"],
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    bad = [row["engine"] for row in rows if "failed" in row or row.get("loss_apart", 0) > options.tolerance]
    print(f"not as one process: {', '.join(bad)}" if bad else "all as one process", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
