"""The Lightning loop around a solver: propose, train the batches of the update, accept."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Game, Outcome, QueryCount, Solver, State, Update, weights_changed
from nlhf_zoo.llm.objective import measured_distances, sampled_objective
from nlhf_zoo.llm.payoffs import check_samples
from nlhf_zoo.llm.tokens import PromptBatch
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.networks import NetworkPool, SlotPolicy
from nlhf_zoo.training.processes import everyone, total
from nlhf_zoo.training.strategies import ShardedStrategy
from nlhf_zoo.training.stream import PromptText, encoded_prompts

__all__ = ["NashTraining", "seeded"]


def seeded(device: torch.device | str, *numbers: int) -> torch.Generator:
    """A generator whose seed is a hash of these numbers (seed, batch, ...)."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)


@attrs.frozen(eq=False, slots=False)
class _Seen:
    """One batch of a gradient step: what was drawn from, what it cost, and what was measured."""

    number: int
    prompts: PromptBatch
    queries: QueryCount
    tokens: int
    measured: Mapping[str, Tensor]

    @functools.cached_property
    def numbers(self) -> dict[str, float]:
        """What was measured, brought from each device at once, when its work is done; judges may be on the CPU."""
        numbers: dict[str, float] = {}
        for device in {value.device for value in self.measured.values()}:
            here = {name: value for name, value in self.measured.items() if value.device == device}
            stacked = torch.stack([value.double() for value in here.values()])
            numbers.update(zip(here, stacked.tolist(), strict=True))
        return {name: numbers[name] for name in self.measured}


class NashTraining(LightningModule):
    """One training run of one solver on one language model.

    The solver's `State` lives here; its policies are slots of a `NetworkPool`. One batch a process, or several with
    accumulation, make a gradient step on the update at hand; when the update has had its steps, the solver accepts the
    outcome and proposes the next. Every random draw is seeded by (seed, number of the batch), so that a resumed run
    repeats what it would have done, on any number of processes.

    Attributes:
        measured: what was seen in the last gradient step, for callbacks: means over its batches, on all processes.
    """

    def __init__(self, pool: NetworkPool, solver: Solver, game: Game, config: TrainConfig) -> None:
        super().__init__()
        self.pool, self.solver, self.config = pool, solver, config
        self.game = attrs.evolve(game, reference=pool.policy(pool.reference))
        self.state = pool.own_slots(solver.init(self.game, pool.policy()))
        check_samples(pool.policy(), solver.propose(self.game, self.state), config.num_samples)
        self.update: Update | None = None
        self.inner_done = 0
        self._seen: list[_Seen] = []
        self.measured: dict[str, float] = {}
        self._shown: dict[str, float] = {}
        self.tokens_generated = 0
        self.seconds_before = 0.0
        self._begun = time.perf_counter()
        self._queries = QueryCount()
        self._dropout_off()
        self._buffers_before = {name: one.clone() for name, one in pool.named_buffers() if one.is_floating_point()}

    @property
    def seconds(self) -> float:
        """Wall time of the training, sessions before a resume included."""
        return self.seconds_before + time.perf_counter() - self._begun

    @property
    def queries(self) -> QueryCount:
        """What this process has asked the oracle, in the update at hand too."""
        return self._queries

    def on_fit_start(self) -> None:
        self._begun = time.perf_counter()
        self._buffers_back()

    @property
    def current(self) -> SlotPolicy:
        """The solver's answer so far; in the middle of a long update, the student on its way to the next."""
        current = self.state.current
        return current if isinstance(current, SlotPolicy) and self.update is None else self.pool.policy()

    def training_step(self, batch: tuple[int, Sequence[PromptText]], batch_idx: int) -> Tensor:
        number, prompts = batch
        update = self._update()
        torch.manual_seed(int(seeded("cpu", self.config.seed, number, 1).initial_seed()))
        generator = seeded(self.device, self.config.seed, number)
        student = self.pool.policy()
        encoded = encoded_prompts(prompts, student)
        before = self.game.oracle.queries
        # Dropout would make the trained policy another than the sampled one; recomputation needs train mode.
        self.pool.student.train(self.config.gradient_checkpointing)
        samples, chunks = self.config.num_samples, self.config.judge_chunks
        objective = sampled_objective(student, update, self.game, encoded, samples, generator, chunks=chunks)
        queries = self.game.oracle.queries - before
        self._seen.append(_Seen(number, encoded, queries, objective.tokens_generated, objective.measured))
        return objective.loss

    def loss(self) -> float:
        """Mean loss of this process's batches of the gradient step that is under way."""
        return sum(batch.numbers["loss"] for batch in self._seen) / len(self._seen)

    def show(self, name: str, value: float) -> None:
        """Note "train/NAME" of the gradient step that is under way, equal on all processes, for the logger."""
        self._shown[f"train/{name}"] = value

    def _to_loggers(self) -> None:
        """One call a step and logger: Lightning's own books, a call a number, took a fifth of a small model's step."""
        step = self.trainer.global_step  # of the steps taken before this one, as Lightning counts
        if (step + 1) % self.config.log_every == 0:
            for one in self.trainer.loggers:
                one.log_metrics(self._shown, step)
        self._shown = {}

    def _count(self) -> None:
        """Add what the step's batches cost, on all processes."""
        costs = [(batch.queries.exact, batch.queries.sampled, batch.tokens) for batch in self._seen]
        exact, sampled, tokens = total([sum(cost) for cost in zip(*costs, strict=True)], self.device)
        self._queries = self._queries + QueryCount(exact, sampled)
        self.tokens_generated += tokens

    def _log(self) -> None:
        """Means over the step's batches, on all processes."""
        self.measured = _means(
            [one for several in everyone([batch.numbers for batch in self._seen]) for one in several]
        )
        for name, value in self.measured.items():
            self.show(name, value)
        if self.trainer.progress_bar_callback is not None:
            for name in ("preference", "kl_to_reference", "length"):
                if name in self.measured:
                    self.log(f"train/{name}", self.measured[name], prog_bar=True, logger=False, batch_size=1)
        for name, value in self.state.numbers.items():
            if isinstance(value, int | float):
                self.show(name, float(value))
        self.show("solver_step", float(self.state.step))
        self.show("queries", float(self._queries.total))

    def _update(self) -> Update:
        if self.update is None:
            self.update = self.solver.propose(self.game, self.state)
            if self.inner_done == 0:
                self.pool.begin(self.solver, self.game, self.state, self.update, self._steps(self.update))
        return self.update

    def _steps(self, update: Update) -> int:
        return update.steps or self.config.inner_steps

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # Here, and not in a hook at the end of the batch: checkpoints are written before those run.
        super().optimizer_step(*args, **kwargs)
        weights_changed(self.pool.student)  # not every optimizer writes where torch sees it
        if len(self._seen) < self.trainer.accumulate_grad_batches:
            return  # DeepSpeed counts the batches itself, and is called at each
        self._count()
        self._log()
        self.inner_done += 1
        assert self.update is not None
        if self.inner_done == self._steps(self.update):
            self._accept()
        self._to_loggers()
        self._seen.clear()

    def _accept(self) -> None:
        answer = self.pool.policy()
        outcome = Outcome(answer, self._queries - self.state.queries, self._distances(answer))
        state = self.solver.accept(self.game, self.state, outcome)
        self.pool.settle(state)
        self.state = attrs.evolve(state, queries=self._queries)
        self.update, self.inner_done = None, 0

    def _distances(self, answer: SlotPolicy) -> dict[str, float]:
        """What the solver wants to know of the answer, on the step's prompts; the same on every process."""
        assert self.update is not None
        if not self.update.distances:
            return {}
        self.pool.student.eval()
        mine: list[dict[str, float]] = []
        tokens = 0
        for batch in self._seen:
            generator = seeded(self.device, self.config.seed, batch.number, 2)
            found, count = measured_distances(
                self.update, answer, batch.prompts, num_samples=self.config.num_samples, generator=generator
            )
            mine.append(found)
            tokens += count
        self.tokens_generated += total([tokens], self.device)[0]
        found = _pooled([one for several in everyone(mine) for one in several])
        for name, value in found.items():
            self.show(name, value)
        return found

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ShardedStrategy):
            self.pool.spread(self.trainer.strategy.shard)

    def configure_optimizers(self) -> Any:
        config = self.config
        parameters = [p for p in self.pool.student.parameters() if p.requires_grad]
        optimizer: Optimizer = AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        schedule = LambdaLR(optimizer, functools.partial(_share_of_rate, config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["nlhf_zoo"] = {
            **self.pool.describe(self.state),
            "solver": self.solver.name,
            "step": self.state.step,
            "phase": self.state.phase,
            "numbers": dict(self.state.numbers),
            "queries": [self._queries.exact, self._queries.sampled],
            "accepted_queries": [self.state.queries.exact, self.state.queries.sampled],
            "inner_done": self.inner_done,
            "batches_a_step": self._batches_a_step,
            "tokens_generated": self.tokens_generated,
            "seconds": self.seconds,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["nlhf_zoo"]
        if saved["batches_a_step"] != self._batches_a_step:
            raise BadInput(
                f"resume: {saved['batches_a_step']} batches made a step, and {self._batches_a_step} do now;"
                " keep devices x nodes x accumulate as it was"
            )
        self.state = State(
            policies=self.pool.restore(saved),
            step=saved["step"],
            phase=saved["phase"],
            numbers=saved["numbers"],
            queries=QueryCount(*saved["accepted_queries"]),
        )
        self._queries = QueryCount(*saved["queries"])
        self.update, self.inner_done = None, saved["inner_done"]
        self.tokens_generated, self.seconds_before = saved["tokens_generated"], saved["seconds"]
        # Lightning tells by the batches it has read where a step ends; other processes may have read as many as one.
        steps, loops = checkpoint["global_step"], checkpoint["loops"]["fit_loop"]
        for count in loops["epoch_loop.batch_progress"].values():
            if isinstance(count, dict):
                count.update(dict.fromkeys(count, steps * self.config.accumulate))
        # With all batches counted as ended, what is logged next has the number that this says.
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = steps
        self._as_configured(checkpoint)

    def _as_configured(self, checkpoint: dict[str, Any]) -> None:
        """The optimizer's settings are the configuration's, also where those of the run before the resume differ."""
        rate, decay = self.config.learning_rate, self.config.weight_decay
        (schedule,) = checkpoint["lr_schedulers"]
        now = rate * _share_of_rate(self.config, schedule["last_epoch"])
        schedule.update(base_lrs=[rate] * len(schedule["base_lrs"]), _last_lr=[now] * len(schedule["base_lrs"]))
        for optimizer in checkpoint["optimizer_states"]:
            for group in optimizer["param_groups"]:
                group.update(lr=now, initial_lr=rate, weight_decay=decay)

    @property
    def _batches_a_step(self) -> int:
        return self.trainer.world_size * self.config.accumulate

    def _buffers_back(self) -> None:
        """Buffers as they were before Lightning cast them: in bfloat16, rotary frequencies turn other angles.

        The policy that is saved and loaded again has them in float32, and is to be the one that was trained.
        """
        for name, before in self._buffers_before.items():
            module, _, last = name.rpartition(".")
            now = self.pool.get_buffer(name)
            if now.dtype != before.dtype:
                self.pool.get_submodule(module)._buffers[last] = before.to(now.device)

    def _dropout_off(self) -> None:
        """Rates to zero: gradient checkpointing needs train mode, and dropout is not wanted in it."""
        for module in self.pool.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            # Attention and some feed-forward layers keep a rate, and apply it as a function.
            for name, value in list(vars(module).items()):
                if "drop" in name and isinstance(value, float):
                    setattr(module, name, 0.0)


def _share_of_rate(config: TrainConfig, step: int) -> float:
    """The share of the learning rate in step 0, 1, ...: all in the first after the warm-up, none behind the last."""
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    done = max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return warm * _DECAYS[config.lr_schedule](min(done, 1.0))


_DECAYS: Mapping[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: (1.0 + math.cos(math.pi * done)) / 2,
}


def _means(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means by name; over those batches that have it, where not all do."""
    names = dict.fromkeys(name for one in measured for name in one)
    having = {name: [one[name] for one in measured if name in one] for name in names}
    return {name: sum(values) / len(values) for name, values in having.items()}


def _pooled(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of independent measurements, and under "NAME_error" the means' standard errors."""
    count = len(measured)
    pooled: dict[str, float] = {}
    for name in measured[0]:
        values = [one[name] for one in measured]
        if name.endswith("_error"):
            pooled[name] = sum(value * value for value in values) ** 0.5 / count
        else:
            pooled[name] = sum(values) / count
    return pooled
