"""A stand-in for vLLM: the classes and arguments that the engine uses, on a model of transformers on the CPU.

It keeps what makes the protocol matter: weights of its own that change by `reload_weights` alone, a prefix cache that
goes stale, sleep that loses weights. Arguments that vLLM does not have are refused. Written after vLLM 0.32
(`vllm.LLM`, `vllm.SamplingParams`, `vllm.outputs`, worker method `reload_weights`).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

__all__ = ["LLM", "SamplingParams"]

calls: list[str] = []
"""What was asked of any `LLM`, in order."""


@dataclasses.dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    detokenize: bool = True
    allowed_token_ids: list[int] | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.temperature > 2:
            raise ValueError(f"temperature must be in [0, 2], got {self.temperature}.")
        if 0 < self.temperature < 0.01:
            self.temperature = 0.01  # vLLM says so in its log only
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise ValueError("allowed_token_ids is not None and empty!")


@dataclasses.dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclasses.dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None


@dataclasses.dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True


class LLM:
    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        skip_tokenizer_init: bool = False,
        dtype: str = "auto",
        seed: int = 0,
        gpu_memory_utilization: float = 0.9,
        enforce_eager: bool = False,
        max_model_len: int | None = None,
        tensor_parallel_size: int = 1,
        enable_sleep_mode: bool = False,
        logprobs_mode: str = "raw_logprobs",
        generation_config: str = "auto",
    ) -> None:
        from transformers import AutoModelForCausalLM

        calls.append("start")
        if not 0 < gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization must be in (0, 1], got {gpu_memory_utilization}.")
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.logprobs_mode, self.sleep_mode = logprobs_mode, enable_sleep_mode
        self.awake = {"weights", "kv_cache"}
        self.prefixes: dict[tuple[int, ...], torch.Tensor] = {}

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: list[SamplingParams],
        *,
        use_tqdm: bool = True,
        lora_request: Any = None,
    ) -> list[RequestOutput]:
        calls.append("generate")
        assert self.awake == {"weights", "kv_cache"}, "asleep"
        pairs = enumerate(zip(prompts, sampling_params, strict=True))
        return [self._answer(str(i), prompt["prompt_token_ids"], params) for i, (prompt, params) in pairs]

    def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        calls.append(method)
        assert "weights" in self.awake, "weights are asleep"
        return [getattr(self, f"_{method}")(*args, **(kwargs or {}))]

    def reset_prefix_cache(self) -> bool:
        calls.append("reset_prefix_cache")
        self.prefixes.clear()
        return True

    def sleep(self, level: int = 1) -> None:
        calls.append(f"sleep {level}")
        assert self.sleep_mode, "Sleep mode is not enabled in the model config"
        self.awake = set()
        self.prefixes.clear()
        if level == 2:
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.fill_(float("nan"))

    def wake_up(self, tags: list[str] | None = None) -> None:
        calls.append(f"wake_up {tags}")
        self.awake |= set(tags or ["weights", "kv_cache"])

    def _reload_weights(self, weights_path: str) -> None:
        """Names and shapes must be those that the model was made from; tied weights come once."""
        folder = Path(weights_path)
        index = folder / "model.safetensors.index.json"
        files = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
        found = {name: value for file in files for name, value in load_file(folder / file).items()}
        missing, unexpected = self.model.load_state_dict(found, strict=False)
        tied = set(self.model.all_tied_weights_keys)
        if unexpected or set(missing) - tied:
            raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")

    @torch.no_grad()
    def _answer(self, request: str, prompt: list[int], params: SamplingParams) -> RequestOutput:
        assert params.ignore_eos
        assert not params.detokenize
        outputs = [self._complete(k, prompt, params) for k in range(params.n)]
        return RequestOutput(request, prompt, outputs)

    def _complete(self, index: int, prompt: list[int], params: SamplingParams) -> CompletionOutput:
        generator = torch.Generator()
        if params.seed is not None:
            generator.manual_seed(params.seed + index)
        ids: list[int] = []
        seen: list[dict[int, Logprob]] = []
        reason = "length"
        while len(ids) < (params.max_tokens or 16):
            raw = self._logits(tuple(prompt), ids)
            processed = raw / (params.temperature or 1.0)
            if params.allowed_token_ids is not None:
                barred = torch.ones_like(processed, dtype=torch.bool)
                barred[params.allowed_token_ids] = False
                processed = processed.masked_fill(barred, -torch.inf)
            probabilities = processed.softmax(-1)
            if params.temperature == 0:
                token = int(processed.argmax())
            else:
                token = int(torch.multinomial(probabilities, 1, generator=generator))
            told = (processed if self.logprobs_mode == "processed_logprobs" else raw).log_softmax(-1)
            seen.append({token: Logprob(float(told[token]))})
            ids.append(token)
            if token in (params.stop_token_ids or ()):
                reason = "stop"
                break
        total = sum(entry[token].logprob for entry, token in zip(seen, ids, strict=True))
        return CompletionOutput(index, "", ids, total, seen if params.logprobs is not None else None, reason)

    def _logits(self, prompt: tuple[int, ...], ids: list[int]) -> torch.Tensor:
        if not ids and prompt in self.prefixes:
            return self.prefixes[prompt]
        logits = self.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, -1].float()
        if not ids:
            self.prefixes[prompt] = logits
        return logits
