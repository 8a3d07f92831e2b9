"""Who judges. Classes are imported when asked for: this module alone loads neither torch nor transformers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nlhf_zoo.errors import BadInput
from nlhf_zoo.oracles.build import Options, build_oracle, essential_options, traits
from nlhf_zoo.plain import from_yaml
from nlhf_zoo.registry.hookspecs import hookimpl

if TYPE_CHECKING:
    from nlhf_zoo.interfaces import PreferenceOracle
    from nlhf_zoo.oracles.bradley_terry import BradleyTerryOracle
    from nlhf_zoo.oracles.callable import CallableOracle
    from nlhf_zoo.oracles.endpoint.oracle import EndpointOracle
    from nlhf_zoo.oracles.ensemble import EnsembleOracle
    from nlhf_zoo.oracles.factors import FactorOracle
    from nlhf_zoo.oracles.generative_model import GenerativeModelOracle
    from nlhf_zoo.oracles.matrix import MatrixOracle
    from nlhf_zoo.oracles.pairwise_model import PairwiseModelOracle
    from nlhf_zoo.oracles.reward_model import RewardModelOracle
    from nlhf_zoo.oracles.sampled import SampledOracle
    from nlhf_zoo.oracles.verdicts.cached import CachedOracle

__all__ = [
    "BradleyTerryOracle",
    "CachedOracle",
    "CallableOracle",
    "EndpointOracle",
    "EnsembleOracle",
    "FactorOracle",
    "GenerativeModelOracle",
    "MatrixOracle",
    "PairwiseModelOracle",
    "RewardModelOracle",
    "SampledOracle",
]

_HOMES = {
    "BradleyTerryOracle": "bradley_terry",
    "CachedOracle": "verdicts.cached",
    "CallableOracle": "callable",
    "EndpointOracle": "endpoint.oracle",
    "EnsembleOracle": "ensemble",
    "FactorOracle": "factors",
    "GenerativeModelOracle": "generative_model",
    "MatrixOracle": "matrix",
    "PairwiseModelOracle": "pairwise_model",
    "RewardModelOracle": "reward_model",
    "SampledOracle": "sampled",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@hookimpl
def nlhf_zoo_oracles() -> Mapping[str, Callable[..., PreferenceOracle]]:
    return {
        "bradley_terry": _bradley_terry,
        "callable": _callable,
        "ensemble": _ensemble,
        "factors": _factors,
        "generative_model": _generative_model,
        "matrix": _matrix,
        "openai": _openai,
        "pairwise_model": _pairwise_model,
        "reward_model": _reward_model,
    }


def _pairwise_model(*, path: str, **options: Any) -> PreferenceOracle:
    """A transformer that reads a prompt and two responses: `path` and the options of `PairwiseModelOracle.load`."""
    from nlhf_zoo.oracles.pairwise_model import PairwiseModelOracle

    return PairwiseModelOracle.load(str(path), **_judge_options("pairwise_model", options))


def _reward_model(*, path: str, **options: Any) -> PreferenceOracle:
    """A scalar reward model, Bradley-Terry: `path` and the options of `RewardModelOracle.load`."""
    from nlhf_zoo.oracles.reward_model import RewardModelOracle

    return RewardModelOracle.load(str(path), **_judge_options("reward_model", options, temperature=float))


def _callable(*, function: str, symmetrise: bool | str = True) -> PreferenceOracle:
    """A Python function "package.module:function" of prompts, first and second responses."""
    from nlhf_zoo.oracles.callable import CallableOracle

    return CallableOracle.load(str(function), symmetrise=_switch(symmetrise))


@traits(
    keeps_verdicts=True,
    # A server of one's own has another address after each requeue; its verdicts are filed under the address.
    free=frozenset({"base_url", "key_env", "concurrency", "timeout", "retries", "backoff", "unparsable", "cache"})
    | frozenset({"max_calls", "max_money", "price_in", "price_out"}),
)
def _openai(
    *,
    model: str,
    base_url: str | None = None,
    key_env: str = "OPENAI_API_KEY",
    template: str | None = None,
    temperature: float | str | None = 0.0,
    max_tokens: int | str = 16,
    logprobs: str | bool = "auto",
    top_logprobs: int | str = 20,
    extra: Mapping[str, Any] | str | None = None,
    concurrency: int | str = 16,
    timeout: float | str = 60.0,
    retries: int | str = 6,
    backoff: float | str = 1.0,
    unparsable: str = "error",
    max_calls: int | str | None = None,
    max_money: float | str | None = None,
    price_in: float | str = 0.0,
    price_out: float | str = 0.0,
    cache: str | None = None,
) -> PreferenceOracle:
    """A chat model behind any OpenAI-compatible endpoint; the key comes from the environment variable `key_env`."""
    from nlhf_zoo.oracles.endpoint.oracle import OPENAI_URL, EndpointOracle

    return EndpointOracle.load(
        model=str(model),
        base_url=OPENAI_URL if base_url is None else str(base_url),
        key_env=str(key_env),
        template=template,
        temperature=_optional("temperature", float, temperature),
        max_tokens=_convert("max_tokens", int, max_tokens),
        logprobs=str(logprobs).lower(),
        top_logprobs=_convert("top_logprobs", int, top_logprobs),
        extra=_structure("extra", Mapping, {} if extra is None else extra),
        concurrency=_convert("concurrency", int, concurrency),
        timeout=_convert("timeout", float, timeout),
        retries=_convert("retries", int, retries),
        backoff=_convert("backoff", float, backoff),
        unparsable=str(unparsable),
        max_calls=_optional("max_calls", int, max_calls),
        max_money=_optional("max_money", float, max_money),
        price_in=_convert("price_in", float, price_in),
        price_out=_convert("price_out", float, price_out),
        cache=cache,
    )


@traits(free=frozenset({"device", "batch_size", "cache"}))
def _generative_model(
    *,
    path: str,
    template: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int | str = 8,
    max_length: int | str | None = None,
    trust_remote_code: bool | str = False,
    cache: str | None = None,
) -> PreferenceOracle:
    """A local language model, asked in words which response is better; the logits of its verdict are read."""
    from nlhf_zoo.oracles.generative_model import GenerativeModelOracle

    return GenerativeModelOracle.load(
        str(path),
        template=template,
        device=str(device),
        dtype=str(dtype),
        batch_size=_convert("batch_size", int, batch_size),
        max_length=_optional("max_length", int, max_length),
        trust_remote_code=_switch(trust_remote_code),
        cache=cache,
    )


def _essential_members(options: Options) -> Options:
    members = [
        {**member, "options": essential_options(member["oracle"], member["options"])}
        for member in _members(options.get("members", ()))
    ]
    return {**options, "members": members}


@traits(keeps_verdicts=True, essential=_essential_members)
def _ensemble(
    *, members: Sequence[Options] | str, vote: bool | str = False, cache: str | None = None
) -> PreferenceOracle:
    """Several judges, averaged or by majority: `members` is a list of {oracle, options, weight, name}."""
    from pathlib import Path

    from nlhf_zoo.oracles.ensemble import EnsembleOracle, Member

    verdicts = None if cache is None else Path(cache)
    built = [
        Member(
            str(member["name"]),
            build_oracle(member["oracle"], member["options"], verdicts=verdicts),
            _convert("weight", float, member["weight"]),
        )
        for member in _members(members)
    ]
    return EnsembleOracle(built, vote=_switch(vote))


def _members(members: Any) -> list[dict[str, Any]]:
    """Every member with all its fields; the name is the judge's own, numbered from the second of its kind on."""
    full: list[dict[str, Any]] = []
    for number, member in enumerate(_structure("members", Sequence, members), start=1):
        fields = {"oracle": None, "options": {}, "weight": 1.0, "name": None}
        if not isinstance(member, Mapping) or not {*member} <= {*fields} or not isinstance(member.get("oracle"), str):
            raise BadInput(
                f"ensemble: member {number} must be a mapping of oracle, and options, weight, name if need be"
            )
        one = {**fields, **member, "options": _structure("options", Mapping, member.get("options") or {})}
        same = sum(other["oracle"] == one["oracle"] for other in full)
        full.append({**one, "name": one["name"] or f"{one['oracle']}{f'_{same + 1}' if same else ''}"})
    return full


def _matrix(*, path: str, smoothing: float | str = 0.5, kind: str = "auto") -> PreferenceOracle:
    """A preference matrix, or win counts, from a file: `path` and the options of `nlhf_zoo.data.read_matrix`."""
    from nlhf_zoo.data import read_matrix
    from nlhf_zoo.oracles.matrix import MatrixOracle

    if kind not in ("auto", "probabilities", "counts"):
        raise BadInput(f"oracle matrix: kind must be auto, probabilities or counts, got {kind!r}")
    read = read_matrix(str(path), smoothing=_convert("smoothing", float, smoothing), kind=kind)
    return MatrixOracle(read.probabilities, read.labels)


def _bradley_terry(*, path: str) -> PreferenceOracle:
    """Scores from a npy or npz file (`scores`, `labels`), without a matrix: for up to millions of responses."""
    from nlhf_zoo.oracles.bradley_terry import BradleyTerryOracle

    return BradleyTerryOracle.load(str(path))


def _factors(*, path: str) -> PreferenceOracle:
    """P = 1/2 + U S U^T from an npz file (`U`, `S`, `labels`), without a matrix: for up to millions of responses."""
    from nlhf_zoo.oracles.factors import FactorOracle

    return FactorOracle.load(str(path))


def _judge_options(oracle: str, options: Mapping[str, Any], **more: Callable[[Any], Any]) -> dict[str, Any]:
    kinds: dict[str, Callable[[Any], Any]] = {
        "device": str,
        "dtype": str,
        "batch_size": int,
        "max_length": int,
        "template": str,
        "revision": str,
        "trust_remote_code": _switch,
        **more,
    }
    unknown = next((name for name in options if name not in kinds), None)
    if unknown is not None:
        raise BadInput(f"oracle {oracle} has no option {unknown!r}; it takes path, {', '.join(kinds)}")
    return {name: _convert(name, kinds[name], value) for name, value in options.items() if value is not None}


def _convert(name: str, kind: Callable[[Any], Any], value: Any) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput(f"oracle option {name}: {value!r} does not fit ({error})") from error


def _optional(name: str, kind: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None or str(value).lower() in ("none", "null") else _convert(name, kind, value)


def _structure(name: str, kind: type, value: Any) -> Any:
    """A list or a mapping, from a YAML file as it is or from a command line as text."""
    try:
        found = from_yaml(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, kind) or isinstance(found, str):
        raise BadInput(f"oracle option {name} must be a {'list' if kind is Sequence else 'mapping'}, as YAML or JSON")
    return found


def _switch(value: bool | str) -> bool:
    # A command line gives text, and bool("false") is true: here that would let foreign code run.
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    raise BadInput(f"must be true or false, got {value!r}")
