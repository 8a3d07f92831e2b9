"""Reading N texts at fixed addresses, so that the step of one token can be captured once and replayed.

Prompts are padded on the left, and the token at position p of a text lies in column p + (padding of its row). So where
a token goes, and what it sees, follow from its position alone: what is taken back is simply written over, rows may be
at different lengths, and a row that has ended, but stays, writes one column again and again.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from nlhf_zoo.llm.forward import forward
from nlhf_zoo.llm.reading import Reader
from nlhf_zoo.llm.static_cache import Place, static_cache

__all__ = ["Buffers", "Capture", "StaticReader"]

logger = logging.getLogger("nlhf_zoo.llm")

GRAPHS = 32
"""Captured steps of one set of buffers, at most."""


class Capture:
    """Makes a step replayable, as a CUDA graph. What its graphs hold lies in one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Run `step` a few times, and capture it.

        Returns:
            The tensor that every replay writes its answer to, and the replay.
        """
        # Not torch.cuda.graph(): where a capture fails, it leaves its stream the current one.
        graph, mine = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(mine)
        try:
            with torch.cuda.stream(self._stream):
                # Libraries choose kernels and take workspaces in the first runs, which must not be captured.
                for _ in range(2):
                    step()
                self._stream.synchronize()
                # A judge or a watchdog may use the device in another thread meanwhile.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    answer = step()
                except BaseException:
                    with contextlib.suppress(RuntimeError):
                        graph.capture_end()
                    raise
                graph.capture_end()
        finally:
            mine.wait_stream(self._stream)
        return answer, graph.replay

    @property
    def bytes(self) -> int:
        """Memory that the graphs hold."""
        segments = torch.cuda.memory_snapshot()
        return sum(one["total_size"] for one in segments if one["segment_pool_id"] == self._pool)


@attrs.frozen(eq=False)
class _Step:
    logits: Tensor
    replay: Callable[[], None]


@attrs.define(eq=False)
class Buffers:
    """Room for N texts of C columns that one network goes on with.

    Attributes:
        cache: keys and values.
        place: where the cache is written next; its width is that of the texts at hand.
        tokens, position: (N, 1) int64, what a captured step reads.
        shift: (N, 1) int64, columns to the left of each text.
        additive: dtype of the mask, where attention adds it; elsewhere it is bool.
        capture: makes a step replayable; a `Capture`.
        signature: what a captured step depends on: addresses of weights, precision, active adapters.
        steps: captured ones, by rows and columns.
        captured: bytes that they hold.
        busy: whether texts are at hand.
        used: when they last were, as a number that grows.
        refused: a capture went wrong, and there will be none.
    """

    cache: Any
    place: Place
    tokens: Tensor
    position: Tensor
    shift: Tensor
    additive: torch.dtype | None
    capture: Any
    signature: Any
    steps: dict[tuple[int, int], _Step] = attrs.field(factory=dict)
    captured: int = 0
    busy: bool = True
    used: int = 0
    refused: bool = False

    @classmethod
    def like(cls, layers: Sequence[Any], rows: int, columns: int, *, dtype: torch.dtype | None, **rest: Any) -> Buffers:
        """Buffers shaped like the layers of a filled cache; `dtype` as in `static_cache`."""
        numbers = torch.arange(rows, device=layers[0].keys.device)[:, None]
        place = Place(numbers, numbers, columns)
        tokens, position, shift = (torch.zeros_like(numbers) for _ in range(3))
        return cls(static_cache(layers, rows, columns, dtype, place), place, tokens, position, shift, **rest)

    @property
    def room(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.shift), self.cache.get_max_length()

    @property
    def bytes(self) -> int:
        """Memory held on the device."""
        held = [buffer for layer in self.cache.layers for buffer in (layer.keys, layer.values)]
        return self.captured + sum(buffer.numel() * buffer.element_size() for buffer in held)

    def fill(self, layers: Sequence[Any], mask: Tensor, rows: Tensor, width: int) -> None:
        """Begin (N,) rows of the (B, S) prompts whose keys and values the layers hold."""
        count, length = len(rows), mask.shape[1]
        self.place.width = width
        for mine, theirs in zip(self.cache.layers, layers, strict=True):
            for buffer, states in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
                buffer[:count, :, :length] = states[rows]
                # What a mask hides is multiplied by zero: it may be anything finite.
                buffer[:count, :, length:width] = 0
        self.shift[:count] = length - mask.sum(-1, keepdim=True)[rows]

    def keep(self, rows: Tensor) -> None:
        """Move these rows to the front."""
        count, width = len(rows), self.place.width
        for layer in self.cache.layers:
            for buffer in (layer.keys, layer.values):
                buffer[:count, :, :width] = buffer[rows, :, :width]
        self.shift[:count] = self.shift[rows]

    def read(self, network: Any, tokens: Tensor, position: Tensor) -> Tensor:
        """(n, S, V) logits after each of (n, S) tokens of the first n rows."""
        shift = self.shift[: len(tokens), :, None]
        columns = position + shift[..., 0]
        there = torch.arange(self.place.width, device=tokens.device)
        mask: Tensor = ((there >= shift) & (there <= columns[..., None]))[:, None]
        if self.additive is not None:
            mask = torch.zeros_like(mask, dtype=self.additive).masked_fill_(~mask, torch.finfo(self.additive).min)
        self.place.columns = columns
        return forward(network, tokens, mask, position, cache=self.cache, use_cache=True).logits

    def read_one(self, network: Any, tokens: Tensor, position: Tensor) -> Tensor:
        """`read` of one token a row, by a replay where there is one; captured the first time."""
        at = len(tokens), self.place.width
        step = self.steps.get(at)
        if step is None and (self.refused or len(self.steps) >= GRAPHS):
            return self.read(network, tokens, position)
        self.tokens[: len(tokens)], self.position[: len(tokens)] = tokens, position
        if step is None:
            return self._capture(network, at)
        step.replay()
        return step.logits.clone()

    def _capture(self, network: Any, at: tuple[int, int]) -> Tensor:
        """Capture a step of the tokens at hand, and answer as it does without."""
        step = functools.partial(self.read, network, self.tokens[: at[0]], self.position[: at[0]])
        wanted = step()
        begun = time.perf_counter()
        try:
            with _uncached_autocast(wanted.device.type):
                made = _Step(*self.capture(step))
            made.replay()
            same = agree(made.logits, wanted)
            reason = "a replayed step gave other logits than the step itself"
        except Exception as error:  # whatever a model or a driver does not allow in a capture
            same, reason, made = False, f"capturing failed ({str(error).partition(chr(10))[0][:200]})", None
        if made is None or not same:
            self.refused = True
            self.steps.clear()
            logger.warning("decoding without CUDA graphs, which is slower: %s", reason)
            return step()  # a replay that went wrong wrote keys and values too
        self.captured = self.capture.bytes
        if not self.steps:
            logger.info(
                "decoding with CUDA graphs: %d rows, %d columns, %.2f s to capture, %.0f MB held",
                *at, time.perf_counter() - begun, self.bytes / 1e6,
            )  # fmt: skip
        self.steps[at] = made
        return wanted


def agree(found: Tensor, wanted: Tensor) -> bool:
    """Whether two (N, S, V) logits are the same up to the rounding of their dtype, of NaN too."""
    tolerance = max(torch.finfo(wanted.dtype).eps ** 0.5, 2e-3)
    found, wanted = (one if one.dtype == torch.float64 else one.float() for one in (found, wanted))
    return not bool((found - wanted).abs().mean() > tolerance * wanted.std())


def _uncached_autocast(kind: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast as it is, without its cache, whose casts of weights a replay would find freed or out of date."""
    if not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), cache_enabled=False)


@attrs.define(eq=False)
class StaticReader(Reader):
    """A reader of texts in buffers.

    Attributes:
        release: called when nothing more will be read.
    """

    buffers: Buffers
    release: Callable[[], None]

    @property
    def takes_back(self) -> bool:
        return True

    def _go_on(self, tokens: Tensor, position: Tensor) -> Tensor:
        read = self.buffers.read_one if tokens.shape[1] == 1 else self.buffers.read
        return read(self.network, tokens, position)

    def take_back(self, kept: Tensor, count: int) -> None:
        """Nothing: what is read next, from the first position that did not stand, is written over it."""

    def _select(self, rows: Tensor) -> None:
        self.buffers.keep(rows)

    def close(self) -> None:
        self.release()
