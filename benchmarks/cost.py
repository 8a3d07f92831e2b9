"""The cost model of `nlhf-zoo train --estimate` against a clock: seconds of generation and of training on this CPU.

    python -m benchmarks cost

The device's bandwidth and FLOP/s are measured first, by a read of 256 MB and by a matrix product; the shares that the
model assumes a GPU to reach are set to 1. Memory is checked in tests/test_cost.py. Results belong in
benchmarks/RESULTS.md, with date and device.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from nlhf_zoo.llm import CausalLMPolicy, Decoding
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.training.cost import Device, Passes, Shape, seconds


def timed(work: Callable[[], Any], runs: int = 5) -> float:
    """The least of the seconds after one warm-up: other work on the machine only adds."""
    work()
    found: list[float] = []
    for _ in range(runs):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return min(found)


def this_machine() -> Device:
    words = torch.rand(64 * 2**20)
    side = 1024
    matrix = torch.rand(side, side)
    bandwidth = words.nbytes / timed(words.sum)
    flops = 2 * side**3 / timed(lambda: matrix @ matrix)
    return Device(0, bandwidth, flops, flops, 1, 1, reached=1, streamed=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--new-tokens", type=int, default=64)
    options = parser.parse_args()
    device, tokenizer = this_machine(), byte_tokenizer()
    print(json.dumps({"bandwidth": device.bandwidth, "flops": device.single, "threads": torch.get_num_threads()}))
    for hidden in options.hidden:
        network = small_llama(tokenizer, hidden=hidden, layers=4, heads=4, seed=0)
        # Without an end every response has the full length, and the work is known.
        allowed = tuple(range(3, len(tokenizer)))
        policy = CausalLMPolicy(network, tokenizer, Decoding(options.new_tokens, allowed_tokens=allowed))
        prompts = policy.encode(["x" * 31] * 8)
        drawn = policy.sample(prompts, 2, torch.Generator().manual_seed(0))

        def train(policy: CausalLMPolicy = policy, prompts: Any = prompts, drawn: Any = drawn) -> None:
            policy.log_prob(prompts, drawn).sum().backward()

        expected = seconds(
            Shape.of(network), Passes(1, 1, 0, 1), device, rows=16, prompt=32, response=options.new_tokens
        )
        generating = timed(lambda p=policy, x=prompts: p.sample(x, 2, torch.Generator().manual_seed(0)), runs=3)
        training = timed(train, runs=3)
        row = {
            "parameters": Shape.of(network).parameters,
            "generating": {"measured": generating, "modelled": expected.generating},
            "training": {"measured": training, "modelled": expected.training},
        }
        row["measured over modelled"] = {
            key: row[key]["measured"] / row[key]["modelled"] for key in ("generating", "training")
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
