"""What generates responses. Engines are imported when asked for: this module alone loads neither torch nor vLLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nlhf_zoo.registry.hookspecs import hookimpl

if TYPE_CHECKING:
    from nlhf_zoo.interfaces import RolloutEngine


@hookimpl
def nlhf_zoo_engines() -> Mapping[str, Callable[..., RolloutEngine]]:
    return {"builtin": _builtin, "vllm": _vllm}


def _builtin(*, cuda_graphs: bool = True, held_memory: float = 0.1) -> RolloutEngine:
    """The policy's own networks, in the training process; mixtures too; by CUDA graphs on a GPU."""
    from nlhf_zoo.llm.builtin_engine import BuiltinEngine

    return BuiltinEngine(cuda_graphs=cuda_graphs, held_memory=held_memory)


def _vllm(
    *, gpu_memory_utilization: float = 0.4, sleep: bool = False, weights_folder: str | None = None, **options: Any
) -> RolloutEngine:
    """vLLM in this process, with a copy of the weights that follows the training; other options go to `vllm.LLM`."""
    from nlhf_zoo.engines.vllm import VLLMEngine

    return VLLMEngine(
        gpu_memory_utilization=gpu_memory_utilization, sleep=sleep, weights_folder=weights_folder, **options
    )
