"""One training step on a language model: ours beside TRL 1.13.0, the last trainer of this kind, on the same work.

python -m benchmarks llm_step --solvers nash_md online_dpo nash_mp --new-tokens 64 256 [--rounds 3] [--no-trl]
                              [--apart 0.1]

Both train the same random Llama (float32, the same initial weights) on the same prompts against the same scorer, with
the same number of responses a step: Nash-MD draws one response a prompt of the policy and one of the mixture, Online
DPO and Nash-MP two of the policy. In every round the contenders take turns in this process, each with steps of its own
warm-up; what is compared is the median over all rounds, of the clock's seconds and of the processor's, which tell more
on a machine that is shared. Counted for both: response tokens, forward calls, and token positions that a model read; of
ours also the share of a mixture's drafted tokens that was accepted. That is nearly 1 where policy and reference are the
same weights, as at the start of a training; with --apart the policy begins at so large a KL divergence a token from its
reference, by noise on its weights. TRL needs an environment in which it can be imported beside current transformers:
pip install --no-deps trl==1.13.0. Where the time of a step of ours goes is printed by phase.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import attrs
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from nlhf_zoo.drive import configure
from nlhf_zoo.interfaces import Game
from nlhf_zoo.llm import policy as language_policy
from nlhf_zoo.llm import scoring
from nlhf_zoo.llm.builtin_engine import BuiltinEngine
from nlhf_zoo.llm.small_models import byte_tokenizer
from nlhf_zoo.llm.speculative import DraftLength
from nlhf_zoo.llm.tokens import Decoding
from nlhf_zoo.oracles import RewardModelOracle
from nlhf_zoo.registry import lookup
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.module import NashTraining
from nlhf_zoo.training.networks import NetworkPool
from nlhf_zoo.training.quiet import quiet_lightning
from nlhf_zoo.training.stream import PromptData, PromptText

WORDS = "the quick brown fox jumps over a lazy dog while seven wizards box "
YARDSTICK = {"nash_md": "nash_md", "online_dpo": "online_dpo"}
BETA = 0.1


@attrs.frozen(kw_only=True)
class Setting:
    """The model's shape and the work of a step."""

    hidden: int = 256
    layers: int = 4
    batch: int = 8
    prompt_tokens: int = 32
    new_tokens: int = 64
    steps: int = 3
    warmup: int = 1


@attrs.define
class Measured:
    """Seconds of each counted step, their parts, and what was counted in a step."""

    seconds: list[float]
    cpu: list[float]
    phases: dict[str, float] = attrs.field(factory=dict)
    counted: dict[str, float] = attrs.field(factory=dict)
    scored: Scored | None = None


@attrs.define
class Scored:
    """What passes over given responses came to; the first of each pair without gradient, the second with.

    Attributes:
        positions: tokens read.
        logits: positions whose logits were computed.
        pairs: (query, key) pairs of a causal attention, in each layer and head.
    """

    positions: list[int] = attrs.field(factory=lambda: [0, 0])
    logits: list[int] = attrs.field(factory=lambda: [0, 0])
    pairs: list[int] = attrs.field(factory=lambda: [0, 0])

    def add(self, tokens: Tensor, mask: Tensor, logits: Tensor) -> None:
        rows, length = tokens.shape
        side, cached = int(torch.is_grad_enabled()), mask.shape[-1] - length
        self.positions[side] += rows * length
        self.logits[side] += logits.shape[:-1].numel()
        self.pairs[side] += rows * (length * cached + length * (length + 1) // 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solvers", nargs="+", default=["nash_md", "online_dpo", "nash_mp"])
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="counted steps of each contender in a round")
    parser.add_argument("--batch", type=int, default=8, help="prompts a step")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--apart", type=float, default=0.0, help="KL(policy || reference) a token at the start")
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--profile", action="store_true", help="Python's own profile of our steps")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    trl = not given.no_trl and importlib.util.find_spec("trl") is not None
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), load average {os.getloadavg()[0]:.1f}")
    for length in given.new_tokens:
        setting = Setting(
            hidden=given.hidden, layers=given.layers, batch=given.batch, new_tokens=length, steps=given.steps
        )
        models = Models(setting, given.device, given.apart)
        for solver in given.solvers:
            compare(solver, setting, models, given.rounds, trl and solver in YARDSTICK, given.profile)


def compare(solver: str, setting: Setting, models: Models, rounds: int, trl: bool, profile: bool) -> None:
    ours: list[Measured] = []
    theirs: list[Measured] = []
    for round_ in range(rounds):
        if trl:
            theirs.append(run_trl(YARDSTICK[solver], setting, models, seed=round_))
        with profiled(profile and round_ == rounds - 1):
            ours.append(run_ours(solver, setting, models, seed=round_))
    print(f"\n{solver}, {setting.new_tokens} new tokens, {setting.batch} prompts a step")
    for name, found in (("ours", ours), ("TRL", theirs)):
        if not found:
            continue
        seconds = [one for run in found for one in run.seconds]
        counted = {key: statistics.fmean(run.counted[key] for run in found) for key in found[0].counted}
        cpu = statistics.median(one for run in found for one in run.cpu)
        print(
            f"  {name:<5} {statistics.median(seconds):.3f} s a step ({min(seconds):.3f} to {max(seconds):.3f}),"
            f" processor {cpu:.3f} s, {1e3 * statistics.median(seconds) / counted['response tokens']:.3f} ms a response"
            " token; a step: "
            + ", ".join(f"{value:,.{0 if value > 1 else 3}f} {key}" for key, value in counted.items())
        )
    if theirs:
        for what in ("seconds", "cpu"):
            medians = [statistics.median(s for run in found for s in getattr(run, what)) for found in (theirs, ours)]
            pairs = [
                statistics.median(getattr(a, what)) / statistics.median(getattr(b, what))
                for a, b in zip(theirs, ours, strict=True)
            ]
            print(f"  TRL / ours, {what}: {medians[0] / medians[1]:.2f} (rounds {min(pairs):.2f} to {max(pairs):.2f})")
    total = sum(sum(run.seconds) for run in ours)
    shares = {name: sum(run.phases.get(name, 0.0) for run in ours) / total for name in PHASES}
    shares["rest"] = 1 - sum(shares.values())
    print("  ours: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))


def now(device: str) -> float:
    """The clock, when the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def profiled(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    import cProfile
    import pstats

    with cProfile.Profile() as profile:
        yield
    pstats.Stats(profile).sort_stats("tottime").print_stats(35)


class Models:
    """Model, scorer, tokenizer and prompts of both contenders; copies are handed out."""

    def __init__(self, setting: Setting, device: str, apart: float) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

        torch.manual_seed(0)
        self.device = device
        self.tokenizer = byte_tokenizer()
        shape = {
            "vocab_size": len(self.tokenizer),
            "max_position_embeddings": 2048,
            "pad_token_id": self.tokenizer.pad_token_id,
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
        }
        heads = max(1, setting.hidden // 64)
        self.model: Any = LlamaForCausalLM(
            LlamaConfig(
                **shape,
                hidden_size=setting.hidden,
                intermediate_size=4 * setting.hidden,
                num_hidden_layers=setting.layers,
                num_attention_heads=heads,
                num_key_value_heads=heads,
            )
        )
        scorer = LlamaConfig(
            **shape,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            num_labels=1,  # type: ignore[call-arg]  # of every configuration
        )
        scorer_model: Any = LlamaForSequenceClassification(scorer)
        self.scorer = scorer_model.to(device).eval()
        count = setting.batch * (setting.steps + setting.warmup) + 8
        self.prompts = [(WORDS * 4)[i % 60 :][: setting.prompt_tokens - 1] for i in range(count)]

        self.start = self._moved(apart) if apart else self.model

    def pool(self, decoding: Decoding) -> NetworkPool:
        return NetworkPool(self.student(), self.reference().eval(), self.tokenizer, decoding)

    def student(self) -> Any:
        return copy.deepcopy(self.start).to(self.device)

    def reference(self) -> Any:
        return copy.deepcopy(self.model).to(self.device)

    @torch.no_grad()
    def _moved(self, apart: float) -> Any:
        """The model with noise on its weights that makes KL(it || the model) `apart` a token of the prompts."""
        ids = torch.tensor([self.tokenizer(text)["input_ids"][: len(self.prompts[0])] for text in self.prompts[:8]])
        held = self.model(ids).logits.log_softmax(-1)
        low, high = 0.0, 4.0
        moved, distance = self.model, 0.0
        for _ in range(20):
            size = (low + high) / 2
            moved, draw = copy.deepcopy(self.model), torch.Generator().manual_seed(1)
            for weight in moved.parameters():
                if weight.ndim > 1:
                    weight += size * weight.std() * torch.randn(weight.shape, generator=draw)
            found = moved(ids).logits.log_softmax(-1)
            distance = float((found.exp() * (found - held)).sum(-1).mean())
            low, high = (size, high) if distance < apart else (low, size)
        print(f"KL(policy || reference) at the start: {distance:.3f} a token")
        return moved


class Counter:
    """Forward calls of causal LMs, and the positions they read."""

    def __init__(self, *models: Any) -> None:
        self.calls = self.positions = self.with_gradient = 0
        self._handles = [model.register_forward_pre_hook(self._count, with_kwargs=True) for model in models]

    def _count(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        assert ids is not None
        self.calls += 1
        self.positions += ids.numel()
        if torch.is_grad_enabled():
            self.with_gradient += ids.numel()

    def state(self) -> tuple[int, int, int]:
        return self.calls, self.positions, self.with_gradient


class Offered(Protocol):
    """What both contenders ask of the models; `Models` is one that has it."""

    device: str
    tokenizer: Any
    scorer: Any
    prompts: list[str]

    def pool(self, decoding: Decoding) -> NetworkPool: ...

    def student(self) -> Any: ...

    def reference(self) -> Any: ...


def run_trl(kind: str, setting: Setting, models: Offered, seed: int) -> Measured:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import transformers
    from datasets import Dataset
    from transformers import TrainerCallback

    transformers.utils.logging.set_verbosity_error()
    if kind == "nash_md":
        from trl.experimental.nash_md import NashMDConfig as Config  # type: ignore[import-not-found]
        from trl.experimental.nash_md import NashMDTrainer as TheTrainer  # type: ignore[import-not-found]
    else:
        from trl.experimental.online_dpo import OnlineDPOConfig as Config  # type: ignore[import-not-found]
        from trl.experimental.online_dpo import OnlineDPOTrainer as TheTrainer  # type: ignore[import-not-found]

    model, reference = models.student(), models.reference()
    counter = Counter(model, reference)
    seconds: list[float] = []
    cpu: list[float] = []
    states: list[tuple[int, int, int]] = []

    class Timer(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began, self.cpu = now(models.device), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(now(models.device) - self.began)
            cpu.append(time.process_time() - self.cpu)
            states.append(counter.state())

    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            output_dir=folder,
            per_device_train_batch_size=setting.batch,
            max_steps=setting.steps + setting.warmup,
            max_new_tokens=setting.new_tokens,
            report_to=[],
            logging_steps=1000,
            save_strategy="no",
            use_cpu=models.device == "cpu",
            bf16=False,
            gradient_checkpointing=False,
            missing_eos_penalty=None,
            temperature=1.0,
            disable_tqdm=True,
            max_length=2048,
            beta=BETA,
            learning_rate=1e-6,
            seed=seed,
        )
        options: dict[str, Any] = {
            "model": model,
            "ref_model": reference,
            "reward_funcs": models.scorer,
            "args": config,
            "train_dataset": Dataset.from_list([{"prompt": text} for text in models.prompts]),
            "processing_class": models.tokenizer,
            "callbacks": [Timer()],
        }
        if kind == "online_dpo":
            options["reward_processing_classes"] = models.tokenizer
        trainer = TheTrainer(**options)
        lengths = _trl_lengths(trainer)
        trainer.train()
    return _measured(seconds, cpu, {}, states, lengths, setting)


def _trl_lengths(trainer: Any) -> list[int]:
    """Response tokens of every generation of TRL's trainer, end tokens included, padding left out."""
    lengths: list[int] = []
    pad = trainer.processing_class.pad_token_id
    name = "_process_completions" if hasattr(trainer, "_process_completions") else "_generate"
    if name == "_process_completions":
        inner = trainer._process_completions

        def both(model_output: Any, mixture_output: Any, prompts: Any) -> Any:
            start = prompts["input_ids"].shape[1]
            lengths.append(sum(int((out[:, start:] != pad).sum()) for out in (model_output, mixture_output)))
            return inner(model_output, mixture_output, prompts)

        trainer._process_completions = both
        return lengths
    inner = trainer._generate

    def counted(*args: Any, **kwargs: Any) -> Any:
        out = inner(*args, **kwargs)
        lengths.append(int(out[3].sum()))
        return out

    trainer._generate = counted
    return lengths


PHASES = ("generation", "judging", "forward", "backward", "optimizer")


class Phases(Callback):
    """Adds up the seconds of each phase of the counted steps."""

    def __init__(self, warmup: int, counter: Counter, device: str) -> None:
        self.warmup, self.counter, self.device = warmup, counter, device
        self.scored = Scored()
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.accepted = self.drafted = 0
        self.states: list[tuple[int, int, int]] = []
        self.lengths: list[int] = []
        self.spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = now(self.device)
        yield
        if len(self.seconds) >= self.warmup:
            self.spent[name] += now(self.device) - began

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        self.began, self.cpu_began = now(self.device), time.process_time()

    def on_before_backward(self, *_: Any, **__: Any) -> None:
        self.backward = self.phase("backward")
        self.backward.__enter__()

    def on_after_backward(self, *_: Any, **__: Any) -> None:
        self.backward.__exit__(None, None, None)

    def on_before_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.optimizer = self.phase("optimizer")
        self.optimizer.__enter__()

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(now(self.device) - self.began)
        self.cpu.append(time.process_time() - self.cpu_began)
        self.states.append(self.counter.state())
        if len(self.seconds) == self.warmup:
            self.scored = Scored()


def options_of(solver: str) -> dict[str, Any]:
    """The solver's hyperparameters."""
    # TRL mixes half and half.
    return {"eta": 0.5 / BETA} if solver == "nash_md" else dict(lookup("solvers", solver).practical(BETA))


def run_ours(
    solver: str, setting: Setting, models: Offered, seed: int, *, counting: bool = True, **trainer_options: Any
) -> Measured:
    """Args:
    counting: forward calls too; the hooks that count them keep the engine from replaying CUDA graphs.
    """
    config = TrainConfig(
        model="", prompts="", oracle="", out=tempfile.gettempdir(), beta=BETA, solver=solver, seed=seed,
        batch_size=setting.batch, num_samples=1 if solver == "nash_md" else 2, steps=setting.steps + setting.warmup,
    )  # fmt: skip
    made = configure(solver, **options_of(solver))
    oracle = RewardModelOracle(models.scorer, models.tokenizer, max_length=2048)
    pool = models.pool(Decoding(setting.new_tokens, 512))
    module = NashTraining(pool, made, Game(oracle, pool.policy(pool.reference), BETA), config)
    counter = Counter(*([pool.student, pool.reference] if counting else []))
    watch = Phases(setting.warmup, counter, models.device)
    restore = _watched(watch, oracle)
    try:
        with quiet_lightning():
            trainer = Trainer(
                max_steps=config.steps, max_epochs=-1, logger=False, enable_checkpointing=False,
                enable_model_summary=False, enable_progress_bar=False, use_distributed_sampler=False,
                callbacks=[watch], gradient_clip_val=1.0, accelerator="gpu" if models.device == "cuda" else "cpu",
                devices=1, **trainer_options,
            )  # fmt: skip
            texts = [PromptText(text, text) for text in models.prompts]
            trainer.fit(module, datamodule=PromptData(texts, setting.batch, seed))
    finally:
        restore()
    measured = _measured(watch.seconds, watch.cpu, dict(watch.spent), watch.states, watch.lengths, setting)
    measured.scored = watch.scored
    if watch.drafted:
        measured.counted["of drafts accepted"] = watch.accepted / watch.drafted
    return measured


def _watched(watch: Phases, oracle: RewardModelOracle) -> Any:
    """Put stop-watches around generation, judging, forward passes and the optimizer; returns what takes them off."""
    generate, token_log_prob = BuiltinEngine.generate, language_policy.LanguagePolicy.token_log_prob
    step, probability, saw = torch.optim.AdamW.step, oracle.probability, DraftLength.saw
    score_forward = scoring.forward
    drawn: list[int] = []

    def generating(*args: Any, **kwargs: Any) -> Any:
        with watch.phase("generation"):
            found = generate(*args, **kwargs)
        drawn.append(sum(int(rollout.mask.sum()) for rollout in found))
        return found

    def forward(*args: Any, **kwargs: Any) -> Any:
        with watch.phase("forward"):
            return token_log_prob(*args, **kwargs)

    def stepping(*args: Any, **kwargs: Any) -> Any:
        # Lightning computes the loss in the optimizer's closure; the stop-watch starts when that is done.
        try:
            return step(*args, **kwargs)
        finally:
            watch.optimizer.__exit__(None, None, None)

    def judging(*args: Any, **kwargs: Any) -> Any:
        with watch.phase("judging"):
            return probability(*args, **kwargs)

    def verified(self: DraftLength, accepted: int, refused: int) -> None:
        watch.accepted, watch.drafted = watch.accepted + accepted, watch.drafted + accepted + refused
        saw(self, accepted, refused)

    def scoring_pass(network: Any, tokens: Tensor, mask: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = score_forward(network, tokens, mask, *args, **kwargs)
        watch.scored.add(tokens, mask, out.logits)
        return out

    scoring.forward = scoring_pass
    DraftLength.saw = verified  # type: ignore[method-assign]
    BuiltinEngine.generate = generating  # type: ignore[method-assign]
    language_policy.LanguagePolicy.token_log_prob = forward  # type: ignore[method-assign]
    torch.optim.AdamW.step = stepping  # type: ignore[method-assign]
    oracle.probability = judging  # type: ignore[method-assign]
    ended = watch.on_train_batch_end

    def batch_ended(*args: Any, **kwargs: Any) -> None:
        ended()
        watch.lengths.append(sum(drawn))
        drawn.clear()

    watch.on_train_batch_end = batch_ended  # type: ignore[method-assign]

    def restore() -> None:
        BuiltinEngine.generate = generate  # type: ignore[method-assign]
        language_policy.LanguagePolicy.token_log_prob = token_log_prob  # type: ignore[method-assign]
        torch.optim.AdamW.step = step  # type: ignore[method-assign]
        DraftLength.saw = saw  # type: ignore[method-assign]
        scoring.forward = score_forward

    return restore


def _measured(
    seconds: Sequence[float],
    cpu: Sequence[float],
    phases: dict[str, float],
    states: Sequence[tuple[int, int, int]],
    lengths: Sequence[int],
    setting: Setting,
) -> Measured:
    first, last, steps = states[setting.warmup - 1], states[-1], setting.steps
    counted = {
        "response tokens": statistics.fmean(lengths[-steps:]),
        "forward calls": (last[0] - first[0]) / steps,
        "positions read": (last[1] - first[1]) / steps,
        "of them with gradient": (last[2] - first[2]) / steps,
    }
    return Measured(list(seconds[setting.warmup :]), list(cpu[setting.warmup :]), phases, counted)


if __name__ == "__main__":
    main()
