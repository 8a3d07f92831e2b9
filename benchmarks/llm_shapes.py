"""Language models of real shapes with random weights, drawn on the device, and the FLOP of their passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch

from benchmarks.llm_step import Scored, Setting
from nlhf_zoo.llm.tokens import Decoding
from nlhf_zoo.registry import lookup
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.cost import Held, Passes, Shape
from nlhf_zoo.training.memory import adapter_pool
from nlhf_zoo.training.networks import NetworkPool

__all__ = ["HELD", "LORA_RANK", "SHAPES", "DeviceModels", "Work", "word_tokenizer"]

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"kind": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512, "tie_word_embeddings": True},
    "0.1B": {"kind": "llama", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
             "num_key_value_heads": 12, "intermediate_size": 2048, "vocab_size": 32000, "tie_word_embeddings": False},
    "0.5B": {"kind": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True},
    "1.5B": {"kind": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
             "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936, "tie_word_embeddings": True},
    "3B": {"kind": "qwen2", "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16,
           "num_key_value_heads": 2, "intermediate_size": 11008, "vocab_size": 151936, "tie_word_embeddings": True},
}  # fmt: skip
"""A 0.1 B Llama, and Qwen2.5 of 0.5, 1.5 and 3 B parameters."""

HELD = ("full", "eager", "mixed", "lora")
"""All weights in bfloat16; the same without CUDA graphs; in float32 under autocast; LoRA adapters on a frozen model in
bfloat16."""

LORA_RANK = 16


class DeviceModels:
    """What `llm_step` asks of its models, drawn anew on the device at each call, so that no copy is kept beside."""

    def __init__(self, size: str, held: str, setting: Setting, device: str) -> None:
        from transformers import AutoConfig

        self.held, self.device = held, device
        shape = dict(SHAPES[size])
        self.tokenizer = word_tokenizer(shape["vocab_size"])
        special = {name: getattr(self.tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        self.config: Any = AutoConfig.for_model(shape.pop("kind"), **shape, **special, max_position_embeddings=4096)
        self.scorer = self._scorer(special)
        count = setting.batch * (setting.steps + setting.warmup) + 8
        # The beginning-of-sequence token is the first of the prompt's.
        words = range(setting.prompt_tokens - 1)
        self.prompts = [" ".join(f"w{10 + (7 * i + j) % 400}" for j in words) for i in range(count)]

    def student(self) -> Any:
        from transformers import AutoModelForCausalLM

        dtype = torch.float32 if self.held == "mixed" else torch.bfloat16
        torch.manual_seed(0)
        with torch.device(self.device):
            return AutoModelForCausalLM.from_config(self.config, dtype=dtype, attn_implementation="sdpa")

    def reference(self) -> Any:
        return self.student().requires_grad_(False).eval()

    def pool(self, decoding: Decoding) -> NetworkPool:
        if self.held == "eager":
            decoding = attrs.evolve(decoding, engine=lookup("engines", "builtin")(cuda_graphs=False))
        if self.held != "lora":
            return NetworkPool(self.student(), self.reference(), self.tokenizer, decoding)
        config = TrainConfig(model="-", prompts="-", oracle="-", out="-", lora_rank=LORA_RANK)
        return adapter_pool(self.student(), config, self.tokenizer, decoding)

    def _scorer(self, special: Mapping[str, Any]) -> Any:
        from transformers import LlamaConfig, LlamaForSequenceClassification

        config = LlamaConfig(
            **special, vocab_size=self.config.vocab_size, max_position_embeddings=4096, hidden_size=64,
            intermediate_size=128, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
            num_labels=1,  # type: ignore[call-arg]  # of every configuration
        )  # fmt: skip
        with torch.device(self.device):
            scorer: Any = LlamaForSequenceClassification(config)
        return scorer.eval()


def word_tokenizer(size: int) -> Any:
    """A tokenizer of `size` words between blanks, so that a judge reads as many tokens as were drawn."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>"]
    vocabulary = {token: index for index, token in enumerate([*special, *(f"w{i}" for i in range(3, size))])}
    built: Any = Tokenizer(models.WordLevel(vocabulary, unk_token="w3"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    built.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=built, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )


@attrs.frozen
class Work:
    """The FLOP of a gradient step, as `benchmarks.llm_gpu` defines them.

    Attributes:
        held: how the networks are held.
        passes: what the solver asks of networks.
    """

    shape: Shape
    held: Held
    passes: Passes
    setting: Setting

    @property
    def readers(self) -> int:
        """Models that are read to generate."""
        return 2 if self.passes.verifying else 1

    @property
    def samples(self) -> int:
        """Responses a prompt in one set, by `benchmarks.llm_step`."""
        return 1 if self.readers == 2 else 2

    def flops(self, positions: float, logits: float, pairs: float) -> float:
        """Of a pass without gradient."""
        shape = self.shape
        head = shape.vocabulary * shape.hidden
        return (
            2 * (shape.parameters - shape.embedded) * positions
            + 2 * head * logits
            + 4 * shape.layers * shape.heads * shape.head_size * pairs
        )

    def training(self, scored: Scored, steps: int) -> float:
        bare, graded = (
            self.flops(scored.positions[side], scored.logits[side], scored.pairs[side]) / steps for side in (0, 1)
        )
        # Adapters' base gets no gradient of its own.
        return bare + (2 if self.held.adapter else 3) * graded

    def generation(self, tokens: float) -> float:
        """Of `tokens` drawn in a step, each read by the models of its policy, and of the prompts, read once a model."""
        read = tokens * self.passes.cached / self.passes.sampled
        prompt, batch = self.setting.prompt_tokens, self.setting.batch
        drawn = self.flops(read, read, read * (prompt + self.setting.new_tokens / 2))
        return drawn + self.readers * self.flops(batch * prompt, batch, batch * prompt**2 / 2)
