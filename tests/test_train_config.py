"""One YAML is one run: printed, read back, recipes; and what of a run is written for readers."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import attrs
import pytest
import yaml
from transformers import LlamaConfig

from nlhf_zoo import BadInput
from nlhf_zoo.cli.config_files import read_config, recipes
from nlhf_zoo.cli.flags import read
from nlhf_zoo.cli.main import main
from nlhf_zoo.cli.train import VERB as TRAIN
from nlhf_zoo.llm.loading import load_causal_lm, load_tokenizer
from nlhf_zoo.llm.places import require_place
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama, train_bpe_tokenizer
from nlhf_zoo.oracles.reward_model import RewardModelOracle
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.context import check_vocabulary
from nlhf_zoo.training.model_card import model_card
from nlhf_zoo.training.run import train

GIVEN = ["--model", "lm", "--prompts", "p.jsonl", "--oracle", "callable", "--out", "runs/x"]


@pytest.mark.parametrize("flag", ["--print-config", "--print_config"])
def test_the_printed_configuration_is_the_run(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*GIVEN, "--beta", "1e-3", "--set", "eta=0.2", "--chat"]
    assert main(["train", *flags, flag]) == 0
    text = capsys.readouterr().out
    (tmp_path / "run.yaml").write_text(text)
    asked, again = read(TRAIN, flags), read(TRAIN, ["--config", str(tmp_path / "run.yaml")])
    assert asked is not None
    assert again is not None
    assert again.options == asked.options
    assert "# strength of the regularisation towards the reference." in text
    assert list(yaml.safe_load(text)) == [field.name for field in attrs.fields(TrainConfig)]
    assert not (tmp_path / "runs").exists()


def test_what_is_required_and_missing_is_marked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "--print-config", "--steps", "7"]) == 0
    text = capsys.readouterr().out
    assert "# model: required" in text
    assert yaml.safe_load(text)["steps"] == 7
    (tmp_path / "run.yaml").write_text(text)
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    assert "train needs --model, --prompts, --oracle, --out" in capsys.readouterr().err


def test_a_wrong_value_is_not_printed_as_if_it_were_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--print-config", "--steps", "0"]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "steps must be >= 1" in streams.err


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_a_run(name: str) -> None:
    asked = read(TRAIN, ["--config", f"recipe:{name}", "--out", "elsewhere", "--steps", "3"])
    assert asked is not None
    config = asked.options
    assert isinstance(config, TrainConfig)
    assert (str(config.out), config.steps) == ("elsewhere", 3), "flags go before a recipe"
    # The paper's hyperparameters (arXiv 2505.19731), but that adapters want a larger learning rate.
    learning_rate = 1e-5 if config.lora_rank else 1e-6
    assert (config.solver, config.beta, config.learning_rate) == ("nash_mp", 1e-4, learning_rate)
    assert config.solver_options == {"eta": 0.1, "kappa": 0.1}
    assert config.eval_oracle_options["path"] != config.oracle_options["path"], "the second judge is another one"
    assert set(read_config(f"recipe:{name}")) <= {*TrainConfig.__annotations__}


def test_an_unknown_recipe_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(recipes()) >= 2
    assert main(["train", "--config", "recipe:0.5b"]) == 2
    assert f"no recipe '0.5b'; there are {', '.join(recipes())}" in capsys.readouterr().err


# --- places


@pytest.mark.parametrize(
    "source", ["no/such/folder", "./here", "/nowhere/model", "~/model", "models/", "model.safetensors", "a b/c"]
)
def test_what_cannot_be_an_id_is_never_looked_for_on_the_hub(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for load in (load_causal_lm, load_tokenizer, RewardModelOracle.load):
        with pytest.raises(BadInput, match="there is no folder") as caught:
            load(source)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["gpt2", "Qwen/Qwen2.5-0.5B-Instruct", "org/name_v1.0"])
def test_ids_of_the_hub_pass(source: str) -> None:
    require_place("model", source)


def test_a_misspelt_folder_is_told_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "sft").mkdir(parents=True)
    with pytest.raises(BadInput, match=r"did you mean '.*models/sft'"):
        require_place("model", str(tmp_path / "models" / "sfft"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="did you mean 'models/sft'"):
        load_tokenizer("models/sfft")  # may be an id: it is looked for, and then explained


# --- loggers


@pytest.mark.parametrize("logger", ["wandb", "mlflow"])
def test_a_logger_without_its_package_is_one_line(logger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nlhf_zoo.training.loggers import make_logger

    monkeypatch.setattr(f"lightning.pytorch.loggers.{logger}._{logger.upper()}_AVAILABLE", False)
    config = TrainConfig(model="m", prompts="p", oracle="callable", out=tmp_path / "run", logger=logger)
    with pytest.raises(BadInput, match=f"pip install {logger}"):
        make_logger(config, None)
    assert not (tmp_path / "run").exists()


def test_a_wrong_logger_option_is_one_line(tmp_path: Path) -> None:
    from nlhf_zoo.training.loggers import make_logger

    config = TrainConfig(model="m", prompts="p", oracle="o", out=tmp_path, logger="csv", logger_options={"colour": 1})
    with pytest.raises(BadInput, match=r"logger_options: csv .*colour"):
        make_logger(config, None)


def test_a_wrong_option_of_the_tensorboard_writer_is_told_before_training(tmp_path: Path) -> None:
    from nlhf_zoo.training.loggers import make_logger

    config = TrainConfig(model="m", prompts="p", oracle="o", out=tmp_path, logger_options={"colour": 1})
    with pytest.raises(BadInput, match=r"logger_options: tensorboard .*colour"):
        make_logger(config, None)
    assert make_logger(attrs.evolve(config, logger_options={"flush_secs": 5, "name": "mine"}), None)


# --- values from Python


def test_paths_and_layers_may_be_given_as_they_are_in_python() -> None:
    config = TrainConfig(model=Path("m"), prompts=Path("p"), oracle="o", out="run", lora_targets="q_proj, v_proj")
    assert (config.model, config.prompts, config.lora_targets) == ("m", "p", ("q_proj", "v_proj"))
    asked = read(
        TRAIN, ["--model", "m", "--prompts", "p", "--oracle", "o", "--out", "run", "--lora-targets", "q_proj,v_proj"]
    )
    assert asked is not None
    assert asked.options.lora_targets == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("steps", "4", "a whole number"),
        ("steps", 4.0, "a whole number"),
        ("seed", True, "a whole number"),
        ("model", None, "a text"),
        ("reference", 3, "a text"),
        ("devices", 1.5, "a whole number or a text"),
        ("chat", 1, "true or false"),
        ("oracle_options", ["f"], "a mapping"),
    ],
)
def test_a_value_of_another_type_is_told_in_python_too(name: str, value: object, words: str) -> None:
    given: dict[str, object] = {"model": "m", "prompts": "p", "oracle": "o", "out": "run", name: value}
    with pytest.raises(BadInput, match=f"{name} must be {words}"):
        TrainConfig(**given)  # type: ignore[arg-type]  # that is the point


# --- models that do not belong together


def vocabulary(size: int) -> LlamaConfig:
    return LlamaConfig(vocab_size=size)


def test_models_and_tokenizers_that_do_not_belong_together_are_told() -> None:
    tokenizer = byte_tokenizer()
    check_vocabulary(vocabulary(259), vocabulary(259), tokenizer, byte_tokenizer())
    check_vocabulary(vocabulary(320), vocabulary(320), tokenizer)  # rows that only fill up are usual
    with pytest.raises(BadInput, match="tokenizer: it has 259 tokens, the model 200"):
        check_vocabulary(vocabulary(200), vocabulary(200), tokenizer)
    with pytest.raises(BadInput, match="reference: it has 300 tokens, the model 259"):
        check_vocabulary(vocabulary(259), vocabulary(300), tokenizer)
    other = train_bpe_tokenizer(["other words, otherwise"], 300)
    with pytest.raises(BadInput, match=r"reference: it numbers \d+ tokens otherwise"):
        check_vocabulary(vocabulary(300), vocabulary(300), other, train_bpe_tokenizer(["words of its own"], 300))


# --- what is written for readers


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, dict]:
    path = tmp_path_factory.mktemp("card")
    tokenizer = byte_tokenizer()
    small_llama(tokenizer, hidden=16, layers=1, heads=2, seed=0).save_pretrained(path / "lm")
    tokenizer.save_pretrained(path / "lm")
    (path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"say | {i}:"}) for i in range(8)))
    config = TrainConfig(
        model=str(path / "lm"),
        prompts=str(path / "prompts.jsonl"),
        oracle="callable",
        oracle_options={"function": "tests.test_watching:letters"},
        eval_oracle="callable",
        eval_oracle_options={"function": "tests.test_watching:longer"},
        out=path / "run",
        steps=2,
        eval_every=1,
        batch_size=2,
        max_new_tokens=4,
        accelerator="cpu",
        show_samples=3,
    )
    return config, train(config)


def test_the_model_card_says_what_the_policy_is(finished: tuple[TrainConfig, dict], tmp_path: Path) -> None:
    config, result = finished
    card = (config.out / "policy" / "README.md").read_text()
    head, body = card.removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(head)["base_model"] == config.model
    assert "license" not in yaml.safe_load(head)
    rate = result["win_rate"]["held_out"]
    assert f"{rate['mean']:.1%}, 95 % interval {rate['low']:.1%} to {rate['high']:.1%}" in body
    for text in ("nash_mp", "kappa = 0.1", "0.0001", version("transformers"), "tests.test_watching:longer"):
        assert text in body
    assert str(config.out) not in card, "of paths, only those that the user gave as input"
    repeat = body.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "run.yaml").write_text(repeat)
    asked = read(TRAIN, ["--config", str(tmp_path / "run.yaml"), "--out", str(config.out)])
    assert asked is not None
    assert asked.options == config


def test_the_model_card_keeps_secrets(finished: tuple[TrainConfig, dict]) -> None:
    config, result = finished
    options = {"function": "a:b", "hub_token": "hush-1", "extra": {"key": "hush-2", "members": [{"token": "hush-3"}]}}
    assert "hush" not in model_card(attrs.evolve(config, oracle_options=options, logger_options=options), result)


def test_no_setting_ends_its_place_in_the_model_card(finished: tuple[TrainConfig, dict]) -> None:
    config, result = finished
    fence = "```\n<script>alert(1)</script>\n# A heading"
    card = model_card(attrs.evolve(config, prompts=f"p |\n{fence}", oracle_options={"function": fence}), result)
    table = next(line for line in card.splitlines() if line.startswith("| prompts |"))
    assert table.count("|") - table.count(r"\|") == 3
    assert "<script>" not in card.split("## Repeat it")[0]
    repeat = card.split("````yaml\n")[1].split("````")[0]
    assert yaml.safe_load(repeat)["oracle_options"] == {"function": fence}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"oracle_options": {"extra": {"api_key": "hush"}}}, "oracle_options.extra.api_key"),
        ({"oracle_options": {"key_env": f"gsk_{'h1' * 20}"}}, "oracle_options.key_env"),
        ({"logger_options": {"tracking_uri": "http://me:hush@host"}}, "logger_options.tracking_uri"),
        (
            {"oracle_options": {"members": [{"options": {"path": "x?key=hush"}}]}},
            "oracle_options.members.0.options.path",
        ),
        ({"model": f"hf_{'h1' * 17}"}, "model"),
    ],
)
def test_a_secret_among_the_settings_is_refused_and_not_repeated(changes: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=rf"{named} holds what looks like a secret") as caught:
        TrainConfig(**{"model": "m", "prompts": "p", "oracle": "o", "out": tmp_path, **changes})
    assert "hush" not in str(caught.value)
    assert "h1h1" not in str(caught.value)


def test_names_that_only_resemble_secrets_are_settings(tmp_path: Path) -> None:
    options = {"max_tokens": 16, "key_env": "A_KEY", "token": "A", "path": "models/hf_judge_of_2026/sk-ranker"}
    TrainConfig(model="hf_model_finetuned_on_2026_data", prompts="p", oracle="o", out=tmp_path, oracle_options=options)


def test_samples_and_figures_of_every_evaluation_are_kept(finished: tuple[TrainConfig, dict]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, _ = finished
    samples = sorted((config.out / "samples").iterdir())
    assert [path.name for path in samples] == ["step=1.jsonl", "step=2.jsonl"]
    rows = [json.loads(line) for line in samples[0].read_text().splitlines()]
    assert len(rows) == 3
    assert set(rows[0]) == {"prompt", "reference", "policy", "wins by training", "wins by held_out"}
    (log,) = (config.out / "logs").glob("events*")
    events = EventAccumulator(str(log.parent)).Reload()
    names = events.Tags()["scalars"]
    wanted = ("win_rate_training", "win_rate_training_low", "win_rate_held_out_high", "entropy", "distinct", "length")
    assert all(f"eval/{name}" in names for name in wanted), names
    assert "train/grad_norm" in names
    text = events.Tensors("samples/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.startswith("| prompt | reference | policy |")
    assert "say \\|" in text, "what would break the table is escaped"
