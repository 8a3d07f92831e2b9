"""Generation with CUDA graphs, without, and by transformers' own `generate`: tokens per second, and the same logits?

    python -m benchmarks decode_graphs --out benchmarks/decode_graphs.json

Random weights in the shapes of Qwen2.5 0.5B and 1.5B, made on the device in bfloat16; no response ends before its
length. "off" and "on" draw with the same seed. Each part is written to --out as soon as it is there, and one that fails
loses only itself. Ends with 1 where a part that checks logits or tokens found others. Without a CUDA device it says so
and ends with 0; --device cpu --tiny runs the same code on a small model, where the step is not captured. Results belong
in benchmarks/RESULTS.md, with date and device.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.llm.builtin_engine import PATIENCE, BuiltinEngine
from nlhf_zoo.llm.generation import Request, generate
from nlhf_zoo.llm.host import copy_weights
from nlhf_zoo.llm.reading import GrowingReader, read_prompts
from nlhf_zoo.llm.static_reading import Capture
from nlhf_zoo.llm.step_graphs import StepGraphs

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 128, "vocab_size": 300},
    "0.5B": {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
             "intermediate_size": 4864, "vocab_size": 151936},
    "1.5B": {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
             "intermediate_size": 8960, "vocab_size": 151936},
}  # fmt: skip


class Uncaptured:
    """Stands for `Capture` where there is no CUDA: every replay is refused, and steps are run as they are."""

    bytes = 0

    def __init__(self, device: torch.device) -> None:
        pass

    def __call__(self, step: Any) -> Any:
        raise RuntimeError("no CUDA device")


class Setting:
    """Models of one shape and the prompts that they go on with."""

    def __init__(self, shape: str, device: str, dtype: torch.dtype, prompt: int, length: int) -> None:
        self.shape, self.device, self.dtype, self.length = shape, torch.device(device), dtype, length
        self.prompt = prompt
        self.vocabulary = SHAPES[shape]["vocab_size"]

    def model(self, seed: int) -> Any:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(
            "qwen2", **SHAPES[self.shape], max_position_embeddings=2048, tie_word_embeddings=True
        )
        torch.manual_seed(seed)
        with self.device:
            return AutoModelForCausalLM.from_config(config, dtype=self.dtype).eval().requires_grad_(False)

    def prompts(self, rows: int) -> tuple[Tensor, Tensor]:
        """Tokens and mask (rows, S), padded on the left by up to a quarter."""
        draw = torch.Generator(self.device).manual_seed(1)
        tokens = torch.randint(5, self.vocabulary, (rows, self.prompt), generator=draw, device=self.device)
        padding = torch.arange(rows, device=self.device) % (self.prompt // 4)
        mask = torch.arange(self.prompt, device=self.device) >= padding[:, None]
        return tokens * mask, mask


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(device: torch.device, work: Callable[[], Any]) -> tuple[Any, float]:
    synchronize(device)
    begun = time.perf_counter()
    answer = work()
    synchronize(device)
    return answer, time.perf_counter() - begun


def opened(setting: Setting) -> StepGraphs:
    kind = setting.device.type
    return StepGraphs(share=0.5, kinds=(kind,), capture=Capture if kind == "cuda" else Uncaptured)


def draw(
    setting: Setting,
    requests: Sequence[Request],
    prompts: tuple[Tensor, Tensor],
    graphs: StepGraphs | None,
    *,
    length: int | None = None,
) -> list[Tensor]:
    options = {} if graphs is None else {"open_reader": graphs.reader}
    drawn = generate(
        requests, *prompts, num_samples=1, max_new_tokens=length or setting.length, stop=(), padding=0,
        temperature=1.0, allowed=None, generator=torch.Generator(setting.device).manual_seed(2),
        patience=PATIENCE, **options,
    )  # fmt: skip
    return [tokens for tokens, _ in drawn]


def alone(model: Any) -> Request:
    return Request(((model, 1.0),))


def speed(setting: Setting, model: Any, rows: int, requests: Sequence[Request] | None = None) -> dict[str, Any]:
    """Tokens per second without graphs and with them; seconds of the first generation, which captures."""
    wanted = requests or [alone(model)]
    prompts = setting.prompts(rows)
    count = len(wanted) * rows * setting.length
    found: dict[str, Any] = {"tokens": count}
    draw(setting, wanted, prompts, None, length=8)
    off, seconds = seconds_of(setting.device, lambda: draw(setting, wanted, prompts, None))
    found["off"] = {"seconds": seconds, "tokens_per_second": count / seconds}
    graphs = opened(setting)
    _, first = seconds_of(setting.device, lambda: draw(setting, wanted, prompts, graphs))
    times = [seconds_of(setting.device, lambda: draw(setting, wanted, prompts, graphs)) for _ in range(2)]
    on, seconds = min(times, key=lambda pair: pair[1])
    found["on"] = {
        "seconds": seconds,
        "tokens_per_second": count / seconds,
        "seconds_to_capture": first - seconds,
        "megabytes_held": graphs.bytes / 1e6,
        "megabytes_of_graphs": sum(one.captured for held in graphs._held.values() for one in held) / 1e6,
        "captured": sum(len(one.steps) for held in graphs._held.values() for one in held),
    }
    found["times_faster"] = found["off"]["seconds"] / seconds
    # Rounding differs, and texts part at the first token that it decides.
    found["same_tokens_sampled"] = share_of_same(on, off)
    return found


def share_of_same(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    pairs = zip(one, other, strict=True)
    return float(torch.cat([(a == b).flatten().float() for a, b in pairs]).mean())


@torch.no_grad()
def exactness(
    setting: Setting, model: Any, rows: int, tokens: int = 48, graphs: StepGraphs | None = None
) -> dict[str, Any]:
    """Logits of replays beside those of the growing cache and of uncaptured steps, on the same tokens."""
    prompts, mask = setting.prompts(rows)
    mask, whose = mask.long(), torch.arange(rows, device=setting.device)
    replayed = (graphs or opened(setting)).reader(model, prompts, mask, whose, tokens)
    stepped = StepGraphs(share=0.5, kinds=(setting.device.type,), capture=Uncaptured)
    uncaptured = stepped.reader(model, prompts, mask, whose, tokens)
    growing = GrowingReader.of_prompts(model, prompts, mask, whose)
    last, position = prompts[:, -1:], mask.sum(-1, keepdim=True) - 1
    draws = torch.Generator(setting.device).manual_seed(3)
    worst, mean, captured, spread, apart = 0.0, 0.0, 0.0, 0.0, 0.0
    for _ in range(tokens):
        wanted = growing.read(last, position).float()
        found, plain = replayed.read(last, position).float(), uncaptured.read(last, position).float()
        worst = max(worst, float((found - wanted).abs().max()))
        captured = max(captured, float((found - plain).abs().max()))
        apart += float((found - plain).abs().mean()) / tokens
        mean, spread = mean + float((found - wanted).abs().mean()) / tokens, float(wanted.std())
        last = torch.randint(5, setting.vocabulary, (rows, 1), generator=draws, device=setting.device)
        position = position + 1
    half = setting.dtype == torch.bfloat16 or torch.is_autocast_enabled(setting.device.type)
    replays = len(getattr(replayed, "buffers").steps) if hasattr(replayed, "buffers") else 0  # noqa: B009  # of a StaticReader
    replayed.close()
    return {
        "largest_difference_to_growing": worst,
        "mean_difference_to_growing": mean,
        "largest_difference_to_uncaptured": captured,
        "mean_difference_to_uncaptured": apart,
        "standard_deviation_of_logits": spread,
        "reader": f"{type(replayed).__name__}, {replays} captured",
        # Kernels round differently, and of bfloat16 the largest of millions of differences says little.
        "right": max(mean, apart) < (0.02 if half else 1e-4) * spread,
    }


@torch.no_grad()
def follows_weights(setting: Setting, model: Any, rows: int) -> dict[str, Any]:
    """`exactness` after an update in place, of graphs that were captured before it."""
    graphs, (prompts, mask) = opened(setting), setting.prompts(rows)
    exactness(setting, model, rows, 4, graphs)
    before = read_prompts(model, prompts, mask.long()).logits[:, -1].float()
    for parameter in model.parameters():
        parameter.add_(0.3 * parameter.float().std().to(parameter) * torch.randn_like(parameter))
    moved = float((read_prompts(model, prompts, mask.long()).logits[:, -1].float() - before).abs().mean())
    captured = sum(len(one.steps) for held in graphs._held.values() for one in held)
    return {**exactness(setting, model, rows, 16, graphs), "logits_moved_by": moved, "captured": captured}


@torch.no_grad()
def parts_of_a_token(setting: Setting, model: Any, rows: int) -> dict[str, Any]:
    """Milliseconds of one token's parts: the step replayed, the step with a growing cache, and the draw."""
    from nlhf_zoo.llm.speakers import Rules

    prompts, mask = setting.prompts(rows)
    mask, whose = mask.long(), torch.arange(rows, device=setting.device)
    rules = Rules(9, torch.tensor([1], device=setting.device), 0, 1.0, None, None, PATIENCE)
    found: dict[str, Any] = {}
    graphs = opened(setting)
    readers = {
        "replayed": graphs.reader(model, prompts, mask, whose, 64),
        "growing": GrowingReader.of_prompts(model, prompts, mask, whose),
    }
    position = mask.sum(-1, keepdim=True)

    def several(work: Callable[[], Any], times: int = 20) -> float:
        work()
        return 1e3 * seconds_of(setting.device, lambda: [work() for _ in range(times)])[1] / times

    for name, reader in readers.items():
        reader.read(prompts[:, -1:], position - 1)
        logits = reader.read(prompts[:, -1:], position)[:, -1]
        found[f"{name}_ms"] = several(functools.partial(reader.read, prompts[:, -1:], position))
        found["draw_ms"] = several(functools.partial(rules.draw, logits))
        reader.close()
    return found


@torch.no_grad()
def transformers_speed(setting: Setting, model: Any, rows: int, **options: Any) -> dict[str, Any]:
    prompts, mask = setting.prompts(rows)
    how = {
        "attention_mask": mask.long(), "do_sample": True, "top_k": 0, "eos_token_id": None, "pad_token_id": 0,
        **options,
    }  # fmt: skip
    model.generate(prompts, max_new_tokens=4, **how)
    _, seconds = seconds_of(setting.device, lambda: model.generate(prompts, max_new_tokens=setting.length, **how))
    return {"seconds": seconds, "tokens_per_second": rows * setting.length / seconds}


def engine(setting: Setting, model: Any, rows: int) -> dict[str, Any]:
    """The engine as a training uses it, twice."""
    made, prompts = BuiltinEngine(), setting.prompts(rows)

    def once() -> Any:
        return made.generate(
            [((model, 1.0),)], *prompts, num_samples=2, max_new_tokens=setting.length, stop=(1,), padding=0,
            temperature=1.0, allowed=None, generator=torch.Generator(setting.device).manual_seed(2),
        )  # fmt: skip

    return {f"seconds_{number}": seconds_of(setting.device, once)[1] for number in ("first", "second")}


class Report:
    """What was found, part by part; written at once, and a part that fails is written down as failed."""

    def __init__(self, out: Path | None, limit: float, only: Sequence[str], head: dict[str, Any]) -> None:
        self.found: dict[str, Any] = {**head, "parts": {}}
        self._only = only
        self._out, self._limit, self._begun = out, limit, time.perf_counter()
        self.wrong = False

    def part(self, name: str, work: Callable[..., dict[str, Any]], *args: Any, **options: Any) -> None:
        if self._only and not any(words in name for words in self._only):
            return
        spent = time.perf_counter() - self._begun
        if spent > self._limit:
            self._note(name, {"left_out": f"{spent:.0f} s were spent"})
            return
        try:
            found = work(*args, **options)
        except Exception as error:
            traceback.print_exc()
            found = {"failed": f"{type(error).__name__}: {error}"[:500]}
        self.wrong |= found.get("right") is False
        self._note(name, {**found, "at_second": round(time.perf_counter() - self._begun, 1)})

    def _note(self, name: str, found: dict[str, Any]) -> None:
        self.found["parts"][name] = found
        print(f"{name}: {json.dumps(found)}", flush=True)
        if self._out is not None:
            self._out.write_text(json.dumps(self.found, indent=2) + "\n")


def mixed_precision(work: Callable[..., dict[str, Any]], setting: Setting, model: Any, rows: int) -> dict[str, Any]:
    with torch.autocast(setting.device.type, torch.bfloat16):
        try:
            return work(setting, model, rows)
        finally:
            torch.clear_autocast_cache()


def measure(report: Report, setting: Setting, sizes: Sequence[int]) -> None:
    """Plain generation at each of two sizes."""
    model, shape = setting.model(0), setting.shape
    report.part(f"{shape}, {sizes[0]} rows: logits", exactness, setting, model, sizes[0])
    for rows in sizes:
        report.part(f"{shape}, {rows} rows: speed", speed, setting, model, rows)
    report.part(f"{shape}, {sizes[1]} rows: parts of a token", parts_of_a_token, setting, model, sizes[1])


def measure_more(report: Report, setting: Setting, few: int, many: int) -> None:
    """Mixtures, updates, transformers' own generation, and mixed precision."""
    model, other, shape = setting.model(0), setting.model(0), setting.shape
    report.part(f"{shape}, {few} rows: new weights", follows_weights, setting, other, few)
    copy_weights(model, other)
    mixed = [alone(model), Request(((model, 0.875), (other, 0.125)))]
    report.part(f"{shape}, {few} rows + a mixture: speed", speed, setting, model, few, mixed)
    del other, mixed
    name = f"{shape}, {many} rows: transformers' generate"
    report.part(name, transformers_speed, setting, model, many)
    options = {"cache_implementation": "static", "disable_compile": True}
    report.part(f"{name}, a static cache", transformers_speed, setting, model, many, **options)
    report.part(f"{shape}, {many} rows: the engine", engine, setting, model, many)


def measure_mixed_precision(report: Report, setting: Setting, rows: int) -> None:
    model, name = setting.model(0), f"{setting.shape}, {rows} rows, bf16-mixed"
    report.part(f"{name}: logits", mixed_precision, exactness, setting, model, rows)
    report.part(f"{name}: speed", mixed_precision, speed, setting, model, rows)
    report.part(f"{setting.shape}, {rows} rows, float32: new weights", follows_weights, setting, model, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="a small model and short texts")
    parser.add_argument("--shapes", nargs="+", default=["0.5B", "1.5B"], choices=list(SHAPES))
    parser.add_argument("--rows", type=int, nargs=2, default=[16, 64])
    parser.add_argument("--prompt", type=int, default=128, help="prompt tokens")
    parser.add_argument("--length", type=int, default=128, help="new tokens")
    parser.add_argument("--seconds", type=float, default=70, help="begin no part after so many")
    parser.add_argument("--only", nargs="+", default=[], help="parts whose names have one of these words in them")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("decode_graphs needs a CUDA device; nothing was measured", file=sys.stderr)
        return 0
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("nlhf_zoo").setLevel(logging.INFO)
    head = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "settings": {name: value for name, value in vars(given).items() if name != "out"},
    }
    report = Report(given.out, given.seconds, given.only, head)
    shapes = ["tiny"] if given.tiny else given.shapes
    prompt, length = (16, 12) if given.tiny else (given.prompt, given.length)
    exact = torch.float32 if given.device == "cpu" else torch.bfloat16
    settings = [Setting(shape, given.device, exact, prompt, length) for shape in shapes]
    measure(report, settings[0], given.rows)
    measure_more(report, settings[0], *given.rows)
    measure_mixed_precision(report, Setting(shapes[0], given.device, torch.float32, prompt, length), given.rows[0])
    for setting in settings[1:]:
        measure(report, setting, given.rows)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
