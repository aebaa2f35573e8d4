"""Training on from an adapter: what it is made of stays, and references are the model with it as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from alignkit.errors import ModelError, RecipeError
from alignkit.models.adapters import keep_start, lora_of, start_of, train_on
from alignkit.recipe import Recipe
from alignkit.run.environment_checks import require
from alignkit.run.folder import RunFolder
from alignkit.train import build_trainer, main
from alignkit.trainers.scoring import Answer, token_logps
from tests.distributed.launching import METHODS, build_inputs, write_recipe
from tests.tiny import build_tiny_adapter


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("inputs"))


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_what_it_is_made_of_is_read(inputs: Path) -> None:
    lora = lora_of(inputs / "adapter")
    assert (lora.r, lora.alpha, lora.dropout) == (4, 8.0, 0.0)
    assert isinstance(lora.target_modules, list)
    assert len(lora.target_modules) == len(set(lora.target_modules)) == 14


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | values))


def pickle_weights(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    torch.save(weights, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def add_embedding(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    weights["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.ones(4, 8)
    save_file(weights, folder / "adapter_model.safetensors")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config.json"),
    "no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), "is not JSON"),
    "no LoRA": (lambda folder: change_config(folder, peft_type="IA3"), "expected a LoRA adapter"),
    "whole modules": (lambda folder: change_config(folder, modules_to_save=["lm_head"]), "modules_to_save"),
    "its own base": (lambda folder: change_config(folder, init_lora_weights="pissa"), "'pissa' changes"),
    "repeated layers": (
        lambda folder: change_config(folder, layer_replication=[[0, 2]]),
        "layer_replication",
    ),
    "biases": (lambda folder: change_config(folder, bias="all"), "expected bias 'none'"),
    "embeddings": (add_embedding, "inner layers only, found .*embed_tokens"),
    "damaged": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"), "not a safetensors"),
    "no rank": (
        lambda folder: change_config(folder, r=None),
        "does not describe a LoRA that can be trained further",
    ),
    "the head": (lambda folder: change_config(folder, target_modules=["lm_head"]), "lm_head"),
    "pickled": (pickle_weights, "pickled weights are not accepted"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_train_on_is_refused_by_the_recipe(inputs: Path, tmp_path: Path, kind: str) -> None:
    spoil, words = BAD[kind]
    folder = build_tiny_adapter(inputs / "model", tmp_path / "adapter")
    spoil(folder)
    with pytest.raises(ModelError, match=words):
        lora_of(folder)
    values = {
        "model": {"path": "m", "adapter": str(folder)},
        "data": {"train": "t"},
        "method": {"type": "f_dpo"},
        "output_dir": str(tmp_path),
    }
    with pytest.raises(RecipeError, match=r"^model\.adapter: "):
        Recipe.parse(values)


def test_an_adapter_of_another_model_is_refused(inputs: Path, tmp_path: Path) -> None:
    folder = build_tiny_adapter(inputs / "model", tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    renamed = {name.replace(".layers.1.", ".layers.7."): value for name, value in weights.items()}
    save_file(renamed, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"belongs to another model: .*layers\.[17]\."):
        train_on(load(inputs / "model"), folder)
    wide = {name: torch.cat([value, value]) for name, value in weights.items()}
    save_file(wide, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="cannot load the adapter"):
        train_on(load(inputs / "model"), folder)


def test_the_recipe_of_the_run_before_goes_on(inputs: Path, tmp_path: Path) -> None:
    """It has every default written out, where peft names each module in the adapter."""
    values = Recipe.load(write_recipe(inputs, tmp_path / "run", "f_dpo", kind="adapter")).model_dump()
    modules = values["lora"]["target_modules"]
    for given in ("all-linear", modules[::-1]):
        values["lora"] = {"r": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": given}
        assert Recipe.parse(values).lora == lora_of(inputs / "adapter")
    for wrong, words in (
        ({"r": 8}, "lora.r: expected 4"),
        ({"target_modules": modules[1:]}, "target_modules"),
    ):
        with pytest.raises(RecipeError, match=words):
            Recipe.parse({**values, "lora": wrong})
    with pytest.raises(RecipeError, match="null trains all weights"):
        Recipe.parse({**values, "lora": None})


def test_a_server_draws_from_the_model_with_its_adapter(inputs: Path, tmp_path: Path) -> None:
    options = {"sampler_url": "http://127.0.0.1:1"}
    recipe = Recipe.load(write_recipe(inputs, tmp_path / "run", "d2o", kind="adapter", options=options))
    with pytest.raises(RecipeError, match=r"^method\.sampler_model: is required with model\.adapter"):
        require(recipe)


def test_the_copy_has_the_adapters_dtype(inputs: Path) -> None:
    """Under ZeRO-3 nothing is held in float32 beside a model of 16 bits; TRL adds its copy itself."""
    half = AutoModelForCausalLM.from_pretrained(inputs / "model", dtype=torch.bfloat16)
    model = train_on(half, inputs / "adapter", upcast=False)
    model.add_adapter("ref", model.peft_config["default"])
    found = {weight.dtype for name, weight in model.named_parameters() if "lora_" in name}
    assert found == {torch.bfloat16}
    assert model.peft_config["default"].base_model_name_or_path == str(inputs / "model"), (
        "not looked for elsewhere"
    )


def test_the_copy_is_frozen_and_the_adapter_trains(inputs: Path) -> None:
    model = train_on(load(inputs / "model"), inputs / "adapter")
    assert start_of(model) is None
    keep_start(model)
    keep_start(model)
    assert start_of(model) == "ref"
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".default." in name}
    for name in trained:
        torch.testing.assert_close(
            model.get_parameter(name.replace(".default.", ".ref.")), model.get_parameter(name), rtol=0, atol=0
        )


def independent_logps(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0].double()
    logps = logits.log_softmax(dim=-1)[len(prompt) - 1 : -1]
    return logps.gather(1, torch.tensor(answer)[:, None])[:, 0].float()


@pytest.mark.parametrize("method", METHODS)
def test_a_run_trains_on_and_its_reference_is_the_model_it_began_with(
    inputs: Path, tmp_path: Path, method: str
) -> None:
    """The oracle merges the adapter into the base by peft, and scores by full logits in double precision."""
    path = write_recipe(inputs, tmp_path / "run", method, kind="adapter", learning_rate=5e-2, max_steps=1)
    recipe = Recipe.load(path)
    assert recipe.lora == lora_of(inputs / "adapter")
    trainer = build_trainer(recipe, RunFolder(tmp_path / "run"))
    prompt, answer = [5, 6, 7, 8], [9, 10, 11]
    merged = PeftModel.from_pretrained(load(inputs / "model"), inputs / "adapter").merge_and_unload().eval()
    expected = {"reference": merged, "base": load(inputs / "model").eval()}
    trainer.train()
    scored = {}
    for under in ("policy", "reference", "base"):
        (scored[under],) = token_logps(trainer, [Answer(prompt, answer)], under) or []
    for under, model in expected.items():
        torch.testing.assert_close(
            scored[under], independent_logps(model, prompt, answer), rtol=1e-4, atol=1e-4
        )
    assert float((scored["policy"] - scored["reference"]).abs().max()) > 1e-3
    assert float((scored["reference"] - scored["base"]).abs().max()) > 1e-2


def test_what_is_saved_is_one_adapter_of_the_same_make(inputs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([str(write_recipe(inputs, run, "f_dpo", kind="adapter", max_steps=2))]) == 0
    for folder in (run / "adapter", *run.glob("checkpoints/checkpoint-*")):
        assert not [path for path in folder.iterdir() if path.is_dir()]
        assert lora_of(folder).r == 4
        weights = load_file(folder / "adapter_model.safetensors")
        assert weights.keys() == load_file(inputs / "adapter" / "adapter_model.safetensors").keys()
    canary = json.loads((run / "canary.json").read_text())
    kinds = [canary[f"{name}_logprobs"] for name in ("base", "start", "adapter")]
    assert all(kinds)
    assert kinds[0] != kinds[1] != kinds[2]
    losses = [json.loads(line)["data"] for line in (run / "events.jsonl").read_text().splitlines()]
    first = next(data for data in losses if "train_logratios_chosen" in data)
    assert first["train_logratios_chosen"] == pytest.approx(0, abs=1e-4), "the reference is where it began"


def test_another_adapter_is_another_origin(inputs: Path, tmp_path: Path, capsys: Any) -> None:
    adapter = build_tiny_adapter(inputs / "model", tmp_path / "adapter")
    values = Recipe.load(
        write_recipe(inputs, tmp_path / "run", "f_dpo", kind="adapter", max_steps=2)
    ).model_dump()
    values["model"]["adapter"] = str(adapter)
    (tmp_path / "run.yaml").write_text(Recipe.parse(values).to_yaml())
    assert main([str(tmp_path / "run.yaml")]) == 0
    build_tiny_adapter(inputs / "model", adapter, seed=9)
    assert main([str(tmp_path / "run.yaml"), "--resume"]) == 1
    assert "model.adapter has other contents now" in capsys.readouterr().err
