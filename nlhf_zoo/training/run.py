"""One training run from its configuration to a folder with policy, result, samples and checkpoints."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor

from nlhf_zoo.atomic import alone, sweep, write_text
from nlhf_zoo.data.pairs import read_labelled_pairs
from nlhf_zoo.drive import configure
from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Game, Solver
from nlhf_zoo.llm.loading import load_tokenizer
from nlhf_zoo.llm.tokens import Decoding
from nlhf_zoo.registry import lookup
from nlhf_zoo.training.budget import Budget
from nlhf_zoo.training.checkpoints import WholeCheckpoints, step_of
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.context import check_context, check_vocabulary, remark
from nlhf_zoo.training.export import save_policy
from nlhf_zoo.training.judges import JudgeWatch, build_judges
from nlhf_zoo.training.local_files import rooted
from nlhf_zoo.training.loggers import make_logger
from nlhf_zoo.training.memory import load_pool
from nlhf_zoo.training.model_card import model_card
from nlhf_zoo.training.module import NashTraining
from nlhf_zoo.training.networks import models_held
from nlhf_zoo.training.processes import first_process
from nlhf_zoo.training.progress import ProgressBar
from nlhf_zoo.training.prompt_sets import prompts_of
from nlhf_zoo.training.quiet import quiet_lightning
from nlhf_zoo.training.resuming import begin, check_unchanged, read_audit, read_changes, read_warned, resumable
from nlhf_zoo.training.stopping import SignalStop
from nlhf_zoo.training.strategies import strategy_of
from nlhf_zoo.training.stream import PromptData, PromptText
from nlhf_zoo.training.values import plain
from nlhf_zoo.training.watching.divergence import Diverged, DivergenceGuard, SoundCheckpoints
from nlhf_zoo.training.watching.evaluating import Evaluator
from nlhf_zoo.training.watching.watcher import Watcher

__all__ = ["train"]

logger = logging.getLogger("nlhf_zoo.training")

_LOCK = ".lock"


@attrs.frozen
class Run:
    """What a run is made of, loaded and checked, before anything is written."""

    config: TrainConfig
    solver: Solver
    prompts: tuple[PromptText, ...]
    module: NashTraining
    trainer: Trainer
    evaluator: Evaluator
    stop: SignalStop


def train(config: TrainConfig) -> dict[str, Any]:
    """Train, evaluate, and write the run's folder.

    `config.out` receives config.yaml, inputs.json (digests of the local files that were read), checkpoints/, logs/,
    samples/, warnings.jsonl, policy/ (transformers format, with tokenizer), evaluations.jsonl (one row an evaluation on
    the way) and result.json, the last of these when all is done.

    Returns:
        What result.json holds: solver, beta, steps, queries, seconds, tokens_generated, models_held, win_rate
        (by oracle, with 95 % intervals), kl_to_reference, lengths, entropy, audit, judges (their calls, money, ...),
        warnings, and where the policy is.

    Raises:
        BadInput: a setting, model, data set or oracle that cannot be used; nothing has been written then.
        Interrupted: a signal has stopped the run, whose last step is kept.
        Diverged: the run was stopped; result.json says at which step, why, and where the last good checkpoint is.
    """
    given, config = config, _rooted(config)
    checkpoint = resumable(config, _LOCK)
    run = _prepare(config, checkpoint)
    with _alone_in(config.out):
        check_unchanged(config, checkpoint)
        return _trained(run, given, checkpoint)


@contextlib.contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """The run's folder, made and held, so that two processes never write each other's checkpoints."""
    with contextlib.ExitStack() as held:
        if first_process():
            out.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(alone(out / _LOCK))
            except BlockingIOError:
                raise BadInput(f"out: another process is training in {out}; wait until it ends, or end it") from None
        yield


def _trained(run: Run, given: TrainConfig, checkpoint: str | None) -> dict[str, Any]:
    config, out = run.config, run.config.out
    if first_process():
        for folder in (out, out / "checkpoints"):
            sweep(folder)
        begin(config, checkpoint)
    module, trainer = run.module, run.trainer
    data = PromptData(run.prompts, config.batch_size, config.seed)
    held = models_held(run.solver, module.game, config.inner_steps)
    logger.info("%s holds %d models in memory, student and reference included", run.solver.name, held)
    if config.precision.endswith("-true") and not config.precision.startswith(("32", "64")):
        logger.warning("%s weights lose updates below 1/256 of their size; mixed keeps them", config.precision)

    try:
        with quiet_lightning(), run.stop.listening():
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except Diverged as stop:
        if trainer.is_global_zero:
            run.evaluator.watcher.warn(stop.step, "divergence", stop.seen)
            _write_result(out, _about(run) | _stopped(out, stop))
        raise
    seconds = module.seconds
    if trainer.interrupted:
        raise KeyboardInterrupt
    # fit() moves the model to the CPU when it ends; evaluation belongs where training was.
    module.to(trainer.strategy.root_device)
    result: dict[str, Any] = {
        **_about(run),
        "steps": trainer.global_step,
        "solver_steps": module.state.step,
        "queries": module.queries.total,
        "tokens_generated": module.tokens_generated,
        "seconds": seconds,
        "models_held": held,
    }
    result = _finish(run, given, module, result)
    trainer.strategy.barrier()
    return result


def _rooted(config: TrainConfig) -> TrainConfig:
    """The same, with paths that hold from any folder: a run is resumed from where one happens to stand."""
    settings = attrs.asdict(config, recurse=False)
    return TrainConfig(**{**rooted(settings), "out": config.out.absolute()})


def _prepare(config: TrainConfig, checkpoint: str | None) -> Run:
    cls = lookup("solvers", config.solver)
    if "llm" not in cls.backends:
        raise BadInput(f"{config.solver} runs on tables only; nlhf-zoo list shows which solvers train language models")
    solver = configure(config.solver, **{**cls.practical(config.beta), **config.solver_options})
    if config.resume and config.strategy.startswith("deepspeed"):
        raise BadInput("resume: DeepSpeed writes checkpoints as pickles, which are not loaded; use ddp or fsdp2")
    guard = DivergenceGuard(config.out)
    checkpoints = SoundCheckpoints(config, guard)
    with quiet_lightning():
        trainer = _trainer(config, checkpoint, checkpoints)
    _stay_on(trainer.strategy.root_device)
    tokenizer = load_tokenizer(config.tokenizer or config.model, config.trust_remote_code)
    prompts, held_out = prompts_of(config, tokenizer)
    oracles = build_judges(config)
    labelled = () if config.labelled_pairs is None else tuple(read_labelled_pairs(config.labelled_pairs))
    engine = _engine(config.engine, config.engine_options)
    decoding = Decoding(config.max_new_tokens, config.max_prompt_tokens, config.temperature, engine=engine)
    pool = load_pool(config, tokenizer, decoding)
    check_vocabulary(pool.student.config, pool.reference.config, tokenizer, _reference_tokenizer(config))
    check_context((*prompts, *held_out), pool.reference.config, tokenizer, decoding)
    if first_process():
        remark(config, prompts, held_out, tokenizer, pool.policy().parts[0][0])
    oracles["training"].unfinished_penalty = config.unfinished_penalty
    game = Game(oracles["training"], pool.policy(pool.reference), config.beta)
    module = NashTraining(pool, solver, game, config)
    watcher = Watcher(config.out, config.steps)
    evaluator = Evaluator(config, oracles, held_out, labelled, watcher)
    stop = SignalStop(config, checkpoints)
    watching = [guard, watcher, stop, evaluator, JudgeWatch(config, game.oracle)]
    trainer.callbacks[:0] = watching  # type: ignore[attr-defined]  # a plain list
    return Run(config, solver, prompts, module, trainer, evaluator, stop)


def _reference_tokenizer(config: TrainConfig) -> Any:
    """The reference's own, where it is another model; `None` where there is none beside it."""
    if config.reference in (None, config.model):
        return None
    try:
        return load_tokenizer(config.reference, config.trust_remote_code)
    except BadInput:
        return None


def _stay_on(device: torch.device) -> None:
    """Make this process's device the one that judges with device="auto" are loaded to."""
    if device.index is not None and torch.accelerator.is_available():
        torch.accelerator.set_device_index(device)


def _engine(name: str, options: Mapping[str, Any]) -> Any:
    factory = lookup("engines", name)
    try:
        return factory(**options)
    except TypeError as error:
        reason = str(error).rpartition("() ")[2]
        raise BadInput(f"engine {name} {reason}; see nlhf-zoo list") from None


def _trainer(config: TrainConfig, checkpoint: str | None, checkpoints: SoundCheckpoints) -> Trainer:
    callbacks: list[Callback] = [checkpoints, Budget(config)]
    if config.progress:
        callbacks.append(ProgressBar())
    if config.logger != "none":
        callbacks.append(LearningRateMonitor("step"))
    try:
        return Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=strategy_of(config.strategy),
            accumulate_grad_batches=config.accumulate,
            precision=config.precision,  # type: ignore[arg-type]  # checked by Lightning, whose list grows
            max_steps=config.steps,
            max_epochs=-1,
            gradient_clip_val=config.max_grad_norm or None,
            log_every_n_steps=config.log_every,
            logger=make_logger(config, None if checkpoint is None else step_of(Path(checkpoint))),
            callbacks=callbacks,
            plugins=[WholeCheckpoints()],
            enable_model_summary=False,
            enable_progress_bar=config.progress,
            use_distributed_sampler=False,
            default_root_dir=config.out,
        )
    except BadInput:
        raise
    except Exception as error:  # Lightning raises half a dozen kinds for settings it cannot serve
        where = f"accelerator {config.accelerator}, devices {config.devices}, strategy {config.strategy}"
        reason = " ".join(str(error).split())[:300]
        raise BadInput(f"{where}, precision {config.precision}: {reason}") from None


def _finish(run: Run, given: TrainConfig, module: NashTraining, result: Mapping[str, Any]) -> dict[str, Any]:
    """Export and measure what was trained, and write result.json, the last of all; a collective call."""
    # The policy first: whatever becomes of the evaluation, the training is not lost.
    policy, saved, out = module.current, {}, run.config.out
    assert policy.network is not None
    network = module.pool.whole(policy.network)
    if run.trainer.is_global_zero:
        saved = save_policy(out, network, policy.tokenizer, trust_remote_code=run.config.trust_remote_code)
    measured = run.evaluator.evaluate(module, run.trainer.global_step)
    finished = plain(
        {
            **result,
            **measured.figures,
            "judges": {role: dict(oracle.measured) for role, oracle in run.evaluator.oracles.items()},
            "audit": read_audit(out),
            "warnings": read_warned(out),
            "changes": read_changes(out),
            **saved,
        }
    )
    if run.trainer.is_global_zero:
        write_text(out / "policy" / "README.md", model_card(given, finished))
        _write_result(out, finished)
    return finished


def _about(run: Run) -> dict[str, Any]:
    options = attrs.asdict(run.solver)  # type: ignore[arg-type]  # solvers are attrs classes
    return {"solver": run.solver.name, "solver_options": options, "beta": run.config.beta}


def _stopped(out: Path, stop: Diverged) -> dict[str, Any]:
    """What there is to say of a run that diverged: where, why, and from where it can go on."""
    return {
        "steps": stop.step,
        "stopped": {"step": stop.step, "seen": stop.seen, "checkpoint": stop.checkpoint},
        "warnings": read_warned(out),
    }


def _write_result(out: Path, result: Mapping[str, Any]) -> None:
    text = json.dumps(plain(result), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(out / "result.json", text + "\n")
