"""`python -m benchmarks [NAME] [its options]`; without a name, those that need nothing but this machine are run."""

from __future__ import annotations

import runpy
import sys

BENCHMARKS = {
    "equilibria": "the regularised equilibrium against each peer, cell by cell (minutes; extra `peers`)",
    "equilibrium_fuzz": "random games of every kind against the residual in extended precision (minutes)",
    "false_alarms": "the conformance kit on solvers that are right, many seeds (hours; keeps what it has done)",
    "adaptive": "queries of adaptive Nash-MP beside the fixed step's, on every kind of game (minutes)",
    "divergences": "a step, an improvement and an equilibrium under other divergences (seconds)",
    "winners": "the exact von Neumann winner beside other libraries (minutes)",
    "payoffs": "batched Nash-MP beside the memory's speed, and operators with a million responses (minutes)",
    "payoffs_gpu": "batched Nash-MP on a GPU beside its memory's bandwidth, eager and as CUDA graphs (a minute)",
    "llm_step": "a training step on a language model beside TRL 1.13.0's, and where its time goes (minutes)",
    "llm_gpu": "tokens a second, FLOP utilisation and memory at 0.1 to 3 B parameters, beside TRL (GPU; minutes)",
    "comparisons": "what compare costs beside its solvers, and two processes beside one (minutes)",
    "worst_case": "what compare ranks language models by, beside the truth, on games where it is known (a minute)",
    "start_up": "how long --help, list and import take, beside torch's own import",
    "memory": "peak memory of a step by solver and by how the networks are held (minutes)",
    "report_load": "how long a comparison's page takes to open in Chromium (needs a folder of compare)",
    "gpu_check": "gradients, resumed and sharded runs, LLM runs and a batched solve on a GPU, against the CPU",
    "vllm_check": "vLLM against the built-in generator: log-probabilities, new weights, speed (GPU, vLLM)",
    "decode_graphs": "generation with CUDA graphs, without, and by transformers' generate (a minute, GPU)",
    "cost": "the time that `train --estimate` predicts against steps of small models (minutes)",
    "training_warnings": "false alarms and hits of a training's warnings, on healthy runs and ill ones (minutes)",
    "multi_gpu_check": "DDP, FSDP2 and DeepSpeed on two GPUs and more: equal runs, and seconds (minutes)",
    "hh_harmless": "Nash-MP and Online DPO on real preferences (needs the data file; minutes)",
}
UNATTENDED = ("start_up", "gpu_check")


def main() -> int:
    if len(sys.argv) > 1 and sys.argv[1] in BENCHMARKS:
        name, sys.argv = sys.argv[1], [f"benchmarks {sys.argv[1]}", *sys.argv[2:]]
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
        return 0
    if len(sys.argv) > 1:
        listed = "\n".join(f"  {name:<17} {what}" for name, what in BENCHMARKS.items())
        print(f"usage: python -m benchmarks [NAME]\n{listed}", file=sys.stderr)
        return 0 if sys.argv[1] in ("-h", "--help") else 2
    for name in UNATTENDED:
        print(f"== {name}: {BENCHMARKS[name]}")
        sys.argv = [f"benchmarks {name}"]
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
