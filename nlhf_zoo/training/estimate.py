"""`train --estimate`: the arithmetic of `nlhf_zoo.training.cost` for the settings of a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Game, Itself, PreferenceOracle, Solver, Update
from nlhf_zoo.llm import Decoding
from nlhf_zoo.llm.adapters import SharedModel, lora_config
from nlhf_zoo.llm.generation import Request, drafting_first
from nlhf_zoo.llm.policy import as_language, same_network
from nlhf_zoo.training.cost import DEVICES, Held, Passes, Shape, memory, seconds
from nlhf_zoo.training.memory import check_holding
from nlhf_zoo.training.networks import NetworkPool, SlotPolicy, rehearse

if TYPE_CHECKING:
    from nlhf_zoo.training.config import TrainConfig

__all__ = ["estimate", "passes"]

GIB = 2**30


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
    # As `nlhf_zoo.llm.generation` has it: the first part of each request drafts.
    asked = drafting_first([Request(policy.parts) for policy in (student, *others)])
    drafting = {id(parts[0][0]) for parts in asked}
    verifying = {id(network) for parts in asked for network, _ in parts[1:]}
    cached = sum(len(parts) for parts in asked)
    return Passes(len(asked), cached, len(drafting), len(verifying), scored, trained)


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
    check_holding(config)
    device, network = DEVICES[name], _empty(config)
    shape = Shape.of(network)
    options = {**lookup("solvers", config.solver).practical(config.beta), **config.solver_options}
    game = Game(_Absent(), SlotPolicy(None, None, Decoding()), config.beta)
    work, networks = passes(configure(config.solver, **options), game, config.inner_steps)
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
    held = _held(config, networks, network)
    generating = math.ceil(work.reading + work.verifying)
    room = memory(shape, held, gathered=generating, cached=work.cached, **sizes)
    captured = config.strategy != "fsdp2" and not config.load_in_4bit and config.engine == "builtin"
    time = seconds(
        shape, held, work, device, accumulate=config.accumulate, nodes=config.nodes, captured=captured, **sizes
    )
    return {
        "device": name,
        "devices": devices,
        "parameters": shape.parameters,
        "models_held": networks,
        "gib": {key: value / GIB for key, value in attrs.asdict(room).items()} | {"peak": room.peak / GIB},
        "fits": room.peak < 0.9 * device.memory,
        "seconds": attrs.asdict(time) | {"step": time.step},
        "hours": config.steps * time.step / 3600,
        "left_out": "judges, evaluation, and what the allocator and CUDA take (about a tenth of the memory)",
    }


def _empty(config: TrainConfig) -> Any:
    """The model without its weights, which are not read.

    Raises:
        BadInput: no such model, or not a causal language model with attention.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        settings = AutoConfig.from_pretrained(config.model, trust_remote_code=config.trust_remote_code)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(settings, trust_remote_code=config.trust_remote_code)
        Shape.of(network)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise BadInput(f"model {config.model!r} cannot be estimated: {str(error).strip().splitlines()[0]}") from None
    return network


def _held(config: TrainConfig, networks: int, network: Any) -> Held:
    trained = 2 if config.precision in ("bf16-true", "16-true") else 4
    frozen = 2 if config.frozen_dtype or (config.load_in_4bit and config.precision.startswith("bf16")) else trained
    adapter = 0
    if config.lora_rank:
        settings = lora_config(config.lora_rank, config.lora_alpha, config.lora_targets)
        shared = SharedModel.of(network, settings, resting="student", seed=config.seed)
        adapter = sum(p.numel() for factor in shared.factors("student") for p in factor.parameters())
    away = config.frozen_device is not None
    return Held(networks, trained, frozen, quantised=config.load_in_4bit, away=away, adapter=adapter)
