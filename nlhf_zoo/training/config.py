"""What one training run is: every setting, in one frozen object that a YAML file can hold. Imports no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from nlhf_zoo.errors import BadInput
from nlhf_zoo.secrecy import spilt

__all__ = ["TrainConfig"]


def _at_least(least: float, *, strictly: bool = False, finite: bool = True) -> Any:
    def check(_: Any, field: Any, value: float) -> None:
        if not value >= least or (strictly and value == least) or (finite and math.isinf(value)):
            wanted = f"{'>' if strictly else '>='} {least:g}{' and finite' if finite else ''}"
            raise BadInput(f"{field.name} must be {wanted}, got {value:g}")

    return check


def _below(most: int) -> Any:
    def check(_: Any, field: Any, value: int) -> None:
        if value >= most:
            raise BadInput(f"{field.name} must be < {most}, got {value}")

    return check


def _names(given: str | Sequence[str] | None) -> Sequence[str]:
    return tuple(given.replace(",", " ").split()) if isinstance(given, str) else tuple(given or ())


def _place(given: Any) -> Any:
    """A path as text, which a YAML file can hold."""
    return os.fspath(given) if isinstance(given, os.PathLike) else given


def _typed(cls: type, fields: list[attrs.Attribute[Any]]) -> list[attrs.Attribute[Any]]:
    """Each field of a plain type checked for it, as the command line and YAML do by their own means."""
    return [field.evolve(validator=_checked(str(field.type), field.validator)) for field in fields]


_KINDS: Mapping[str, tuple[type, str]] = {
    "int": (int, "a whole number"),
    "str": (str, "a text"),
    "bool": (bool, "true or false"),
    "Mapping[str, Any]": (Mapping, "a mapping of names to values"),
}


def _checked(hint: str, further: Any) -> Any:
    parts = hint.split(" | ")
    if not {*parts} <= {*_KINDS, "None"}:
        return further
    kinds = [_KINDS[part] for part in parts if part in _KINDS]

    def check(config: Any, field: Any, value: Any) -> None:
        fits = isinstance(value, tuple(kind for kind, _ in kinds)) and (hint == "bool" or not isinstance(value, bool))
        if not fits and not (value is None and "None" in parts):
            raise BadInput(f"{field.name} must be {' or '.join(words for _, words in kinds)}, got {value!r}")
        if further is not None:
            further(config, field, value)

    return check


def _one_of(*allowed: str | None) -> Any:
    def check(_: Any, field: Any, value: str | None) -> None:
        if value not in allowed:
            listed = " or ".join("null" if one is None else one for one in allowed)
            raise BadInput(f"{field.name} must be {listed}, got {value}")

    return check


@attrs.frozen(kw_only=True, field_transformer=_typed)
class TrainConfig:
    """One run of `nlhf-zoo train`.

    Attributes:
        model: hub id or folder of a causal language model in transformers format; where training starts.
        reference: hub id or folder of the reference model; the starting model unless given.
        tokenizer: hub id or folder; the model's own unless given.
        solver: registered name of a solver.
        solver_options: the solver's hyperparameters; begun from those its paper uses on language models.
        beta: strength of the regularisation towards the reference.
        oracle: registered name of the judge trained against.
        oracle_options: keyword arguments of the judge trained against.
        eval_oracle: a second, held-out judge for the evaluation; none unless given.
        eval_oracle_options: keyword arguments of the held-out judge.
        labelled_pairs: file of prompt, chosen, rejected: the judges' accuracy on them is part of the audit.
        prompts: file (jsonl, json, csv, parquet, txt), folder, or hub id of a data set of prompts.
        prompt_column: column that holds the prompt, a text or a list of chat messages.
        prompt_split: split of a data set.
        eval_prompts: prompts of the evaluation; unless given, `eval_size` different ones of `prompts`, at most half,
            are held out with all their repetitions.
        chat: wrap plain prompts as a user's message in the tokenizer's chat template.
        steps: gradient steps.
        engine: registered name of what generates responses: "builtin", "vllm", ...
        engine_options: keyword arguments of the engine.
        queries: stop after the gradient step in which so many oracle queries were reached.
        tokens: stop after the gradient step in which so many generated tokens were reached.
        batch_size: prompts a batch; a gradient step takes `accumulate` batches on each device.
        accumulate: batches a device reads, one after the other, for one gradient step. devices x nodes x
            accumulate batches make a step: any split of that product is the same run, up to rounding.
        num_samples: responses a prompt, >= 1; a solver whose policy meets itself needs 2.
        judge_chunks: parts that a batch is generated in, so that a judge that waits on a network is asked about one
            while the next is generated; draws depend on it.
        inner_steps: gradient steps that an update gets where its solver does not say.
        max_prompt_tokens: longer prompts lose their beginning.
        max_new_tokens: longest response.
        temperature: of sampling; it is part of the policy, for log-probabilities too.
        unfinished_penalty: log-odds that a response loses in every comparison of the training when it was cut at
            `max_new_tokens`, where the other was not; infinity (.inf) lets it lose for certain.
        learning_rate: of AdamW, after its warm-up.
        warmup_steps: gradient steps over which the learning rate rises from 0.
        lr_schedule: the learning rate after its warm-up: "constant", or down to 0 at `steps` by "linear" or "cosine".
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm; 0 leaves them alone.
        gradient_checkpointing: recompute activations in the backward pass, for memory.
        lora_rank: train LoRA adapters of this rank on the frozen model, which is the reference too; all that a solver
            remembers is then an adapter. 0 trains every weight.
        lora_alpha: an adapter counts lora_alpha / lora_rank times.
        lora_targets: last parts of the names of layers that get adapters, a list or "q_proj, v_proj"; all linear ones
            but the head, unless given.
        load_in_4bit: the frozen model in 4 bit (QLoRA); needs lora_rank, bitsandbytes, and for speed a GPU.
        frozen_dtype: "bfloat16" holds in it what is not trained, the reference and the copies a solver remembers
            (with lora_rank, the model under the adapters); averages still add up in float32, in the host's memory.
        frozen_device: "cpu" keeps these in the host's memory and on the accelerator only while they work.
        accelerator: "auto", "cpu", "cuda", ...; as Lightning's.
        devices: how many on each node, or "auto".
        nodes: machines.
        strategy: "auto", "ddp" (a copy of every model on each device), "fsdp2" (weights, gradients and optimizer
            spread over all devices), "deepspeed_stage_1" or "_2", and others by Lightning's names.
        precision: "32-true", "bf16-mixed", "bf16-true"; as Lightning's.
        seed: of everything random.
        out: folder for the run; must be new or empty, unless `resume`.
        checkpoint_every: gradient steps between checkpoints; a crash costs at most these.
        keep_checkpoints: how many are kept, the newest.
        log_every: gradient steps between log rows.
        eval_every: gradient steps between evaluations; 0 evaluates at the end only.
        eval_size: held-out prompts, where `eval_prompts` is not given.
        split_seed: of the split into training and held-out prompts; `seed` unless given.
        eval_batch_size: prompts a batch of the evaluation.
        show_samples: held-out prompts whose answers are written to samples/, and shown by the logger; 0 writes none.
        show_audit: print what the judges are like before the first step, and warn of a weak one; that is in audit.json
            and warnings.jsonl too.
        logger: "tensorboard", "csv", "wandb", "mlflow" or "none".
        logger_options: keyword arguments of Lightning's logger: project, offline, tracking_uri, ...
        progress: show a bar of the batches.
        resume: go on from the newest checkpoint in `out`, where there is one.
        estimate: train nothing, and print the memory and the time that the run would take on devices of this kind:
            rtx4090, a100, h100, h200.
        trust_remote_code: run code that comes with a model from the hub; off unless asked.
    """

    model: str = attrs.field(converter=_place)
    prompts: str = attrs.field(converter=_place)
    oracle: str
    out: Path = attrs.field(converter=Path)
    solver: str = "nash_mp"
    solver_options: Mapping[str, Any] = attrs.field(factory=dict)
    beta: float = attrs.field(default=1e-4, converter=float, validator=_at_least(0))
    reference: str | None = attrs.field(default=None, converter=_place)
    tokenizer: str | None = attrs.field(default=None, converter=_place)
    oracle_options: Mapping[str, Any] = attrs.field(factory=dict)
    eval_oracle: str | None = None
    eval_oracle_options: Mapping[str, Any] = attrs.field(factory=dict)
    labelled_pairs: str | None = attrs.field(default=None, converter=_place)
    prompt_column: str = "prompt"
    prompt_split: str = "train"
    eval_prompts: str | None = attrs.field(default=None, converter=_place)
    chat: bool = False
    engine: str = "builtin"
    engine_options: Mapping[str, Any] = attrs.field(factory=dict)
    steps: int = attrs.field(default=1000, validator=_at_least(1))
    queries: int | None = attrs.field(default=None, validator=attrs.validators.optional(_at_least(1)))
    tokens: int | None = attrs.field(default=None, validator=attrs.validators.optional(_at_least(1)))
    batch_size: int = attrs.field(default=8, validator=_at_least(1))
    accumulate: int = attrs.field(default=1, validator=_at_least(1))
    num_samples: int = attrs.field(default=2, validator=_at_least(1))
    judge_chunks: int = attrs.field(default=1, validator=_at_least(1))
    inner_steps: int = attrs.field(default=1, validator=_at_least(1))
    max_prompt_tokens: int = attrs.field(default=512, validator=_at_least(1))
    max_new_tokens: int = attrs.field(default=128, validator=_at_least(1))
    temperature: float = attrs.field(default=1.0, converter=float, validator=_at_least(0, strictly=True))
    unfinished_penalty: float = attrs.field(default=0.0, converter=float, validator=_at_least(0, finite=False))
    learning_rate: float = attrs.field(default=1e-6, converter=float, validator=_at_least(0, strictly=True))
    warmup_steps: int = attrs.field(default=0, validator=_at_least(0))
    lr_schedule: str = attrs.field(default="constant", validator=_one_of("constant", "linear", "cosine"))
    weight_decay: float = attrs.field(default=0.0, converter=float, validator=_at_least(0))
    max_grad_norm: float = attrs.field(default=1.0, converter=float, validator=_at_least(0))
    gradient_checkpointing: bool = False
    lora_rank: int = attrs.field(default=0, validator=_at_least(0))
    lora_alpha: float = attrs.field(default=32.0, converter=float, validator=_at_least(0, strictly=True))
    lora_targets: Sequence[str] | str = attrs.field(default=(), converter=_names)
    load_in_4bit: bool = False
    frozen_dtype: str | None = attrs.field(default=None, validator=_one_of(None, "bfloat16"))
    frozen_device: str | None = attrs.field(default=None, validator=_one_of(None, "cpu"))
    accelerator: str = "auto"
    devices: int | str = 1
    nodes: int = attrs.field(default=1, validator=_at_least(1))
    strategy: str = "auto"
    precision: str = "32-true"
    seed: int = attrs.field(default=0, validator=[_at_least(0), _below(2**31)])
    checkpoint_every: int = attrs.field(default=100, validator=_at_least(1))
    keep_checkpoints: int = attrs.field(default=2, validator=_at_least(1))
    log_every: int = attrs.field(default=1, validator=_at_least(1))
    eval_every: int = attrs.field(default=0, validator=_at_least(0))
    eval_size: int = attrs.field(default=64, validator=_at_least(1))
    split_seed: int | None = None
    eval_batch_size: int = attrs.field(default=32, validator=_at_least(1))
    show_samples: int = attrs.field(default=8, validator=_at_least(0))
    show_audit: bool = True
    logger: str = attrs.field(
        default="tensorboard", validator=attrs.validators.in_(("tensorboard", "csv", "wandb", "mlflow", "none"))
    )
    logger_options: Mapping[str, Any] = attrs.field(factory=dict)
    progress: bool = True
    resume: bool = False
    estimate: str | None = None
    trust_remote_code: bool = False

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(TrainConfig):
            named = spilt(getattr(self, field.name), field.name)
            if named is not None:
                raise BadInput(
                    f"{named} holds what looks like a secret, and settings are saved with the run; put it into an"
                    " environment variable (of a judge behind an endpoint, key_env names it)"
                )
