"""What a run will take, before it runs: memory a device, and seconds a gradient step, from arithmetic alone.

Memory counts tensors: weights, gradients, Adam's moments, the KV cache, what the backward pass needs, and logits.
Time is a roofline and a toll: generation reads every weight and the cache once a token, training is 6 FLOP a parameter
and token, every pass through a layer costs its calls, and devices exchange weights and gradients over their links.
Judges and tokenisation are not in it.
"""

from __future__ import annotations

from typing import Any

import attrs

from nlhf_zoo.llm.speculative import LONGEST

__all__ = ["DEVICES", "Device", "Held", "Memory", "Passes", "Seconds", "Shape", "memory", "seconds"]


@attrs.frozen
class Device:
    """A kind of device by its data sheet.

    Attributes:
        memory: bytes.
        bandwidth: of that memory, bytes a second.
        half: dense FLOP/s in bf16.
        single: dense FLOP/s in float32.
        link: bytes a second to the devices of the same node, one way.
        network: the same to other nodes, for each device.
        reached: share of the FLOP/s that training reaches; an assumption.
        streamed: share of the bandwidth that generation reaches; an assumption.
        calling: seconds that a layer's forward pass takes by the calls that it is made of, whatever its size, in
            transformers' eager mode; it is what bounds a small model. As measured on an H200.
        replaying: the same where the pass of a token is replayed by a CUDA graph; likewise.
    """

    memory: float
    bandwidth: float
    half: float
    single: float
    link: float
    network: float
    reached: float = 0.4
    streamed: float = 0.6
    calling: float = 7.5e-4
    replaying: float = 1.2e-4


DEVICES = {
    "rtx4090": Device(24e9, 1.008e12, 165e12, 82.6e12, 32e9, 6e9),
    "a100": Device(80e9, 2.039e12, 312e12, 19.5e12, 300e9, 25e9),
    "h100": Device(80e9, 3.35e12, 989e12, 67e12, 450e9, 50e9),
    "h200": Device(141e9, 4.8e12, 989e12, 67e12, 450e9, 50e9),
}


@attrs.frozen
class Shape:
    """What of a causal language model costs something.

    Attributes:
        parameters: numbers of all weights.
        embedded: those of the embeddings and the head among them, which no quantisation touches.
    """

    parameters: int
    embedded: int
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int

    @classmethod
    def of(cls, network: Any) -> Shape:
        """Of a transformers model, on any device, the meta device too."""
        config = network.config.get_text_config()
        heads = config.num_attention_heads
        return cls(
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            embedded=sum(weight.numel() for weight in {network.get_input_embeddings().weight, _head(network)}),
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocabulary=config.vocab_size,
        )


def _head(network: Any) -> Any:
    return (network.get_output_embeddings() or network.get_input_embeddings()).weight


@attrs.frozen
class Held:
    """How many networks there are, and how they are held.

    Attributes:
        networks: student and reference included.
        trained: bytes a number of what trains.
        frozen: bytes a number of what does not.
        quantised: whether the frozen weights, but for embeddings and head, take 4 bits each and their scales.
        away: whether frozen networks rest in the host's memory, and are on the device one at a time.
        adapter: numbers of one adapter, where the networks are adapters of one frozen model; 0 where each is a model.
    """

    networks: int
    trained: int = 4
    frozen: int = 4
    quantised: bool = False
    away: bool = False
    adapter: int = 0

    def weights(self, shape: Shape, parts: int) -> float:
        """Bytes on a device, of weights that are spread over `parts` devices."""
        one = shape.parameters * self.frozen
        if self.quantised:
            one = shape.embedded * self.frozen + (shape.parameters - shape.embedded) * _NF4
        if self.adapter:
            return one / parts + self.networks * self.adapter * self.trained
        others = min(self.networks - 1, 1 if self.away else self.networks)
        return (shape.parameters * self.trained + others * one) / parts

    def training(self, shape: Shape, parts: int) -> float:
        """Numbers on a device that have a gradient; adapters are whole on every device."""
        return self.adapter or shape.parameters / parts


_NF4 = 0.516
"""Bytes a number: 4 bits, and for every 64 numbers a scale of 8 bits that is itself scaled (arXiv 2305.14314)."""


@attrs.frozen
class Passes:
    """What one batch asks of networks, each a set of K responses a prompt; means over the updates of a rehearsal.

    Attributes:
        sampled: sets that are drawn.
        cached: sets of keys and values that are held to draw them; a mixture has one of each of its networks.
        reading: networks that are called once a token; one that drafts for a mixture does so in its own calls.
        verifying: networks that read the drafts of a mixture, several tokens in a call.
        scored: sets whose log-probabilities are computed without gradient.
        trained: sets with a backward pass.
    """

    sampled: float
    cached: float
    reading: float
    verifying: float
    scored: float
    trained: float


@attrs.frozen
class Memory:
    """Bytes on each device, by what they are for.

    Attributes:
        weights: of all networks held.
        gradients: of what trains.
        optimizer: Adam's two moments.
        gathered: networks held whole while they generate, where weights are spread.
        cache: keys and values of the responses that are drawn together.
        activations: kept for the backward pass.
        logits: of the responses, in float32: as they come, scaled, and as log-probabilities.
    """

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    cache: float
    activations: float
    logits: float

    @property
    def peak(self) -> float:
        """The larger of generation and training; the two follow each other."""
        held = self.weights + self.gradients + self.optimizer
        return held + max(self.gathered + self.cache, self.activations + self.logits)


def memory(
    shape: Shape,
    held: Held,
    *,
    rows: int,
    prompt: int,
    response: int,
    compute_bytes: int = 4,
    devices: int = 1,
    spread: bool = False,
    checkpointing: bool = False,
    gathered: int = 1,
    cached: float = 1,
) -> Memory:
    """Bytes on each device.

    Args:
        rows: responses a batch: prompts times samples.
        prompt: tokens of a prompt, padding included.
        response: tokens of a response.
        compute_bytes: bytes a number of the activations: 2 in bf16.
        devices: in the run.
        spread: whether weights are spread over them (fsdp2).
        checkpointing: whether only what goes into each block is kept.
        gathered: networks that generate together.
        cached: sets of keys and values that they hold.
    """
    parts = devices if spread else 1
    training = held.training(shape, parts) * held.trained
    tokens = rows * (prompt + response)
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    # Norms compute in float32: input, normalised and scaled. Attention keeps q, k, v and its answer twice, once as
    # heads and once as the input of the projection; the feed-forward layer four tensors of its width.
    block = 3 * 2 * shape.hidden * 4 + (3 * queries + 2 * keys + 4 * shape.inner) * compute_bytes
    kept = shape.hidden * compute_bytes if checkpointing else block
    activations = tokens * (shape.layers * kept + (block if checkpointing else 0) + 3 * shape.hidden * 4)
    return Memory(
        weights=held.weights(shape, parts),
        gradients=training,
        optimizer=2 * training,
        gathered=(1 if held.adapter else gathered) * shape.parameters * compute_bytes if spread else 0,
        cache=cached * tokens * shape.layers * 2 * keys * compute_bytes,
        activations=activations,
        logits=3 * rows * response * shape.vocabulary * 4,
    )


@attrs.frozen
class Seconds:
    """Of one gradient step; `updating` is Adam's, with clipping, the check of the weights, and a moving target."""

    generating: float
    scoring: float
    training: float
    updating: float
    exchanging: float

    @property
    def step(self) -> float:
        return sum(attrs.astuple(self))


def seconds(
    shape: Shape,
    held: Held,
    work: Passes,
    device: Device,
    *,
    rows: int,
    prompt: int,
    response: int,
    compute_bytes: int = 4,
    accumulate: int = 1,
    devices: int = 1,
    nodes: int = 1,
    spread: bool = False,
    checkpointing: bool = False,
    captured: bool = False,
) -> Seconds:
    """Seconds of one gradient step of `accumulate` batches on each of `devices` devices; arguments as of `memory`.

    Args:
        captured: whether a token's calls are replayed by a CUDA graph.
    """
    flops = (device.half if compute_bytes == 2 else device.single) * device.reached
    stream = device.bandwidth * device.streamed
    tokens = rows * (prompt + response)
    attention = 4 * shape.layers * shape.heads * shape.head_size * (prompt + response) / 2
    forward = 2 * shape.parameters + attention  # FLOP a token
    keys = shape.layers * 2 * shape.kv_heads * shape.head_size * compute_bytes
    # An adapted layer is three products, a scaling and a sum instead of one product.
    layers = shape.layers * (2 if held.adapter else 1)
    called = layers * device.calling

    def reads(sets: float, tokens_each: int) -> float:
        """One network reads so many tokens of the rows of so many sets, in the middle of their texts."""
        moved = shape.parameters * compute_bytes + sets * rows * (prompt + response / 2) * keys
        return max(moved / stream, sets * rows * tokens_each * forward / flops)

    # The prompt is read once for all its samples; that is little beside the tokens that follow, and left out.
    token = reads(work.sampled / work.reading, 1) + (layers * device.replaying if captured else called)
    verified = (reads((work.cached - work.sampled) / work.verifying, LONGEST) + called) if work.verifying else 0.0
    generating = response * (work.reading * token + work.verifying * verified / LONGEST)
    one = tokens * forward / flops + called
    scoring = work.scored * one
    # The backward pass multiplies once for the activations' gradients, and once for those of weights that train.
    training = work.trained * one * (1 + (1 if held.adapter else 2) + int(checkpointing))
    # Weights, gradients and two moments are read, all but the gradients written, three times more passed through.
    updating = 10 * 4 * held.training(shape, devices if spread else 1) / stream
    link = device.network if nodes > 1 else device.link
    exchanged = 0.0
    if devices > 1 and spread:
        # Gathered for each network that generates or scores, twice for what trains, whose gradients are summed too.
        gathers = work.reading + work.verifying + work.scored + 2 * work.trained
        exchanged = accumulate * shape.parameters * (gathers * compute_bytes + (0 if held.adapter else 4)) / link
    elif devices > 1:
        exchanged = 2 * held.training(shape, 1) * 4 / link
    share = (devices - 1) / devices
    return Seconds(
        generating=accumulate * generating,
        scoring=accumulate * scoring,
        training=accumulate * training,
        updating=updating,
        exchanging=exchanged * share,
    )
