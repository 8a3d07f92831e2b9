"""Decoding by captured steps draws what decoding without them draws; a recording stands for the CUDA graph."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from nlhf_zoo.llm import CausalLMPolicy
from nlhf_zoo.llm.adapters import AdapterNetwork, SharedModel, lora_config
from nlhf_zoo.llm.generation import Request, generate
from nlhf_zoo.llm.host import HostNetwork, copy_weights
from nlhf_zoo.llm.policy import average_into
from nlhf_zoo.llm.reading import GrowingReader
from nlhf_zoo.llm.small_models import byte_tokenizer
from nlhf_zoo.llm.speakers import Rules
from nlhf_zoo.llm.static_reading import Buffers, StaticReader
from nlhf_zoo.llm.step_graphs import StepGraphs
from tests.recorded_steps import RecordedSteps
from tests.test_llm_policy import PROMPTS, network
from tests.test_speculative import GOES_BACK

ENDS = tuple(range(3, 40))
"""Stop tokens, of about 260 tokens: responses end at different times, after seven on average."""


class Recorded(StepGraphs):
    """Captures on a CPU, by recordings that can be counted."""

    def __init__(self, share: float = 1.0, capture: Callable[[], Any] = RecordedSteps) -> None:
        self.captures: list[Any] = []

        def made(_: torch.device) -> Any:
            self.captures.append(capture())
            return self.captures[-1]

        super().__init__(share=share, kinds=("cpu",), capture=made)

    @property
    def captured(self) -> int:
        return sum(one.captured for one in self.captures)

    @property
    def replayed(self) -> int:
        return sum(one.replayed for one in self.captures)


def fresh(architecture: str = "llama", seed: int = 0, *, dtype: torch.dtype = torch.float64, attention: str = "sdpa"):
    """A network that a test may change."""
    made = copy.deepcopy(network(architecture, seed)).to(dtype).eval()
    made.set_attn_implementation(attention)
    return made


def alone(model: Any) -> Request:
    return Request(((model, 1.0),))


def drawn(
    requests: Sequence[Request],
    graphs: StepGraphs | None = None,
    *,
    prompts: Sequence[str] = PROMPTS,
    samples: int = 2,
    length: int = 24,
    stop: Sequence[int] = ENDS,
    patience: int = 3,
    **options: Any,
) -> list[tuple[Tensor, Tensor]]:
    batch = CausalLMPolicy(requests[0].parts[0][0], byte_tokenizer()).encode(prompts)
    opened = {} if graphs is None else {"open_reader": graphs.reader}
    return generate(
        requests, batch.tokens, batch.mask, num_samples=samples, max_new_tokens=length, stop=stop, padding=0,
        temperature=1.0, allowed=None, generator=torch.Generator(batch.tokens.device).manual_seed(5), patience=patience,
        **opened, **options,
    )  # fmt: skip


def same(found: Sequence[tuple[Tensor, Tensor]], wanted: Sequence[tuple[Tensor, Tensor]]) -> bool:
    return all(
        one.shape == other.shape and torch.equal(one, other)
        for mine, theirs in zip(found, wanted, strict=True)
        for one, other in zip(mine, theirs, strict=True)
    )


def test_drawing_without_looks_is_multinomial() -> None:
    logits = torch.randn(40, 300, generator=torch.Generator().manual_seed(0)).mul(3)
    first, second = (
        Rules(4, torch.tensor([1]), 0, 1.0, None, torch.Generator().manual_seed(1), patience) for patience in (0, 8)
    )
    assert torch.equal(first.draw(logits), second.draw(logits))


def test_rows_that_stay_change_nothing_while_none_has_ended() -> None:
    requests = [alone(network("llama")), alone(network("llama", 1))]
    assert same(drawn(requests, stop=(), patience=4), drawn(requests, stop=(), patience=0))


def test_what_stays_after_its_end_is_not_said() -> None:
    for tokens, mask in drawn([alone(network("llama"))], samples=20, patience=5):
        ends = torch.isin(tokens, torch.tensor(ENDS))
        before = (ends.cumsum(-1) - ends.long()) == 0
        assert torch.equal(mask, before & (torch.arange(tokens.shape[-1]) < 24))
        assert not tokens[~mask].any()
        assert 0 < int(mask[..., -1].sum()) < mask[..., 0].numel()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", [*GOES_BACK, "qwen2", "gemma"])
def test_captured_steps_draw_the_same(architecture: str, attention: str) -> None:
    """Plain rows, a mixture beside them, and a mixture alone; left padding of three lengths."""
    # In float64, transformers' eager attention answers NaN to padding.
    dtype = torch.float32 if attention == "eager" else torch.float64
    first, second = (fresh(architecture, seed, dtype=dtype, attention=attention) for seed in (0, 1))
    mixed = Request(((first, 0.6), (second, 0.4)))
    for requests in ([alone(first)], [alone(first), mixed], [mixed]):
        graphs = Recorded()
        assert same(drawn(requests, graphs), drawn(requests))
        assert graphs.replayed > 5
        assert same(drawn(requests, graphs), drawn(requests))
        assert graphs.captured <= 4


def test_rows_leave_by_halves_and_sizes_come_again() -> None:
    first, second = network("llama"), network("llama", 1)
    requests = [alone(first), Request(((first, 0.5), (second, 0.5)))]
    graphs = Recorded()
    for _ in range(2):
        assert same(drawn(requests, graphs, samples=30), drawn(requests, samples=30))
    (buffers,) = graphs._held[first]
    rows = sorted(rows for rows, _ in buffers.steps)
    assert rows[-1] == 180
    assert len(rows) >= 3
    captured = graphs.captured
    assert same(drawn(requests, graphs, samples=30), drawn(requests, samples=30))
    assert graphs.captured == captured


@contextlib.contextmanager
def calls_of(model: Any) -> Iterator[list[int]]:
    """How often the model's Python was run, without a hook."""
    counted: list[int] = []
    before = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        counted.append(kwargs["input_ids"].shape[1])
        return before(*args, **kwargs)

    model.forward = forward
    try:
        yield counted
    finally:
        del model.forward


def test_no_python_is_run_for_a_token() -> None:
    model, graphs = fresh(), Recorded()
    drawn([alone(model)], graphs, stop=())
    with calls_of(model) as counted:
        drawn([alone(model)], graphs, stop=())
    assert counted == [1 + len(PROMPTS[1])]


def change_in_place(model: Any) -> None:
    average_into(model, network("llama", 7), 0.5)


def change_by_copy(model: Any) -> None:
    copy_weights(network("llama", 7), model)


def change_by_a_step(model: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    model(input_ids=torch.arange(3, 9)[None]).logits.logsumexp(-1).sum().backward()
    optimizer.step()


def change_behind_torch(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = 1.1 * parameter.data


@torch.no_grad()
def change_by_growth(model: Any) -> None:
    for parameter in model.parameters():
        parameter.mul_(1.1)


def change_a_buffer(model: Any) -> None:
    model.model.rotary_emb.inv_freq = torch.full_like(model.model.rotary_emb.inv_freq, 3.0)


CHANGES = (
    change_in_place,
    change_by_copy,
    change_by_a_step,
    change_by_growth,
    change_behind_torch,
    change_a_buffer,
)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_weights_is_seen(change: Callable[[Any], None]) -> None:
    model, graphs = fresh(), Recorded()
    before = drawn([alone(model)], graphs)
    captured = graphs.captured
    change(model)
    found = drawn([alone(model)], graphs)
    assert same(found, drawn([alone(model)]))
    assert not same(found, before)
    moved = change in (change_behind_torch, change_a_buffer)
    assert (graphs.captured > captured) == moved


def test_longer_prompts_and_more_rows_get_larger_buffers_and_fewer_use_them() -> None:
    model, graphs = fresh(), Recorded()
    long = ("x" * 70, "y")
    for prompts, samples, length in ((PROMPTS, 2, 24), (long, 5, 40), (PROMPTS, 1, 12), (long, 5, 40)):
        options: dict[str, Any] = {"prompts": prompts, "samples": samples, "length": length, "stop": ()}
        assert same(drawn([alone(model)], graphs, **options), drawn([alone(model)], **options))
    assert len(graphs.captures) == 2
    assert graphs.captured == 3


def test_adapters_of_one_model() -> None:
    shared = SharedModel.of(fresh(), lora_config(2, 8.0), resting="student", seed=0)
    shared.add("reference")
    student, reference = AdapterNetwork(shared, "student"), AdapterNetwork(shared, "reference", bare=True)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    student.eval()
    requests = [alone(student), alone(reference), Request(((student, 0.7), (reference, 0.3)))]
    graphs = Recorded()
    for more in ("spare", "another"):
        found = drawn(requests, graphs)
        assert same(found, drawn(requests))
        assert not same(found[:1], found[1:2])
        shared.add(more)
        with torch.no_grad():
            next(student.parameters()).mul_(1.5)
    assert graphs.replayed > 20


@pytest.mark.parametrize("precision", ["bfloat16", "mixed"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_low_precision(precision: str, attention: str) -> None:
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model, graphs = fresh(dtype=dtype, attention=attention), Recorded()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed"):
        mask, tokens = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]), torch.tensor([[0, 0, 5, 6], [9, 8, 7, 6]])
        rows, draw = torch.tensor([0, 0, 1]), torch.Generator().manual_seed(0)
        with torch.no_grad():
            still = graphs.reader(model, tokens, mask, rows, 20)
            growing = GrowingReader.of_prompts(model, tokens, mask, rows)
            assert isinstance(still, StaticReader)
            position = mask.sum(-1, keepdim=True)[rows] - 1
            last = tokens[rows, -1:]
            for _ in range(12):
                wanted = growing.read(last, position).float()
                assert float((still.read(last, position).float() - wanted).abs().mean()) < 0.02 * float(wanted.std())
                last, position = torch.randint(3, 200, (3, 1), generator=draw), position + 1
    assert graphs.replayed > 8
    if precision == "mixed":
        assert still.buffers.cache.layers[0].keys.dtype == torch.bfloat16


def test_tokens_taken_back_are_written_over() -> None:
    model, graphs = fresh(), Recorded()
    batch = CausalLMPolicy(model, byte_tokenizer()).encode(PROMPTS)
    mask, rows, draw = batch.mask.long(), torch.arange(3), torch.Generator().manual_seed(0)
    with torch.no_grad():
        readers = [
            graphs.reader(model, batch.tokens, mask, rows, 30),
            GrowingReader.of_prompts(model, batch.tokens, mask, rows),
        ]
        last, position = batch.tokens[:, -1:], mask.sum(-1, keepdim=True) - 1
        for count in (4, 1, 3, 1, 1, 5):
            more = torch.randint(3, 250, (3, count), generator=draw)
            tokens, places = torch.cat([last, more[:, :-1]], 1), position + torch.arange(count)
            found, wanted = (reader.read(tokens, places) for reader in readers)
            assert torch.allclose(found, wanted, atol=1e-9)
            kept = torch.randint(1, count + 1, (3,), generator=draw)
            for reader in readers:
                reader.take_back(kept, count)
            last, position = more.gather(1, kept[:, None] - 1), position + kept[:, None]
    assert graphs.replayed >= 2


class Failing(RecordedSteps):
    def __call__(self, step: Callable[[], Tensor]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


class Wrong(RecordedSteps):
    """Replays that write nonsense where the step wrote its keys."""

    def __call__(self, step: Callable[[], Tensor]) -> Any:
        answer, replay = super().__call__(step)
        buffers: Buffers = step.func.__self__  # type: ignore[attr-defined]  # a partial of its method

        def wrongly() -> None:
            columns = buffers.position + buffers.shift
            replay()
            buffers.cache.layers[0].keys.transpose(1, 2)[buffers.place.numbers, columns] = 9.0
            answer.mul_(-1)

        return answer, wrongly


@pytest.mark.parametrize("capture", [Failing, Wrong])
def test_a_capture_that_fails_is_said_once_and_changes_no_token(
    capture: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    model, graphs = fresh(), Recorded(capture=capture)
    for _ in range(2):
        assert same(drawn([alone(model)], graphs), drawn([alone(model)]))
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said.startswith("decoding without CUDA graphs")
    assert "and more" not in said


def hooked(model: Any) -> Any:
    model.model.layers[0].register_forward_pre_hook(lambda *_: None)
    return model


NOT_CAPTURED: dict[str, tuple[Callable[[], Any], str]] = {
    "hook": (lambda: hooked(fresh()), "listens"),
    "training": (lambda: fresh().train(), "training mode"),
    "host": (lambda: HostNetwork(fresh(), fresh()).eval(), "host"),
    "windows": (lambda: network("gemma3_text"), "plain"),
    "no positions": (lambda: network("bloom"), "columns"),
}


@pytest.mark.parametrize("kind", NOT_CAPTURED)
def test_networks_that_a_replay_would_not_serve(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    make, reason = NOT_CAPTURED[kind]
    model, graphs = make(), Recorded()
    with caplog.at_level(logging.INFO, "nlhf_zoo"):
        for _ in range(2):
            assert same(drawn([alone(model)], graphs), drawn([alone(model)]))
    assert graphs.captures == []
    (said,) = [record.getMessage() for record in caplog.records]
    assert reason in said


def test_a_model_that_recomputes_activations_in_training_is_captured() -> None:
    model, graphs = fresh(), Recorded()
    model.activation_checkpointing_enable()
    assert same(drawn([alone(model)], graphs), drawn([alone(model)]))
    assert graphs.replayed > 5


def test_a_resident_copy_is_captured() -> None:
    at_rest, graphs = fresh(), Recorded()
    model = HostNetwork(at_rest, fresh(seed=1), resident=True).eval()
    for _ in range(2):
        with model.at_work():
            assert same(drawn([alone(model)], graphs), drawn([alone(model)]))
        average_into(at_rest, network("llama", 3), 0.5)
    assert graphs.captured == 1


def test_memory_is_given_back_beyond_the_limit_and_with_the_network() -> None:
    model, other = fresh(), fresh(seed=1)
    graphs = Recorded()
    requests = [alone(model), alone(other)]
    drawn(requests, graphs)
    both = graphs.bytes
    assert both > 0
    graphs._share = 0.6 * both / 2**40
    wanted = drawn([alone(model)])
    assert same(drawn([alone(model)], graphs), wanted)
    assert graphs.bytes == both / 2
    assert other not in graphs._held or not graphs._held[other]
    graphs._share = 0.0
    assert same(drawn([alone(model)], graphs), wanted)
    assert graphs.bytes == 0
    graphs._share = 1.0
    drawn([alone(model)], graphs)
    assert graphs.bytes > 0
    del model, other, requests
    gc.collect()
    assert graphs.bytes == 0


def test_a_model_that_answers_nan_is_said() -> None:
    model = fresh()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    for graphs in (None, Recorded()):
        with pytest.raises(RuntimeError, match="probability tensor"):
            drawn([alone(model)], graphs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", [*GOES_BACK, "qwen2", "gemma"])
def test_graphs_on_a_gpu_draw_the_same(architecture: str, attention: str, caplog: pytest.LogCaptureFixture) -> None:
    dtype = torch.float32 if attention == "eager" else torch.float64
    first, second = (fresh(architecture, seed, dtype=dtype, attention=attention).cuda() for seed in (0, 1))
    requests = [alone(first), Request(((first, 0.6), (second, 0.4)))]
    graphs = StepGraphs()
    for change in (lambda _: None, change_by_growth, change_behind_torch):
        change(first)
        assert same(drawn(requests, graphs, samples=15), drawn(requests, samples=15))
    assert any(one.steps for held in graphs._held.values() for one in held)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_that_waits_for_the_gpu_is_not_captured(caplog: pytest.LogCaptureFixture) -> None:
    model, graphs = fresh().cuda(), StepGraphs()
    before = model.forward

    def forward(**inputs: Any) -> Any:
        answer = before(**inputs)
        answer.logits.sum().item()
        return answer

    model.forward = forward
    for _ in range(2):
        assert same(drawn([alone(model)], graphs), drawn([alone(model)]))
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said.startswith("decoding without CUDA graphs")
    # What comes afterwards is captured all the same.
    model.forward = before
    later = fresh(seed=2).cuda()
    assert same(drawn([alone(later)], graphs), drawn([alone(later)]))
    assert any(one.steps for one in graphs._held[later])
