"""Every recipe runs to its end as it stands, with small models and few short steps in place of large and many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nlhf_zoo.cli import main
from nlhf_zoo.cli.config_files import recipes
from nlhf_zoo.llm.small_models import byte_tokenizer, small_judge, small_llama


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model, two reward models, and a data set that is laid out like the recipes' own."""
    from datasets import Dataset

    path, tokenizer = tmp_path_factory.mktemp("hub"), byte_tokenizer()
    small_llama(tokenizer, hidden=32, layers=2, heads=2, seed=0).save_pretrained(path / "model")
    for i, name in enumerate(("judge", "second_judge")):
        small_judge(tokenizer, hidden=32, layers=1, heads=2, seed=i + 1).save_pretrained(path / name)
    for name in ("model", "judge", "second_judge"):
        tokenizer.save_pretrained(path / name)
    rows = [{"prompt": f"Say {i}.", "chosen": [{"role": "user", "content": f"Say {i}."}]} for i in range(24)]
    (path / "prompts" / "data").mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(path / "prompts" / "data" / "train_prefs-00000-of-00001.parquet")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes())
@pytest.mark.filterwarnings("ignore")  # of libraries, about bfloat16 on a CPU and the like
def test_a_recipe_runs_to_its_end(name: str, hub: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    smaller = {
        "model": hub / "model",
        "prompts": hub / "prompts",
        "out": out,
        "steps": 3,
        "warmup-steps": 1,
        "batch-size": 2,
        "max-prompt-tokens": 64,
        "max-new-tokens": 6,
        "eval-every": 2,
        "eval-size": 4,
        "eval-batch-size": 2,
        "checkpoint-every": 2,
        "accelerator": "cpu",
        "devices": 1,
        "strategy": "auto",
    }
    flags = [text for key, value in smaller.items() for text in (f"--{key}", str(value))]
    judges = ["--oracle-set", f"path={hub / 'judge'}", "dtype=bfloat16", "batch_size=4"]
    judges += ["--eval-oracle-set", f"path={hub / 'second_judge'}", "dtype=bfloat16", "batch_size=4"]
    assert main(["train", "--config", f"recipe:{name}", *flags, *judges]) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["steps"] == 3
    assert result["models_held"] == 3
    assert {"training", "held_out"} <= set(result["win_rate"])
    assert (out / "policy" / "model.safetensors").exists()
    assert (out / "adapter").exists() == ("lora" in name)
