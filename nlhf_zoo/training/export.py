"""The trained policy in a run's folder, for transformers to load; an adapter also by itself, for peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nlhf_zoo.llm.adapters import AdapterNetwork
from nlhf_zoo.llm.folders import save_folder
from nlhf_zoo.llm.loading import load_causal_lm

__all__ = ["save_policy"]


def save_policy(out: Path, network: Any, tokenizer: Any, *, trust_remote_code: bool) -> dict[str, str]:
    """Write `out`/policy, a whole model, and where the policy is an adapter `out`/adapter before it.

    The whole model of an adapter is its base, loaded again in float32, with the adapter merged in: weights in 4 bit
    or bfloat16 have no room for it.

    Returns:
        The folders by name.
    """
    if not isinstance(network, AdapterNetwork):
        return {"policy": str(save_folder(out / "policy", network, tokenizer, {}))}
    adapter = save_folder(out / "adapter", network, tokenizer, {})
    merged = load_causal_lm(str(adapter), dtype=torch.float32, trust_remote_code=trust_remote_code)
    return {"policy": str(save_folder(out / "policy", merged, tokenizer, {})), "adapter": str(adapter)}
