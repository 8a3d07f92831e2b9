"""A short training of a tiny language model: its folder, its judge, and its settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama

__all__ = ["command", "many_letters", "settings", "write_folder"]


def many_letters(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    """Prefers more letters a-j, smoothly."""
    counts = [[sum(c in "abcdefghij" for c in text) for text in side] for side in (first, second)]
    return torch.sigmoid((torch.tensor(counts[0]) - torch.tensor(counts[1])).double() / 2).tolist()


def write_folder(path: Path, network: Any = None) -> Path:
    """`path` with 24 prompts, and in lm a language model over bytes: a Llama of one layer, unless given."""
    tokenizer = byte_tokenizer()
    network = network or small_llama(tokenizer, hidden=32, layers=1, heads=2, seed=0)
    network.save_pretrained(path / "lm")
    tokenizer.save_pretrained(path / "lm")
    (path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"say {i}:"}) for i in range(24)))
    return path


def settings(folder: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Of `TrainConfig`, for 4 steps in a folder of `write_folder`."""
    return {
        "model": str(folder / "lm"),
        "prompts": str(folder / "prompts.jsonl"),
        "oracle": "callable",
        "oracle_options": {"function": "tests.tiny_training:many_letters"},
        "out": str(out),
        "steps": 4,
        "batch_size": 4,
        "num_samples": 3,
        "beta": 0.01,
        "max_new_tokens": 6,
        "learning_rate": 1e-3,
        "accelerator": "cpu",
        "eval_size": 8,
        "logger": "csv",
        **changes,
    }


def command(folder: Path, out: Path, *flags: str, **changes: Any) -> list[str]:
    """The arguments of `nlhf-zoo` for such a training, its settings in a file beside `out`."""
    config = out.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings(folder, out, **changes)))
    return ["train", "--config", str(config), *flags]
