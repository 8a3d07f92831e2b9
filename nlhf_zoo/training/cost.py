"""What a run will take, before it runs: memory a device, and seconds a gradient step, from arithmetic alone.

Memory counts tensors: weights, gradients, Adam's moments, the KV cache, what the backward pass needs, and logits.
Time is a roofline and a toll: generation reads every weight and the cache once a token, training is 6 FLOP a parameter
and token, every pass through a layer costs its calls, and devices exchange weights and gradients over their links.
Judges and tokenisation are not in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Game, Itself, PreferenceOracle, Solver, Update
from nlhf_zoo.llm import Decoding
from nlhf_zoo.llm.policy import as_language, same_network
from nlhf_zoo.training.networks import NetworkPool, SlotPolicy, rehearse

if TYPE_CHECKING:
    from nlhf_zoo.training.config import TrainConfig

__all__ = ["DEVICES", "Device", "Memory", "Passes", "Seconds", "Shape", "estimate", "memory", "passes", "seconds"]

GIB = 2**30


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
        calling: seconds that a layer's forward pass takes by the calls that it is made of, whatever its size; of a
            GPU an assumption, for generation by transformers without CUDA graphs. It is what bounds a small model.
    """

    memory: float
    bandwidth: float
    half: float
    single: float
    link: float
    network: float
    reached: float = 0.4
    streamed: float = 0.6
    calling: float = 5e-4


DEVICES = {
    "rtx4090": Device(24e9, 1.008e12, 165e12, 82.6e12, 32e9, 6e9),
    "a100": Device(80e9, 2.039e12, 312e12, 19.5e12, 300e9, 25e9),
    "h100": Device(80e9, 3.35e12, 989e12, 67e12, 450e9, 50e9),
    "h200": Device(141e9, 4.8e12, 989e12, 67e12, 450e9, 50e9),
}


@attrs.frozen
class Shape:
    """What of a causal language model costs something."""

    parameters: int
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
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocabulary=config.vocab_size,
        )

    @classmethod
    def load(cls, model: str, trust_remote_code: bool = False) -> Shape:
        """Of a hub id or folder, whose weights are not read.

        Raises:
            BadInput: no such model, or not a causal language model with attention.
        """
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
            with torch.device("meta"):
                return cls.of(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise BadInput(f"model {model!r} cannot be estimated: {str(error).strip().splitlines()[0]}") from None


@attrs.frozen
class Passes:
    """What one batch asks of networks, each a set of K responses a prompt; means over the updates of a rehearsal.

    Attributes:
        sampled: sets that are drawn.
        reading: networks that are read to draw them; a mixture reads two.
        scored: sets whose log-probabilities are computed without gradient.
        trained: sets with a backward pass.
    """

    sampled: float
    reading: float
    scored: float
    trained: float


def passes(solver: Solver, game: Game, inner_steps: int) -> tuple[Passes, int]:
    """The passes of a solver's batches, and the networks it holds, student and reference included."""
    found: list[Passes] = []
    pool: NetworkPool | None = None
    for pool, dry, update in rehearse(solver, game, inner_steps):
        found.append(_passes(pool, dry, update))
    assert pool is not None
    columns = zip(*(attrs.astuple(one) for one in found), strict=True)
    return Passes(*(sum(column) / len(found) for column in columns)), 2 + len(pool.spares)


def _passes(pool: NetworkPool, game: Game, update: Update) -> Passes:
    student = pool.policy()
    terms = () if update.opponent is None or isinstance(update.opponent, Itself) else update.opponent.terms
    others = [as_language(policy) for policy, _ in terms if not same_network(as_language(policy), student)]
    frozen = [anchor.policy for anchor in update.anchors]
    if update.loss is not None:
        frozen += [update.start, game.reference]
    scored = sum(not same_network(as_language(policy), student) for policy in frozen)
    joins = update.loss is not None and update.loss.joins(update)
    trained = 1 + (len(others) if joins else 0)
    return Passes(1 + len(others), 1 + sum(len(other.parts) for other in others), scored, trained)


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
    held: int,
    *,
    rows: int,
    prompt: int,
    response: int,
    weight_bytes: int = 4,
    compute_bytes: int = 4,
    devices: int = 1,
    spread: bool = False,
    checkpointing: bool = False,
    reading: int = 1,
) -> Memory:
    """Bytes on each device.

    Args:
        held: networks, student and reference included.
        rows: responses a batch: prompts times samples.
        prompt: tokens of a prompt, padding included.
        response: tokens of a response.
        weight_bytes: bytes a number of the weights: 4 in float32 and under autocast.
        compute_bytes: bytes a number of the activations: 2 in bf16.
        devices: in the run.
        spread: whether weights are spread over them (fsdp2).
        checkpointing: whether only what goes into each block is kept.
        reading: networks that generate together.
    """
    parts = devices if spread else 1
    one = shape.parameters * weight_bytes
    tokens = rows * (prompt + response)
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    # Norms compute in float32: input, normalised and scaled. Attention keeps q, k, v and its answer twice, once as
    # heads and once as the input of the projection; the feed-forward layer four tensors of its width.
    block = 3 * 2 * shape.hidden * 4 + (3 * queries + 2 * keys + 4 * shape.inner) * compute_bytes
    kept = shape.hidden * compute_bytes if checkpointing else block
    activations = tokens * (shape.layers * kept + (block if checkpointing else 0) + 3 * shape.hidden * 4)
    return Memory(
        weights=held * one / parts,
        gradients=one / parts,
        optimizer=2 * one / parts,
        gathered=reading * shape.parameters * compute_bytes if spread else 0,
        cache=reading * tokens * shape.layers * 2 * keys * compute_bytes,
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
) -> Seconds:
    """Seconds of one gradient step of `accumulate` batches on each of `devices` devices; arguments as of `memory`."""
    flops = (device.half if compute_bytes == 2 else device.single) * device.reached
    stream = device.bandwidth * device.streamed
    tokens = rows * (prompt + response)
    attention = 4 * shape.layers * shape.heads * shape.head_size * (prompt + response) / 2
    forward = 2 * shape.parameters + attention  # FLOP a token
    cached = rows * (prompt + response / 2) * shape.layers * 2 * shape.kv_heads * shape.head_size * compute_bytes
    token = max((shape.parameters * compute_bytes + cached) / stream, rows * forward / flops)
    # The prompt is read once for all its samples; that is little beside the tokens that follow, and left out.
    called = shape.layers * device.calling
    generating = work.reading * response * (token + called)
    one = tokens * forward / flops + called
    scoring = work.scored * one
    training = work.trained * one * (4 if checkpointing else 3)
    # Weights, gradients and two moments are read, all but the gradients written, three times more passed through.
    updating = 10 * 4 * shape.parameters / (devices if spread else 1) / stream
    link = device.network if nodes > 1 else device.link
    exchanged = 0.0
    if devices > 1 and spread:
        # Gathered for each network that generates or scores, twice for what trains, whose gradients are summed too.
        gathers = work.reading + work.scored + 2 * work.trained
        exchanged = accumulate * shape.parameters * (gathers * compute_bytes + 4) / link
    elif devices > 1:
        exchanged = 2 * shape.parameters * 4 / link
    share = (devices - 1) / devices
    return Seconds(
        generating=accumulate * generating,
        scoring=accumulate * scoring,
        training=accumulate * training,
        updating=updating,
        exchanging=exchanged * share,
    )


class _Absent(PreferenceOracle):
    """Nobody is asked in a rehearsal."""

    def probability(self, prompts: Any, first: Any, second: Any) -> Any:
        raise NotImplementedError


def estimate(config: TrainConfig, name: str) -> dict[str, Any]:
    """What `nlhf-zoo train --estimate NAME` prints: memory in GiB a device, seconds a step, hours in all.

    Raises:
        BadInput: an unknown device, or settings whose number of devices is not known before they are there.
    """
    from nlhf_zoo.drive import configure
    from nlhf_zoo.registry import lookup

    if name not in DEVICES:
        raise BadInput(f"estimate: unknown device {name!r}; known are {', '.join(DEVICES)}")
    if not str(config.devices).isdigit():
        raise BadInput(f"estimate: devices must be a number, got {config.devices!r}")
    device, shape = DEVICES[name], Shape.load(config.model, config.trust_remote_code)
    options = {**lookup("solvers", config.solver).practical(config.beta), **config.solver_options}
    game = Game(_Absent(), SlotPolicy(None, None, Decoding()), config.beta)
    work, held = passes(configure(config.solver, **options), game, config.inner_steps)
    devices = int(config.devices) * config.nodes
    sizes: dict[str, Any] = {
        "rows": config.batch_size * config.num_samples,
        "prompt": config.max_prompt_tokens,
        "response": config.max_new_tokens,
        "compute_bytes": 4 if config.precision.startswith("32") else 2,
        "devices": devices,
        "spread": config.strategy == "fsdp2",
        "checkpointing": config.gradient_checkpointing,
    }
    weight_bytes = 2 if config.precision in ("bf16-true", "16-true") else 4
    reading = 1 + int(work.reading > work.sampled)
    room = memory(shape, held, weight_bytes=weight_bytes, reading=reading, **sizes)
    time = seconds(shape, work, device, accumulate=config.accumulate, nodes=config.nodes, **sizes)
    return {
        "device": name,
        "devices": devices,
        "parameters": shape.parameters,
        "models_held": held,
        "gib": {key: value / GIB for key, value in attrs.asdict(room).items()} | {"peak": room.peak / GIB},
        "fits": room.peak < 0.9 * device.memory,
        "seconds": attrs.asdict(time) | {"step": time.step},
        "hours": config.steps * time.step / 3600,
        "left_out": "judges, evaluation, and what the allocator and CUDA take (about a tenth of the memory)",
    }
