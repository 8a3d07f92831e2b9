"""Real vLLM against the built-in generator: log-probabilities, following the weights, tokens per second.

    pip install vllm
    python -m benchmarks vllm_check --model Qwen/Qwen2.5-0.5B-Instruct --out benchmarks/vllm_check.json

Needs a CUDA device and vLLM; says so and ends with 0 where one is missing. Ends with 1 where vLLM's log-probabilities
are further from the trainer's than --tolerance, before or after an update of the weights, with sleep or without.
Results belong in benchmarks/RESULTS.md, with date, device and vLLM's version.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from nlhf_zoo import CausalLMPolicy, RolloutEngine
from nlhf_zoo.llm import Decoding
from nlhf_zoo.registry import lookup

PROMPTS = ("Write a line about the sea.", "Name three colours.", "What is a fixed point?", "Say something kind.")


def policy(model: str, dtype: str, length: int, engine: RolloutEngine) -> CausalLMPolicy:
    decoding = Decoding(max_new_tokens=length, engine=engine)
    loaded = CausalLMPolicy.from_pretrained(model, decoding=decoding, dtype=getattr(torch, dtype))
    loaded.network.to("cuda")
    return loaded


def mismatch(mine: CausalLMPolicy, prompts: list[str], samples: int) -> float:
    """Mean |log-probability by the engine - by the policy| of a token drawn, in nats."""
    drawn = mine.sample(prompts, samples, torch.Generator("cuda").manual_seed(0))
    assert drawn.log_probs is not None
    with torch.no_grad():
        gap = (mine.token_log_prob(prompts, drawn).float() - drawn.log_probs).abs()
    return float(gap.sum() / drawn.mask.sum())


@torch.no_grad()
def disturb(mine: CausalLMPolicy) -> None:
    """An update much larger than one of training: stale weights would show."""
    generator = torch.Generator("cuda").manual_seed(1)
    for parameter in mine.network.parameters():
        noise = torch.randn(parameter.shape, generator=generator, device="cuda", dtype=torch.float32)
        parameter.add_((0.02 * parameter.float().std() * noise).to(parameter.dtype))


def speed(mine: CausalLMPolicy, prompts: list[str], samples: int) -> dict[str, float]:
    """Tokens per second, after a warm-up; and the seconds that new weights add to a generation."""
    mine.sample(prompts, samples, torch.Generator("cuda").manual_seed(1))
    seconds: list[float] = []
    tokens = 0
    for changed in (False, True):
        if changed:
            disturb(mine)
        torch.cuda.synchronize()
        begun = time.perf_counter()
        drawn = mine.sample(prompts, samples, torch.Generator("cuda").manual_seed(2))
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
        if not changed:
            tokens = int(drawn.mask.sum())
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / seconds[0],
        "seconds_more_after_an_update": seconds[1] - seconds[0],
    }


def check(args: argparse.Namespace) -> dict[str, Any]:
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(args.batch)]
    options: dict[str, Any] = {
        "dtype": args.dtype,
        "gpu_memory_utilization": args.memory,
        "max_model_len": args.context,
    }
    vllm = policy(args.model, args.dtype, args.length, lookup("engines", "vllm")(sleep=args.sleep, **options))
    found: dict[str, Any] = {"mismatch": mismatch(vllm, prompts, args.samples)}
    disturb(vllm)
    found["mismatch_after_an_update"] = mismatch(vllm, prompts, args.samples)
    found["vllm"] = speed(vllm, prompts, args.samples)
    builtin = policy(args.model, args.dtype, args.length, lookup("engines", "builtin")())
    found["builtin"] = speed(builtin, prompts, args.samples)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct", help="hub id or folder")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch", type=int, default=64, help="prompts")
    parser.add_argument("--samples", type=int, default=4, help="responses a prompt")
    parser.add_argument("--length", type=int, default=256, help="new tokens")
    parser.add_argument("--context", type=int, default=2048, help="max_model_len of vLLM")
    parser.add_argument("--memory", type=float, default=0.4, help="gpu_memory_utilization of vLLM")
    parser.add_argument("--sleep", action="store_true", help="give vLLM's memory back between generations")
    parser.add_argument("--tolerance", type=float, default=0.05, help="largest mean mismatch, in nats a token")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    args = parser.parse_args()
    missing = [
        *([] if torch.cuda.is_available() else ["a CUDA device"]),
        *([] if importlib.util.find_spec("vllm") else ["vLLM (pip install vllm)"]),
    ]
    if missing:
        print(f"vllm_check needs {' and '.join(missing)}; nothing was measured", file=sys.stderr)
        return 0
    import vllm  # pyright: ignore[reportMissingImports]

    found = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(),
        "versions": {"vllm": vllm.__version__, "torch": torch.__version__},
        "settings": {name: value for name, value in vars(args).items() if name != "out"},
        **check(args),
    }
    text = json.dumps(found, indent=2)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")
    worst = max(found["mismatch"], found["mismatch_after_an_update"])
    if not worst <= args.tolerance:
        print(f"mean mismatch {worst:.3g} nats a token exceeds {args.tolerance:g}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
