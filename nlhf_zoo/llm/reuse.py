"""What a network computed while responses were drawn, for the passes that score them.

Prompts that were read without gradients need not be read again, and the cache goes on from them. A pass with gradients
needs every activation anew, but not the matrix products that they come from: what the linear layers put out for each
token is known since the token was drawn. Layers are found by their class and the shape of what they put out, (rows,
tokens, features); what cannot be recognised is computed again.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nlhf_zoo.interfaces import weights_version
from nlhf_zoo.llm.forward import base_network
from nlhf_zoo.llm.sharding import is_spread

__all__ = ["Outputs", "PromptsRead", "Recorder", "Spoken", "branch", "plain_cache", "recomputes", "replayed", "trains"]

Outputs = dict[nn.Linear, Tensor]
"""What each layer put out."""


@attrs.frozen(eq=False)
class PromptsRead:
    """What a network made of prompts.

    Attributes:
        version: of the weights, see `weights_version`.
        prompts, mask: (B, S).
        output: logits (B, 1, V) after the prompts, and their cache; of a network without gradients.
        spoken: of a network with gradients, which drew responses to them itself.
    """

    network: Any
    version: tuple[int, int]
    prompts: Tensor
    mask: Tensor
    output: Any = None
    spoken: Spoken | None = None

    @classmethod
    def of(cls, network: Any, prompts: Tensor, mask: Tensor, output: Any) -> PromptsRead | None:
        """Keep an output, before others go on from its cache; `None` where a cache cannot be shared."""
        if not plain_cache(getattr(output, "cache", None)):
            return None
        kept = copy.copy(output)
        kept.cache = branch(output.cache)
        return cls(network, weights_version(network), prompts, mask, kept)

    def stands_for(self, network: Any, prompts: Tensor, mask: Tensor) -> bool:
        """Whether the network would find the same in these prompts, now."""
        return (
            self.network is network
            and not base_network(network).training  # dropout, maybe
            and self.version == weights_version(network)
            and torch.equal(self.prompts, prompts)
            and torch.equal(self.mask, mask)
        )


@attrs.define(eq=False)
class Spoken:
    """What the linear layers of a network put out for prompts and for its own responses to them. Serves once.

    Attributes:
        prompt: (B, S, features).
        said: (n, features) of each pass over n response tokens.
        places: (R, T) where a token is in all of `said`; 0 where it was not read.
    """

    prompt: Outputs
    said: dict[nn.Linear, list[Tensor]]
    places: Tensor

    def chunks(self, rows: Sequence[Tensor], widths: Sequence[int]) -> list[Outputs]:
        """(n, w, features) for the first w tokens of some rows, chunk by chunk. Nothing is left here."""
        found: list[Outputs] = [{} for _ in rows]
        at = [self.places[some, :width] for some, width in zip(rows, widths, strict=True)]
        for layer in list(self.said):
            said = torch.cat(self.said.pop(layer))  # one by one: all of them twice would be much memory
            for chunk, where in zip(found, at, strict=True):
                chunk[layer] = said[where]
        return found

    def put_before(self, chunk: Outputs, whose: Tensor) -> None:
        """Prompts before the tokens of a chunk, by the rows of its prompts: a layer is known for both, or not."""
        for layer in list(chunk):
            prompt, said = self.prompt.get(layer), chunk.pop(layer)
            if prompt is not None and prompt.dim() == 3:
                chunk[layer] = torch.cat([prompt[whose], said], 1)


_Call = tuple[nn.Linear, Tensor, int]
"""A layer, what it put out, and the version of that."""


@attrs.frozen(eq=False)
class _Note:
    """A pass over one token of each row, of which those from `start` on belong to (n,) `texts`, `at` a place in each.

    Attributes:
        rows: of the pass.
    """

    calls: list[_Call]
    start: int
    texts: Tensor
    at: Tensor
    rows: int


@attrs.define(eq=False)
class Recorder:
    """Keeps what the linear layers of a network put out while it reads prompts, and goes on from them token by token.

    Attributes:
        layers: those that are listened to.
        version: of the weights.
        calls: of the pass that was read last.
        prompt: of the prompts' pass.
        notes: the passes over response tokens.
    """

    network: Any
    layers: tuple[nn.Linear, ...]
    version: tuple[int, int]
    calls: list[_Call] = attrs.field(factory=list)
    prompt: list[_Call] = attrs.field(factory=list)
    notes: list[_Note] = attrs.field(factory=list)

    @classmethod
    def of(cls, network: Any) -> Recorder | None:
        """`None` where the pass with gradients would find nothing to use.

        On an accelerator it is memory that is short, not arithmetic; and what half precision rounds is not the same
        twice.
        """
        exact = not torch.is_autocast_enabled("cpu") and network.device.type == "cpu"
        if not exact or is_spread(network) or recomputes(network):
            return None
        layers = (module for module in base_network(network).modules() if type(module) is nn.Linear)
        return cls(network, tuple(layer for layer in layers if _can_be_replaced(layer)), weights_version(network))

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hear one pass."""
        self.calls = []
        with _instead({layer: functools.partial(self._hear, layer) for layer in self.layers}):
            yield

    def _hear(self, layer: nn.Linear, read: Tensor) -> Tensor:
        out = nn.Linear.forward(layer, read)
        self.calls.append((layer, out, out._version))
        return out

    def note_prompts(self) -> None:
        self.prompt, self.calls = self.calls, []

    def note(self, start: int, texts: Tensor, at: Tensor, rows: int) -> None:
        """Say which rows of the last pass count, see `_Note`; nothing where no pass was needed."""
        if self.calls:
            self.notes.append(_Note(self.calls, start, texts, at, rows))
            self.calls = []

    def read(self, prompts: Tensor, mask: Tensor, shape: torch.Size) -> PromptsRead:
        """All that was noted, of (B, S) prompts and (R, T) tokens; it is forgotten here."""
        return PromptsRead(self.network, self.version, prompts, mask, spoken=self._spoken(shape))

    def _spoken(self, shape: torch.Size) -> Spoken:
        places = torch.zeros(shape, dtype=torch.int64)
        before = 0
        for note in self.notes:
            places[note.texts, note.at] = before + torch.arange(note.start, note.start + len(note.texts))
            before += note.rows
        passes = [_called_once(note.calls) for note in self.notes]
        said: dict[nn.Linear, list[Tensor]] = {}
        for layer in self.layers:
            parts = [outputs.pop(layer, None) for outputs in passes]
            found = [part[:, 0] for part in parts if part is not None and part.dim() == 3 and part.shape[1] == 1]
            if found and [len(part) for part in found] == [note.rows for note in self.notes]:
                said[layer] = found
        prompt = _called_once(self.prompt)
        self.notes, self.prompt = [], []
        return Spoken(prompt, said, places)


def _called_once(calls: Sequence[_Call]) -> Outputs:
    """Outputs by layer, without those of layers called more than once, and those that were written over since."""
    found: Outputs = {}
    several: set[nn.Linear] = set()
    for layer, out, version in calls:
        if layer in found or out._version != version:
            several.add(layer)
        found[layer] = out
    return {layer: out for layer, out in found.items() if layer not in several}


def _can_be_replaced(layer: nn.Linear) -> bool:
    """Whether it is in full precision, and nobody else has put something in the place of its forward pass."""
    return layer.weight.dtype in (torch.float32, torch.float64) and "forward" not in vars(layer)


@contextlib.contextmanager
def _instead(forwards: dict[nn.Linear, Any]) -> Iterator[None]:
    """Let other functions stand in for the forward passes of layers, until the end of the block."""
    # Not by Module.__setattr__, which looks for parameters, at every token.
    for layer, forward in forwards.items():
        vars(layer)["forward"] = forward
    try:
        yield
    finally:
        for layer in forwards:
            del vars(layer)["forward"]


class _Known(torch.autograd.Function):
    """A linear layer whose output is known: no product forward, and the usual two backward."""

    @staticmethod
    def forward(ctx: Any, read: Tensor, weight: Tensor, bias: Tensor | None, known: tuple[Tensor]) -> Tensor:
        ctx.save_for_backward(read, weight)
        return known[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:  # type: ignore[override]
        read, weight = ctx.saved_tensors
        wanted, flat = ctx.needs_input_grad, slope.flatten(0, -2)
        return (
            (flat @ weight).reshape(read.shape) if wanted[0] else None,
            flat.t() @ read.flatten(0, -2) if wanted[1] else None,
            flat.sum(0) if wanted[2] else None,
            None,
        )


@contextlib.contextmanager
def replayed(outputs: Outputs) -> Iterator[None]:
    """Let layers put out what they are known to, one pass long; it is forgotten as it is used."""

    def forward(layer: nn.Linear, read: Tensor) -> Tensor:
        out = outputs.pop(layer, None)
        if out is None or out.shape[:-1] != read.shape[:-1]:
            return nn.Linear.forward(layer, read)
        return _Known.apply(read, layer.weight, layer.bias, (out,))  # type: ignore[no-any-return]

    with _instead({layer: functools.partial(forward, layer) for layer in outputs if _can_be_replaced(layer)}):
        yield


def trains(network: Any) -> bool:
    """Whether gradients come to any of its weights."""
    return any(parameter.requires_grad for parameter in network.parameters())


def recomputes(network: Any) -> bool:
    """Whether its backward pass computes activations once more."""
    return bool(getattr(base_network(network), "is_activation_checkpointing", False))


def plain_cache(cache: Any) -> bool:
    """Whether a cache is keys and values only, and so may be copied row by row with its gradients."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = getattr(cache, "layers", None)
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def branch(cache: Any) -> Any:
    """A plain cache that goes on from the same keys and values, and leaves the other as it is."""
    made = copy.copy(cache)
    made.layers = [copy.copy(layer) for layer in cache.layers]
    return made
