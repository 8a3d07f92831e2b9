"""Peak memory of a training step by solver and by how the networks are held; on a CPU a process for each cell.

Weights, gradients and optimizer state are counted tensor by tensor; "saved" is what the forward pass keeps for the
backward one. The peak is the process's own (CPU: of its resident set, above what it was before the model; CUDA:
torch.cuda.max_memory_allocated). Random weights: memory does not ask what a model knows.

python -m benchmarks memory
python -m benchmarks memory --shapes
python -m benchmarks memory --device cuda --budget 60 --out memory.json     # a larger model, some of the cells
python -m benchmarks memory --solvers nash_mp --hidden 768 --layers 12 --device cuda
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
import transformers  # noqa: F401  # before the processes part, so that each need not load it
from torch import Tensor

from nlhf_zoo import Game, Outcome, PreferenceOracle, QueryCount
from nlhf_zoo.drive import configure
from nlhf_zoo.errors import BadInput
from nlhf_zoo.llm.host import HostNetwork
from nlhf_zoo.llm.objective import measured_distances, sampled_objective
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.llm.tokens import Decoding
from nlhf_zoo.registry import lookup
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.memory import adapter_pool, load_pool
from nlhf_zoo.training.networks import NetworkPool

SOLVERS = ("nash_mp", "nash_prox", "nash_md", "online_dpo", "online_ipo", "adaptive_nash_mp")
HELD: Mapping[str, Mapping[str, Any]] = {
    "float32": {},
    "bf16 autocast": {"precision": "bf16-mixed"},
    "bf16 weights": {"precision": "bf16-true"},
    "recomputed": {"gradient_checkpointing": True},
    "frozen bf16": {"frozen_dtype": "bfloat16"},
    "frozen on CPU": {"frozen_device": "cpu"},
    "LoRA 16": {"lora_rank": 16},
    "LoRA 16, recomputed": {"lora_rank": 16, "gradient_checkpointing": True},
    "LoRA 16, bf16, recomputed": {"lora_rank": 16, "gradient_checkpointing": True, "frozen_dtype": "bfloat16"},
    "LoRA 16, 4 bit, recomputed": {"lora_rank": 16, "gradient_checkpointing": True, "load_in_4bit": True},
}
ON_GPU = [("nash_mp", held) for held in HELD] + [
    (solver, held) for held in ("float32", "LoRA 16") for solver in ("nash_prox", "nash_md", "online_dpo")
]
"""Cells in one go, where no others are asked for."""


class Longer(PreferenceOracle):
    """Prefers the text of more characters; costs no memory."""

    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        sizes = [torch.tensor([float(len(text)) for text in side]) for side in (first, second)]
        return torch.sigmoid(sizes[0] - sizes[1])


@attrs.frozen
class Cell:
    """Bytes of one run. `host` is what stays off the accelerator, `device` all other weights."""

    networks: int
    device: int
    host: int
    gradients: int
    optimizer: int
    saved: int
    peak: int


def cell(folder: str, solver_name: str, held: str, given: argparse.Namespace) -> Cell:
    if given.device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if given.device == "cuda" else _resident(reset=True)
    config = TrainConfig(
        model=folder, prompts="-", oracle="-", out="-", accelerator=given.device, **{**HELD[held], "beta": 0.01}
    )
    cls = lookup("solvers", solver_name)
    solver = configure(solver_name, **cls.practical(config.beta))
    pool = load_pool(config, byte_tokenizer(), Decoding(max_new_tokens=given.new_tokens))
    pool.to(given.device, torch.bfloat16 if config.precision == "bf16-true" else None)
    game = Game(Longer(), pool.policy(pool.reference), config.beta)
    state = pool.own_slots(solver.init(game, pool.policy()))
    optimizer = torch.optim.AdamW([p for p in pool.student.parameters() if p.requires_grad], lr=1e-6)
    prompts = pool.policy().encode([f"{i} " + "x" * (given.prompt_tokens - 3) for i in range(given.batch)])
    pool.student.train(config.gradient_checkpointing)
    generator = torch.Generator(given.device).manual_seed(0)
    saved = gradients = 0
    for _ in range(given.steps):
        update = solver.propose(game, state)
        batches = update.steps or config.inner_steps
        pool.begin(solver, game, state, update, batches)
        for _ in range(batches):
            mixed = torch.autocast(given.device, torch.bfloat16, enabled=config.precision == "bf16-mixed")
            with _Saved(pool) as seen, mixed:
                loss = sampled_objective(pool.policy(), update, game, prompts, 2, generator).loss
            loss.backward()
            saved = max(saved, seen.total)
            gradients = max(gradients, _bytes(p.grad for p in pool.student.parameters() if p.grad is not None))
            optimizer.step()
            optimizer.zero_grad()
        answer = pool.policy()
        found, _ = measured_distances(update, answer, prompts, generator=generator)
        state = solver.accept(game, state, Outcome(answer, QueryCount(), found))
        pool.settle(state)
    host = [network for network in [pool.reference, *pool.spares] if isinstance(network, HostNetwork)]
    at_rest = {id(p) for network in host for p in network.parameters()}
    working = [p for p in pool.parameters() if id(p) not in at_rest] + [c for n in host for c in n.copied]
    peak = (torch.cuda.max_memory_allocated() if given.device == "cuda" else _resident()) - before
    return Cell(
        networks=2 + len(pool.spares),
        device=_bytes(working),
        host=_bytes(p for network in host for p in network.parameters()),
        gradients=gradients,
        optimizer=_bytes(v for values in optimizer.state.values() for v in values.values() if isinstance(v, Tensor)),
        saved=saved,
        peak=peak,
    )


class _Saved:
    """Bytes of the tensors that a forward pass keeps for the backward one, weights apart."""

    def __init__(self, pool: NetworkPool) -> None:
        self._known = {p.untyped_storage().data_ptr() for p in pool.parameters()}
        self._sizes: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    @property
    def total(self) -> int:
        return sum(self._sizes.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __enter__(self) -> _Saved:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def _resident(*, reset: bool = False) -> int:
    """The highest resident set of this process so far (Linux), or since now with `reset`."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def _alone(arguments: tuple[Any, ...], device: str) -> Cell:
    """One cell; in a process of its own where the peak is the process's."""
    if device == "cuda":
        return cell(*arguments)
    from benchmarks.memory import cell as by_its_own_name  # `python -m` runs this file under another

    with multiprocessing.get_context("fork").Pool(1) as workers:
        return workers.apply(by_its_own_name, arguments)


def count_adapters() -> None:
    """Bytes of all weights of a run with adapters over those of its model, on the meta device: student, reference,
    and as many spares as `nash_mp` needs for its target, and for its two halves in full."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    half = Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        vocab_size=151936, tie_word_embeddings=True,
    )  # fmt: skip
    eight = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256,
    )  # fmt: skip
    shapes: dict[str, tuple[Any, Any]] = {
        "Qwen2.5 0.5 B": (Qwen2ForCausalLM, half),
        "Llama 3.1 8 B": (LlamaForCausalLM, eight),
    }
    print("| shape | M parameters | rank | 3 networks / one model | 4 networks / one model |")
    print("| --- | --- | --- | --- | --- |")
    for (name, (kind, shape)), rank in ((one, rank) for one in shapes.items() for rank in (8, 16, 64)):
        config = TrainConfig(model="-", prompts="-", oracle="-", out="-", lora_rank=rank)
        with torch.device("meta"):
            model = kind(shape)
            alone = sum(p.nbytes for p in model.parameters())
            pool = adapter_pool(model, config, None, Decoding())
            ratios: list[str] = []
            for _ in range(2):
                pool.spares.append(pool.make_spare(pool.student))
                ratios.append(f"{sum(p.nbytes for p in {id(p): p for p in pool.parameters()}.values()) / alone:.3f}")
        print(f"| {name} | {alone / 4e6:,.0f} | {rank} | {' | '.join(ratios)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solvers", nargs="*")
    parser.add_argument("--held", nargs="*", choices=list(HELD))
    parser.add_argument("--hidden", type=int, help="512 on a CPU, 1024 on a GPU")
    parser.add_argument("--layers", type=int, help="10 on a CPU, 24 on a GPU")
    parser.add_argument("--batch", type=int, default=2, help="prompts; two responses each")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="solver steps")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shapes", action="store_true", help="count adapters on the shapes of real models, and end")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no cell is begun")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    given = parser.parse_args()
    if given.shapes:
        count_adapters()
        return
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return
    chosen = [(solver, held) for solver in given.solvers or SOLVERS for held in given.held or HELD]
    if given.device == "cuda":
        chosen = chosen if given.solvers or given.held else ON_GPU
    given.hidden = given.hidden or (1024 if given.device == "cuda" else 512)
    given.layers = given.layers or (24 if given.device == "cuda" else 10)
    begun, rows = time.perf_counter(), list[dict[str, Any]]()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = byte_tokenizer()
        model = small_llama(tokenizer, hidden=given.hidden, layers=given.layers, heads=8, seed=0)
        one = sum(p.nbytes for p in model.parameters())
        model.save_pretrained(folder)
        del model
        print(f"{one / 4e6:.1f} M parameters, {one / 2**20:.0f} MiB in float32; MiB of each, on {given.device}\n")
        columns = ("device", "host", "gradients", "optimizer", "saved", "peak")
        print(f"| solver | held | networks | {' | '.join(columns)} | weights / one model |")
        print("| --- | --- |" + " --- |" * (len(columns) + 2))
        for solver, held in chosen:
            if time.perf_counter() - begun > given.budget:
                print(f"| `{solver}` | {held} | not begun: the time was up |")
                continue
            try:
                found = _alone((folder, solver, held, given), given.device)
            except BadInput as error:  # bitsandbytes is not there
                print(f"| `{solver}` | {held} | skipped: {error} |", flush=True)
                continue
            rows.append({"solver": solver, "held": held, **attrs.asdict(found)})
            sizes = " | ".join(f"{getattr(found, name) / 2**20:.0f}" for name in columns)
            ratio = (found.device + found.host) / one
            print(f"| `{solver}` | {held} | {found.networks} | {sizes} | {ratio:.2f} |", flush=True)
            if given.out:
                given.out.write_text(json.dumps({"parameter_bytes": one, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
