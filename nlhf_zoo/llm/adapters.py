"""Several networks for the price of one: LoRA adapters of a model that they share (Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import nn

from nlhf_zoo.errors import BadInput

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

__all__ = ["AdapterNetwork", "SharedModel", "lora_config", "quiet_peft"]


def lora_config(rank: int, alpha: float, targets: Sequence[str] = (), base: str | None = None) -> LoraConfig:
    """What each adapter is: W + (alpha / rank) B A, with B = 0 at first; no dropout, as everywhere in training.

    Args:
        rank: of B A, >= 1.
        alpha: the adapter's size is alpha / rank.
        targets: last parts of the names of the layers to adapt ("q_proj", ...); all linear ones but the head,
            where none is given.
        base: where the base model came from, written down when an adapter is saved.
    """
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # a float does as well
        lora_dropout=0.0,
        target_modules=list(targets) or "all-linear",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warnings of peft 0.21 that no user of ours can act on."""
    with warnings.catch_warnings():
        # It asks for a property under the name that transformers 5 is about to drop.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        warnings.filterwarnings("ignore", ".*base_model_name_or_path. was renamed", UserWarning)
        # Said of tied embeddings, which are refused.
        warnings.filterwarnings("ignore", ".*tie_word_embeddings", UserWarning)
        yield


@attrs.frozen(eq=False)
class SharedModel:
    """A peft model whose named adapters are used as networks, in any order and in the middle of one another.

    Attributes:
        model: base and adapters; the base's weights are frozen.
        config: what a further adapter is made like.
        layers: those that carry adapters.
    """

    model: PeftModel
    config: LoraConfig
    layers: tuple[Any, ...]

    @classmethod
    def of(cls, base: nn.Module, config: LoraConfig, *, resting: str, seed: int) -> SharedModel:
        """Put a first adapter on a model, which is changed in place.

        Args:
            resting: name of the adapter; gradients flow to it alone, and it is on whenever no other is at work.
            seed: of its factors A.

        Raises:
            BadInput: the model has no such layers, or one that LoRA cannot adapt here.
        """
        from peft import get_peft_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        with torch.random.fork_rng(devices=[]), quiet_peft():
            torch.default_generator.manual_seed(seed)
            try:
                model = get_peft_model(base, copy.deepcopy(config), adapter_name=resting)  # type: ignore[arg-type]
            except ValueError as error:
                raise BadInput(f"lora_targets {config.target_modules}: {str(error).splitlines()[0]}") from None
        # peft writes the name that the model was loaded by, which is another where an adapter was merged in.
        model.peft_config[resting].base_model_name_or_path = config.base_model_name_or_path
        layers: tuple[Any, ...] = tuple(layer for layer in model.modules() if isinstance(layer, BaseTunerLayer))
        if not all(resting in layer.lora_A for layer in layers):
            raise BadInput(f"lora_targets {config.target_modules}: only linear layers can be adapted here")
        return cls(model, config, layers)

    def add(self, name: str) -> None:
        """One adapter more, frozen, with factors of no meaning yet; global random state is left as it was."""
        with torch.random.fork_rng(devices=[]), quiet_peft():
            self.model.add_adapter(name, copy.deepcopy(self.config))

    def factors(self, name: str) -> list[nn.Module]:
        """The modules A and B of one adapter, layer by layer."""
        return [factor[name] for layer in self.layers for factor in (layer.lora_A, layer.lora_B)]

    @contextlib.contextmanager
    def on(self, names: list[str]) -> Iterator[None]:
        """These adapters and no others, until the end of the block; no name leaves the bare base."""
        before = self.layers[0].active_adapters
        try:
            self._switch(names)
            yield
        finally:
            self._switch(before)

    def _switch(self, names: list[str]) -> None:
        for layer in self.layers:
            # Not peft's set_adapter: it would also move requires_grad, in the middle of another adapter's graph.
            layer._active_adapter = names


class AdapterNetwork(nn.Module):
    """One adapter of a shared model as a network of its own, whose parameters are the adapter's alone.

    Copies, averages, checkpoints and the optimizer see the factors A and B only. So an average of two networks is
    one of parameters, as the papers' EMA is; as B A is not linear in (A, B), it is not the average of the two
    weight matrices, though near it while the two are near each other.

    A forward pass turns this adapter on and the resting one back on afterwards. The backward pass of the resting
    adapter may recompute its layers at any later moment (gradient checkpointing), and then finds it on.

    Attributes:
        factors: the modules A and B, layer by layer.
    """

    def __init__(self, shared: SharedModel, name: str, *, bare: bool = False) -> None:
        """Args:
        bare: leave the adapter out of the forward pass; for one that is known to be zero.
        """
        super().__init__()
        # In a tuple, so that the shared model is registered once, by who owns it, and not under every adapter.
        self._shared = (shared,)
        self.name, self.bare = name, bare
        self.factors = nn.ModuleList(shared.factors(name))

    @property
    def shared(self) -> SharedModel:
        return self._shared[0]

    @property
    def training(self) -> bool:  # type: ignore[override]  # a property serves the attribute
        return self.shared.model.training

    @training.setter
    def training(self, mode: bool) -> None:  # type: ignore[override]
        if "_shared" in self.__dict__:  # Module.__init__ sets it too, before there is anything to set
            self.shared.model.train(mode)

    @property
    def config(self) -> Any:
        return self.get_base_model().config

    @property
    def generation_config(self) -> Any:
        return self.get_base_model().generation_config

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def get_base_model(self) -> Any:
        """The transformers model inside, adapters and all."""
        return self.shared.model.get_base_model()

    def forward(self, **inputs: Any) -> Any:
        with self.shared.on([] if self.bare else [self.name]):
            return self.get_base_model()(**inputs)

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write this adapter alone, in peft's format (safetensors), into a folder that exists."""
        # "auto" would look for the base model's config on the hub; embeddings are not adapted here.
        self.shared.model.save_pretrained(str(path), selected_adapters=[self.name], save_embedding_layers=False)
        # peft keeps adapters that are not called "default" in folders of their names.
        inner = Path(path, self.name)
        for file in inner.iterdir():
            file.replace(Path(path, file.name))
        inner.rmdir()
