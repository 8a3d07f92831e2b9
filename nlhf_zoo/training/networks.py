"""Which network in memory holds which policy: one that trains, and as few frozen ones as the solver needs.

A solver treats policies as values. Here a value is a `SlotPolicy` that points at a network; the pool copies a
network only when training would overwrite weights that the solver still refers to. Because `accept` is pure,
the pool can ask beforehand which policies outlive an update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import nn

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Game, Outcome, Policy, QueryCount, Solver, State, Update
from nlhf_zoo.llm import Decoding, GeometricMixture, LanguagePolicy
from nlhf_zoo.llm.forward import base_network
from nlhf_zoo.llm.host import copy_weights, frozen_copy
from nlhf_zoo.llm.policy import average_into
from nlhf_zoo.llm.sharding import empty_copies, whole_copy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["NetworkPool", "SlotPolicy", "models_held", "rehearse"]


class SlotPolicy(LanguagePolicy):
    """A policy value whose network belongs to a pool, and may be moved there.

    Attributes:
        network: where its weights are now; `None` until a pending average is carried out.
        pending: (base, other, weight) of an average that has not been carried out.
    """

    def __init__(
        self,
        network: nn.Module | None,
        tokenizer: PreTrainedTokenizerBase | None,
        decoding: Decoding,
        pending: tuple[SlotPolicy, SlotPolicy, float] | None = None,
    ) -> None:
        self.network, self.pending = network, pending
        self.tokenizer, self.decoding = tokenizer, decoding  # type: ignore[assignment]  # None in a dry run only

    @property
    def parts(self) -> tuple[tuple[Any, float], ...]:
        assert self.network is not None, "an average is carried out before it is used"
        return ((self.network, 1.0),)

    def average(self, other: Policy, weight: float) -> SlotPolicy:
        if not isinstance(other, SlotPolicy):
            raise BadInput(f"parameters of a language model cannot be averaged with a {type(other).__name__}")
        return SlotPolicy(None, self.tokenizer, self.decoding, (self, other, weight))

    def improve(self, update: Update, game: Game, generator: torch.Generator | None = None) -> Outcome:
        raise BadInput("this policy is trained batch by batch; use nlhf-zoo train, or CausalLMPolicy for improve()")


def _slots(policies: Iterable[Policy]) -> list[SlotPolicy]:
    """Every pool policy that these are made of."""
    found: list[SlotPolicy] = []
    for policy in policies:
        if isinstance(policy, GeometricMixture):
            found += _slots([policy.first, policy.second])
        elif isinstance(policy, SlotPolicy):
            found += [policy] if policy.pending is None else _slots(policy.pending[:2])
        else:
            raise BadInput(f"a language model cannot play with a {type(policy).__name__}; give both the same backend")
    return found


class NetworkPool(nn.Module):
    """The student, the reference, and frozen spares.

    Attributes:
        student: the network that trains.
        reference: frozen, and never written.
        spares: frozen copies, made when first needed and used again.
        base: a model that student, reference and spares are adapters of; `None` where each is a model.
        make_spare: makes a frozen network of the student's shape, with the weights of the one it is given.
    """

    make_spare: Callable[[nn.Module], nn.Module]

    def __init__(
        self,
        student: nn.Module,
        reference: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        decoding: Decoding,
        *,
        spare: Callable[[nn.Module], nn.Module] = frozen_copy,
        base: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.reference = reference.requires_grad_(False)
        self.spares = nn.ModuleList()
        self.base = base
        self._tokenizer, self._decoding, self.make_spare = tokenizer, decoding, spare
        self._busy: set[int] = set()
        self._shard: Callable[[nn.Module], None] | None = None
        self._empty: Callable[[], nn.Module] | None = None
        # These are loaded again from where they came from: a checkpoint holds what training makes, and no more.
        self.register_state_dict_post_hook(_without_fixed)
        self.register_load_state_dict_post_hook(_fixed_are_not_missed)

    def fixed_names(self) -> set[str]:
        """Names in the state dict of weights that training never changes: the reference's and the base's."""
        parts = {"reference": self.reference, **({} if self.base is None else {"base": self.base})}
        return {f"{part}.{name}" for part, module in parts.items() for name in module.state_dict()}

    def spread(self, shard: Callable[..., None]) -> None:
        """Spread every network over the processes by `shard`, those that are made later too.

        Of adapters the model that they share is spread; they themselves are small, and whole on every process.
        """
        if self.base is not None:
            adapters = (self.student, self.reference, *self.spares)
            shard(base_network(self.base), whole=[p for network in adapters for p in network.parameters()])
            return
        self._shard, self._empty = shard, empty_copies(self.student)
        for network in (self.student, self.reference, *self.spares):
            shard(network)

    def whole(self, network: nn.Module) -> nn.Module:
        """A network to save: itself, or where it is spread a copy that is whole on the first process alone."""
        return network if self._empty is None else whole_copy(network, self._empty())

    def policy(self, network: nn.Module | None = None) -> SlotPolicy:
        """A new value that stands for the weights a network (the student, unless given) holds now."""
        return SlotPolicy(self.student if network is None else network, self._tokenizer, self._decoding)

    def begin(self, solver: Solver, game: Game, state: State, update: Update, batches: int) -> None:
        """Make the student hold the update's start, saving what training is about to overwrite.

        With one batch the update's own policies are read before the only step is taken, so the student may
        stand for them itself; with more, they must stay as they are.
        """
        start = update.start
        if not isinstance(start, SlotPolicy):
            raise BadInput(f"{solver.name}: an update on a language model starts from a plain policy, not a mixture")
        outcome = self.policy()
        after = solver.accept(game, state, Outcome(outcome, QueryCount()))
        needed = [s for s in _slots(after.policies.values()) if s is not outcome]
        moved = start.network is not self.student
        if batches > 1 or moved:
            needed += _slots(update.policies)
        else:  # what is measured when the answer is there must be there still
            needed += _slots(end for pair in update.distances.values() for end in pair if isinstance(end, Policy))
        here = [s for s in _slots([*state.policies.values(), *update.policies]) if s.network is self.student]
        if any(s is n for s in here for n in needed):
            spare = self._take()
            copy_weights(self.student, spare)
            # Others go on standing for the student: what they are read for, they are read for before it moves.
            for slot in here:
                if any(slot is n for n in needed):
                    slot.network = spare
        if moved:
            assert start.network is not None
            copy_weights(start.network, self.student)

    def settle(self, state: State) -> None:
        """Carry out the averages in a new state, in place where the old value is no longer wanted; free the rest."""
        kept = [p for p in state.policies.values() if not (isinstance(p, SlotPolicy) and p.pending)]
        kept_networks = {id(s.network) for s in _slots(kept)}
        for policy in state.policies.values():
            if isinstance(policy, SlotPolicy) and policy.pending is not None:
                base, other, weight = policy.pending
                if base.network is None or other.network is None:
                    raise BadInput("an average of an average within one step is not supported on language models")
                in_place = any(base.network is s for s in self.spares) and id(base.network) not in kept_networks
                target = base.network if in_place else self._take()
                if not in_place:
                    copy_weights(base.network, target)
                average_into(target, other.network, weight)
                policy.network, policy.pending = target, None
        live = {id(s.network) for s in _slots(state.policies.values())}
        self._busy = {i for i, spare in enumerate(self.spares) if id(spare) in live}

    def _take(self) -> nn.Module:
        free = next((i for i in range(len(self.spares)) if i not in self._busy), None)
        if free is None:
            free = self._grow()
        self._busy.add(free)
        return self.spares[free]

    def _grow(self) -> int:
        if self._shard is not None and self._empty is not None:
            spare = self._empty()
            self._shard(spare)  # before it takes memory
            spare.to_empty(device=next(self.student.parameters()).device)
            copy_weights(self.student, spare)  # buffers too, which no checkpoint holds
            self.spares.append(spare.eval())
        else:
            # Modes are its maker's affair: an adapter shares the student's.
            self.spares.append(self.make_spare(self.student).requires_grad_(False))
        return len(self.spares) - 1

    def own_slots(self, state: State) -> State:
        """The same state with a value of its own for each slot, so that one can be saved without the others."""
        slots = {name: self.policy(_slots([policy])[0].network) for name, policy in state.policies.items()}
        return attrs.evolve(state, policies=slots)

    def describe(self, state: State) -> dict[str, Any]:
        """Which network each slot is on, in plain values, for a checkpoint."""
        slots = {name: self._place(name, policy) for name, policy in state.policies.items()}
        return {"slots": slots, "spares": len(self.spares)}

    def _place(self, slot: str, policy: Policy) -> str:
        if not isinstance(policy, SlotPolicy):
            raise BadInput(
                f"the slot {slot!r} holds a mixture, which on a language model has no weights of its own; keep its"
                " parts, or one.average(other, weight), which has"
            )
        if policy.network is self.student:
            return "student"
        if policy.network is self.reference:
            return "reference"
        return str(next(i for i, spare in enumerate(self.spares) if spare is policy.network))

    def restore(self, described: Mapping[str, Any]) -> dict[str, SlotPolicy]:
        """The slots of a checkpoint; two slots on one network become one value, as they were."""
        while len(self.spares) < described["spares"]:
            self._grow()
        places: dict[str, SlotPolicy] = {}
        for place in described["slots"].values():
            network = {"student": self.student, "reference": self.reference}.get(place)
            places.setdefault(place, self.policy(self.spares[int(place)] if network is None else network))
        self._busy = {int(place) for place in places if place.isdigit()}
        return {name: places[place] for name, place in described["slots"].items()}


def _without_fixed(pool: NetworkPool, weights: dict[str, Any], prefix: str, _: Any) -> None:
    for name in pool.fixed_names():
        weights.pop(prefix + name, None)


def _fixed_are_not_missed(pool: NetworkPool, keys: Any) -> None:
    fixed = tuple(pool.fixed_names())
    keys.missing_keys[:] = [name for name in keys.missing_keys if not name.endswith(fixed)]


def rehearse(
    solver: Solver, game: Game, inner_steps: int, steps: int = 3
) -> Iterator[tuple[NetworkPool, Game, Update]]:
    """A run on empty networks, whose answers change nothing: each update as it begins, with its pool and game."""
    pool = NetworkPool(nn.Linear(1, 1), nn.Linear(1, 1), None, Decoding())
    dry = attrs.evolve(game, reference=pool.policy(pool.reference))
    state = pool.own_slots(solver.init(dry, pool.policy()))
    while state.step < steps:
        update = solver.propose(dry, state)
        pool.begin(solver, dry, state, update, update.steps or inner_steps)
        yield pool, dry, update
        state = solver.accept(dry, state, Outcome(pool.policy(), QueryCount(), dict.fromkeys(update.distances, 0.0)))
        pool.settle(state)
        pool.describe(state)


def models_held(solver: Solver, game: Game, inner_steps: int, steps: int = 3) -> int:
    """Networks in memory at the most, student and reference included, found by a rehearsal."""
    pools = [pool for pool, _, _ in rehearse(solver, game, inner_steps, steps)]
    return 2 + len(pools[-1].spares)
