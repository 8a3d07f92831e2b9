"""Text judges: antisymmetry, padding, truncation, saving, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import QueryCount
from nlhf_zoo.llm.small_models import byte_tokenizer, small_judge, small_llama, train_bpe_tokenizer
from nlhf_zoo.oracles import CallableOracle, MatrixOracle, PairwiseModelOracle, RewardModelOracle, nlhf_zoo_oracles
from nlhf_zoo.oracles.failures import JudgeFailed
from nlhf_zoo.oracles.sequence_scores import CARD, preference
from nlhf_zoo.oracles.templates import Template, chat_template, encode

TOKENIZER = byte_tokenizer()
TEXTS = st.text(max_size=12)
PAIRWISE = PairwiseModelOracle(small_judge(TOKENIZER, hidden=32, layers=2, heads=2, seed=1), TOKENIZER, max_length=96)
REWARD = RewardModelOracle(small_judge(TOKENIZER, hidden=32, layers=2, heads=2, seed=2), TOKENIZER, max_length=96)
# Freshly drawn weights are small; judges that are near 1/2 on everything would make these tests weak.
for _oracle in (PAIRWISE, REWARD):
    for _weight in _oracle.scorer.model.parameters():
        if _weight.ndim == 2:
            _weight.data.mul_(8)

COLUMNS = (
    ["Where?", "Where?", "A much longer prompt than the others, to be padded against", "", "Why so?"],
    ["here", "there", "no", "yes", "I do not know, and I will say so at length"],
    ["there", "here", "yes", "", "ok"],
)


@pytest.mark.parametrize("oracle", [PAIRWISE, REWARD], ids=["pairwise", "reward"])
@settings(max_examples=20, deadline=None)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=4))
def test_antisymmetry_is_exact(oracle, rows):
    prompts, first, second = (list(column) for column in zip(*rows, strict=True))
    forward, backward = oracle.probability(prompts, first, second), oracle.probability(prompts, second, first)
    itself = oracle.probability(prompts, first, first)
    torch.testing.assert_close(forward + backward, torch.ones(len(rows)), rtol=0, atol=1e-6)
    assert torch.equal(itself, torch.full((len(rows),), 0.5))
    both = oracle.probability(prompts + prompts, first + second, second + first)
    assert torch.equal(both[: len(rows)] + both[len(rows) :], torch.ones(len(rows)))


@given(margin=st.floats(-200, 200, width=32))
def test_preference_sums_to_one_to_the_last_bit(margin):
    m = torch.tensor([margin])
    assert torch.equal(preference(m) + preference(-m), torch.ones(1))
    torch.testing.assert_close(preference(m), m.sigmoid())


def test_pairwise_probability_is_half_the_logit_difference():
    scorer, (prompts, first, second) = PAIRWISE.scorer, COLUMNS

    def logit(x: str, a: str, b: str) -> float:
        ids = TOKENIZER(scorer.template.text.format(prompt=x, first=a, second=b))["input_ids"]
        return float(scorer.model(torch.tensor([ids[-96:]])).logits.detach())

    short = [0, 1, 3]
    expected = [
        torch.tensor((logit(x, a, b) - logit(x, b, a)) / 2).sigmoid()
        for x, a, b in ([column[i] for column in (prompts, first, second)] for i in short)
    ]
    found = PAIRWISE.probability(prompts, first, second)
    torch.testing.assert_close(found[short], torch.stack(expected), rtol=0, atol=1e-5)
    assert (found - 0.5).abs().max() > 0.01


@pytest.mark.parametrize("kind", [PairwiseModelOracle, RewardModelOracle])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batch_size_and_padding_change_nothing(kind, batch_size):
    model = (PAIRWISE if kind is PairwiseModelOracle else REWARD).scorer.model
    whole = kind(model, TOKENIZER, max_length=96).probability(*COLUMNS)
    parts = kind(model, TOKENIZER, max_length=96, batch_size=batch_size).probability(*COLUMNS)
    rows = torch.cat([kind(model, TOKENIZER, max_length=96).probability([x], [a], [b]) for x, a, b in zip(*COLUMNS)])  # noqa: B905  # equally long by construction
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(rows, whole, rtol=0, atol=1e-5)


def test_one_comparison_is_one_query_and_order_is_told_apart():
    before = PAIRWISE.queries
    PAIRWISE.probability(*COLUMNS)
    assert PAIRWISE.queries - before == QueryCount(sampled=5)
    prompts, first, second = COLUMNS
    forward, backward = PAIRWISE.one_order(prompts, first, second), PAIRWISE.one_order(prompts, second, first)
    assert (forward + backward - 1).abs().max() > 0.01
    assert PAIRWISE.queries - before == QueryCount(sampled=5)


def test_reward_of_a_repeated_response_is_computed_once(monkeypatch):
    asked = []
    scores = type(REWARD.scorer).scores
    monkeypatch.setattr(type(REWARD.scorer), "scores", lambda self, rows: asked.append(len(rows)) or scores(self, rows))
    REWARD.probability(["x"] * 4, ["a", "a", "b", "a"], ["b", "c", "c", "a"])
    assert asked == [3]


def test_reward_follows_bradley_terry_with_its_temperature():
    prompts, first, second = COLUMNS
    margin = REWARD.reward(prompts, first) - REWARD.reward(prompts, second)
    calm = RewardModelOracle(REWARD.scorer.model, TOKENIZER, temperature=4.0, max_length=96)
    torch.testing.assert_close(calm.probability(*COLUMNS), (margin / 4).sigmoid(), rtol=0, atol=1e-5)


def test_judges_leave_the_models_mode_and_take_no_gradient():
    model = PAIRWISE.scorer.model
    model.train()
    try:
        assert not PAIRWISE.probability(*COLUMNS).requires_grad
        assert model.training
    finally:
        model.eval()


@pytest.mark.parametrize("oracle", [PAIRWISE, REWARD], ids=["pairwise", "reward"])
def test_nothing_asked_nothing_answered_and_unequal_columns_refused(oracle):
    assert oracle.probability([], [], []).shape == (0,)
    with pytest.raises(BadInput, match="equally many, got 1 and 2 and 1"):
        oracle.probability(["x"], ["a", "b"], ["c"])


@settings(max_examples=30, deadline=None)
@given(prompt=st.text(max_size=80), first=st.text(max_size=20), second=st.text(max_size=20), limit=st.integers(12, 60))
def test_shortening_keeps_the_responses_as_long_as_it_can(prompt, first, second, limit):
    template = Template("{prompt}|{first}|{second}|", ("prompt", "first", "second"))
    (ids,) = encode(TOKENIZER, template, [{"prompt": prompt, "first": first, "second": second}], limit)
    assert len(ids) <= limit
    assert ids[0] == TOKENIZER.bos_token_id
    kept = str(TOKENIZER.decode(ids, skip_special_tokens=True))
    rest = 4 + len(f"{first}{second}".encode())
    if rest + len(prompt.encode()) <= limit:
        assert kept == f"{prompt}|{first}|{second}|"
    elif rest <= limit:
        # The first character that stays may have lost some of its bytes.
        assert kept.endswith(f"|{first}|{second}|")
        assert len(ids) == limit
    else:
        assert len(ids) >= limit - 1


def test_shortened_responses_stay_equal_in_either_place():
    template = Template("{prompt}|{first}|{second}", ("prompt", "first", "second"))
    (ids,) = encode(TOKENIZER, template, [{"prompt": "p" * 9, "first": "a" * 20, "second": "a" * 20}], 22)
    _, first, second = str(TOKENIZER.decode(ids, skip_special_tokens=True)).split("|")
    assert first == second == "a" * 9


def test_shortening_that_cannot_be_is_refused():
    template = Template("a long instruction {prompt} {response}", ("prompt", "response"))
    with pytest.raises(BadInput, match="leaves no room"):
        encode(TOKENIZER, template, [{"prompt": "x", "response": "y"}], 5)


@pytest.mark.parametrize(
    "text",
    [
        "{prompt} {first}",
        "{prompt}{first}{second}{more}",
        "{prompt}{first}{first}{second}",
        "{prompt:>3}{first}{second}",
        "{prompt}{first}{second",
        "{}{first}{second}",
    ],
)
def test_bad_templates_are_refused(text):
    with pytest.raises(BadInput, match="template"):
        Template(text, ("prompt", "first", "second"))


def test_texts_with_braces_are_not_read_as_fields():
    template = Template("{{{prompt}}}{response}", ("prompt", "response"))
    text, spans = template.render({"prompt": "{response}", "response": "{0}"})
    assert text == "{{response}}{0}"
    assert [text[a:b] for a, b in spans.values()] == ["{response}", "{0}"]


def test_chat_template_wraps_prompt_and_response():
    assert chat_template(TOKENIZER) == "user: {prompt}\nassistant: {response}<eos>\n"
    chat = RewardModelOracle(REWARD.scorer.model, TOKENIZER, template="chat", max_length=96)
    plain = RewardModelOracle(
        REWARD.scorer.model, TOKENIZER, template="user: {prompt}\nassistant: {response}<eos>\n", max_length=96
    )
    assert torch.equal(chat.probability(*COLUMNS), plain.probability(*COLUMNS))
    assert not torch.equal(chat.probability(*COLUMNS), REWARD.probability(*COLUMNS))


def test_a_rendered_prompt_gets_no_second_beginning():
    template = Template("{prompt}{response}", ("prompt", "response"))
    rows = [{"prompt": "<bos>hi", "response": "a"}, {"prompt": "hi", "response": "a"}]
    with_begin, without = encode(TOKENIZER, template, rows, 50)
    assert with_begin == without


def test_save_and_load_round_trip(tmp_path):
    pairwise = PairwiseModelOracle(
        PAIRWISE.scorer.model, TOKENIZER, template="{prompt} 1:{first} 2:{second}", max_length=77
    )
    loaded = PairwiseModelOracle.load(pairwise.save(tmp_path / "judge"), device="cpu")
    assert loaded.scorer.template == pairwise.scorer.template
    assert loaded.scorer.max_length == 77
    assert torch.equal(loaded.probability(*COLUMNS), pairwise.probability(*COLUMNS))
    assert not list((tmp_path / "judge").glob("*.bin"))
    reward = RewardModelOracle(REWARD.scorer.model, TOKENIZER, temperature=2.5, max_length=64)
    again = RewardModelOracle.load(reward.save(tmp_path / "reward"), device="cpu", batch_size=2)
    torch.testing.assert_close(again.probability(*COLUMNS), reward.probability(*COLUMNS), rtol=0, atol=1e-6)
    assert again.temperature == 2.5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["judge", "reward"]


def test_saving_over_an_older_judge_leaves_none_of_it(tmp_path):
    folder = PAIRWISE.save(tmp_path / "judge")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"old")
    REWARD.save(folder)
    assert [p.name for p in folder.glob("model*")] == ["model.safetensors"]
    with pytest.raises(BadInput, match="of the kind reward_model, not pairwise_model"):
        PairwiseModelOracle.load(folder)


def test_loading_what_is_no_judge_is_refused(tmp_path):
    with pytest.raises(BadInput, match="cannot load a judge from"):
        RewardModelOracle.load(tmp_path)
    small_llama(TOKENIZER, hidden=16, layers=1, heads=2, seed=0).save_pretrained(tmp_path / "lm")
    TOKENIZER.save_pretrained(tmp_path / "lm")
    with pytest.raises(BadInput, match="has no weights for score"):
        PairwiseModelOracle.load(tmp_path / "lm", device="cpu")
    folder = PAIRWISE.save(tmp_path / "judge")
    (folder / CARD).write_text(json.dumps(["not a card"]))
    with pytest.raises(BadInput, match=CARD):
        PairwiseModelOracle.load(folder)
    with pytest.raises(BadInput, match="unknown dtype 'float31'"):
        RewardModelOracle.load(tmp_path / "lm", dtype="float31")


def test_a_device_that_is_not_there_and_a_misspelt_folder_are_one_line(tmp_path, monkeypatch):
    PAIRWISE.save(tmp_path / "models" / "judge")
    with pytest.raises(BadInput, match="oracle option device: 'xpu:7' cannot be used here"):
        PairwiseModelOracle.load(tmp_path / "models" / "judge", device="xpu:7")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # what is nearly a folder's name is an id of the hub too
    with pytest.raises(BadInput, match=r"cannot load a judge from 'models/judg'.*did you mean 'models/judge'"):
        PairwiseModelOracle.load("models/judg")


# --- functions as judges


def prefers_shorter(prompts, first, second):
    return [1 / (1 + 2 ** (len(a) - len(b))) for a, b in zip(first, second, strict=True)]


def likes_the_first(prompts, first, second):
    return torch.full((len(first),), 0.9)


@given(rows=st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=4))
def test_callable_is_antisymmetric_whatever_the_function(rows):
    prompts, first, second = (list(column) for column in zip(*rows, strict=True))
    for function in (prefers_shorter, likes_the_first):
        oracle = CallableOracle(function)
        total = oracle.probability(prompts, first, second) + oracle.probability(prompts, second, first)
        torch.testing.assert_close(total, torch.ones(len(rows), dtype=torch.float64), rtol=0, atol=1e-15)
        assert torch.equal(oracle.probability(prompts, first, first), torch.full_like(total, 0.5))


def test_callable_averages_the_two_orders_only_when_asked_to():
    asked = (["x"], ["a"], ["bbb"])
    assert CallableOracle(prefers_shorter).probability(*asked).item() == pytest.approx(0.8)
    assert CallableOracle(likes_the_first).probability(*asked).item() == pytest.approx(0.5)
    plain = CallableOracle(likes_the_first, symmetrise=False)
    assert plain.probability(*asked).item() == pytest.approx(0.9)
    assert "both orders averaged" in repr(CallableOracle(likes_the_first))
    assert "one order asked" in repr(plain)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([0.5], r"was asked 2 pairs, but answered \(1,\)"),
        (0.5, r"was asked 2 pairs, but answered \(\)"),
        ([[0.5], [0.5]], r"answered \(2, 1\)"),
        ([0.5, 1.2], "answered 1.2 for pair 1"),
        ([-0.01, 0.5], "for pair 0"),
        ([0.5, float("nan")], "answered nan for pair 1"),
        ("no", "must return numbers, got str"),
        (None, "must return numbers, got NoneType"),
        (["a", "b"], r"must return numbers, got list \(.*str"),
    ],
)
def test_callable_answers_are_checked(answer, message):
    oracle = CallableOracle(lambda prompts, first, second: answer, symmetrise=False)
    with pytest.raises(BadInput, match=message):
        oracle.probability(["x", "y"], ["a", "b"], ["c", "d"])


def test_callable_is_loaded_by_name(tmp_path, monkeypatch):
    (tmp_path / "a_judge_of_this_test.py").write_text(
        "class Judge:\n"
        "    @staticmethod\n"
        "    def first(prompts, first, second):\n"
        "        return [float(a < b) for a, b in zip(first, second)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    oracle = CallableOracle.load("a_judge_of_this_test:Judge.first")
    assert oracle.probability(["", ""], ["a", "b"], ["b", "a"]).tolist() == [1.0, 0.0]
    for name, message in [
        ("math", "package.module:function"),
        ("no_such_module_here:f", "PYTHONPATH"),
        ("math:no_such", "has no 'no_such'"),
        ("math:pi", "needs a function, got float"),
    ]:
        with pytest.raises(BadInput, match=message):
            CallableOracle.load(name)


def test_a_function_that_ends_the_program_is_told():
    def leaves(prompts, first, second):
        raise SystemExit(3)

    with pytest.raises(JudgeFailed, match=r"judge .*leaves raised SystemExit: 3 \(.*test_judges.py"):
        CallableOracle(leaves).probability(["x"], ["a"], ["b"])


# --- the plugin


def test_factories_take_what_a_command_line_gives(tmp_path):
    PAIRWISE.save(tmp_path / "judge")
    REWARD.save(tmp_path / "reward")
    (tmp_path / "p.csv").write_text("0.5,0.9\n0.1,0.5\n")
    make = nlhf_zoo_oracles()
    judge = make["pairwise_model"](
        path=str(tmp_path / "judge"), batch_size="2", device="cpu", trust_remote_code="false"
    )
    torch.testing.assert_close(judge.probability(*COLUMNS), PAIRWISE.probability(*COLUMNS), rtol=0, atol=1e-5)
    reward = make["reward_model"](path=str(tmp_path / "reward"), temperature="3", device="cpu", dtype="float64")
    assert reward.scorer.model.dtype == torch.float64  # type: ignore[attr-defined]
    assert reward.temperature == 3.0  # type: ignore[attr-defined]
    matrix = make["matrix"](path=str(tmp_path / "p.csv"))
    assert isinstance(matrix, MatrixOracle)
    assert matrix.probability(None, torch.tensor([0]), torch.tensor([1])).item() == pytest.approx(0.9)
    counted = make["callable"](function="math:pow", symmetrise="false")
    assert not counted.symmetrise  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("oracle", "options", "message"),
    [
        ("pairwise_model", {"batchsize": 3}, "has no option 'batchsize'; it takes path, device"),
        ("pairwise_model", {"temperature": 3}, "has no option 'temperature'"),
        ("reward_model", {"temperature": "hot"}, "oracle option temperature: 'hot'"),
        ("reward_model", {"trust_remote_code": "perhaps"}, "true or false"),
        ("reward_model", {"batch_size": "many"}, "oracle option batch_size"),
        ("matrix", {"kind": "guess"}, "kind must be"),
    ],
)
def test_factories_refuse_what_they_do_not_know(oracle, options, message):
    with pytest.raises(BadInput, match=message):
        nlhf_zoo_oracles()[oracle](path="nowhere", **options)


def test_importing_the_oracles_is_light():
    code = "import sys, nlhf_zoo.oracles as o; o.nlhf_zoo_oracles(); print({'torch', 'transformers'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


# --- tokenizers and models made on the spot


@given(text=st.text(max_size=30))
def test_byte_tokenizer_round_trips_every_text(text):
    ids = TOKENIZER(text)["input_ids"]
    assert len(ids) == 1 + len(text.encode())
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


def test_bpe_tokenizer_learns_what_repeats_and_loses_nothing(tmp_path):
    tokenizer = train_bpe_tokenizer(["the cat and the hat"] * 5, 270)
    assert len(tokenizer("the cat")["input_ids"]) < len(TOKENIZER("the cat")["input_ids"])
    assert tokenizer.decode(tokenizer("žluťoučký 🐎")["input_ids"], skip_special_tokens=True) == "žluťoučký 🐎"
    assert tokenizer.get_vocab() == train_bpe_tokenizer(["the cat and the hat"] * 5, 270).get_vocab()
    assert tokenizer("a", add_special_tokens=False)["input_ids"] == [tokenizer("a")["input_ids"][-1]]
    with pytest.raises(BadInput, match="259"):
        train_bpe_tokenizer([], 100)
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path)("the cat")["input_ids"] == tokenizer("the cat")["input_ids"]


def test_small_models_come_from_their_seed_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one, two, other = (small_llama(TOKENIZER, hidden=16, layers=1, heads=2, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    weights = [model.model.embed_tokens.weight for model in (one, two, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    with pytest.raises(BadInput, match="even width"):
        small_llama(TOKENIZER, hidden=10, heads=4, seed=0)
