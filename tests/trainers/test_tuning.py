"""Tuned options in a run: the response, its neutral value, the plain adapter it becomes, resume and direction."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from alignkit import train
from alignkit.adapter_sections import TuneSection
from alignkit.after import adapter as adapters
from alignkit.errors import ModelError
from alignkit.methods import DPO
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from alignkit.trainers.tuning import FOLDER, Tuner
from tests.preference import write_pairs
from tests.tiny import build_tiny_model

STILL = {"options": ["beta"], "rank": 2, "spread": 0.0, "learning_rate": 0.0}
MOVING = {"options": ["beta", "label_smoothing"], "rank": 2, "warmup_steps": 1, "every": 1, "rows": 3}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tune")
    build_tiny_model(path / "model")
    write_pairs(path / "train.jsonl")
    write_pairs(path / "validation.jsonl", count=4, start=100)
    return path


def run(workplace: Path, name: str, **sections: Any) -> RunFolder:
    """Train four steps of four pairs, with a checkpoint after each two, and return the run's folder."""
    output = workplace / name
    options = {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-2, "save_steps": 2}
    values = {
        "model": {"path": str(workplace / "model")},
        "data": {
            "train": str(workplace / "train.jsonl"),
            "validation": str(workplace / "validation.jsonl"),
            "max_length": 96,
        },
        "method": {"type": "f_dpo", "beta": 0.5},
        "training": options | sections.pop("training", {}),
        "lora": {"r": 4, "alpha": 8},
        "collapse_guard": None,
        "seed": 5,
        "output_dir": str(output),
        **sections,
    }
    path = output.with_suffix(".yaml")
    path.write_text(Recipe.parse(values).to_yaml())
    assert train.main([str(path)]) == 0
    return RunFolder(output)


@pytest.fixture(scope="module")
def tuned(workplace: Path) -> RunFolder:
    return run(workplace, "tuned", tune=MOVING)


def delta(adapter: adapters.Adapter) -> dict[str, Tensor]:
    """The change of each weight."""
    names = [name.removesuffix(adapters.IN) for name in adapter.weights if name.endswith(adapters.IN)]
    return {
        name: adapter.scale * adapter.weights[name + adapters.OUT] @ adapter.weights[name + adapters.IN]
        for name in names
    }


def small() -> Any:
    """A linear layer with an adapter whose matrices are random."""
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(6, 5)), LoraConfig(r=3, lora_alpha=6, target_modules=["0"])
    )
    nn.init.normal_(model.base_model.model[0].lora_B["default"].weight)
    return model


def tuner_of(model: Any, **options: Any) -> Tuner:
    return Tuner(model, DPO(), TuneSection(options=["beta"], rank=2, **options), seed=3)


def test_a_gate_of_zero_is_the_plain_adapter_bit_for_bit() -> None:
    model, x = small(), torch.randn(4, 7, 6)
    plain = model(x)
    tuner = tuner_of(model)
    (response,) = tuner.responses.values()
    nn.init.normal_(response.up)
    nn.init.zeros_(response.gate)
    tuner.rows = torch.randn(4, 1)
    assert torch.equal(model(x), plain)


def test_each_sequence_is_answered_at_its_own_deviation() -> None:
    model, x = small(), torch.randn(2, 7, 6)
    plain, tuner = model(x), tuner_of(model)
    (response,) = tuner.responses.values()
    nn.init.normal_(response.up)
    tuner.rows = torch.tensor([[0.5], [-2.0]])
    added = 2 * torch.einsum("ok,ntk->nto", response.up @ response.down, x) * response.gate[:, 0]
    torch.testing.assert_close(model(x), plain + added * tuner.rows[:, None])
    with model.disable_adapter():
        torch.testing.assert_close(model(x), model.base_model.model[0].base_layer(x))
    model.eval()
    torch.testing.assert_close(model(x), plain)


def test_the_exported_adapter_is_the_gated_model() -> None:
    model, x = small(), torch.randn(2, 7, 6)
    tuner = tuner_of(model)
    (response,) = tuner.responses.values()
    nn.init.normal_(response.up)
    with torch.no_grad():
        tuner.shift.fill_(0.7)
    model.eval()
    gated, base = model(x), model.base_model.model[0].base_layer(x)
    layer, (place,) = model.base_model.model[0], tuner.responses
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    weights = {place + adapters.IN: down, place + adapters.OUT: up}
    folded = tuner.folded(adapters.Adapter(weights, 3, 6))
    assert folded.rank == 5
    assert folded.scale == 2
    torch.testing.assert_close(base + x @ delta(folded)[place].T, gated)
    tuner.remove(model)
    torch.testing.assert_close(model(x), base + 2 * x @ (up @ down).T)
    assert not any("response" in name for name, _ in model.named_parameters())


def test_noise_depends_on_seed_step_and_row_alone() -> None:
    tuner = tuner_of(small())
    together = tuner.deviations(3, [4, 9])
    assert torch.equal(together[1:], tuner.deviations(3, [9]))
    assert not torch.equal(together, tuner.deviations(4, [4, 9]))
    many = tuner.deviations(0, range(400))
    assert abs(float(many.detach().std()) - 0.5) < 0.06


def test_the_entropy_widens_the_perturbations() -> None:
    tuner = tuner_of(small(), entropy_weight=1.0)
    before = float(tuner.spread)
    tuner.move([torch.zeros(1), torch.zeros(1)])
    assert float(tuner.spread) > before
    assert float(tuner.shift) == 0


def test_the_option_moves_to_the_best_one_of_a_toy() -> None:
    """A penalised weight: the best response is 1 / (1 + penalty), and held-out rows want one penalty."""
    torch.manual_seed(1)
    found = {}
    for truth, start in ((1.0, 3.0), (0.2, 0.05)):
        # training wants w = 1 / (1 + penalty), held out wants w = 1 / (1 + truth)
        model = get_peft_model(
            nn.Sequential(nn.Linear(1, 1, bias=False)), LoraConfig(r=1, target_modules=["0"])
        )
        nn.init.zeros_(model.base_model.model[0].base_layer.weight)
        options = TuneSection(options=["beta"], rank=1, learning_rate=0.05, spread=0.3)
        tuner = Tuner(model, DPO(beta=start), options, seed=0)
        nn.init.constant_(model.base_model.model[0].lora_A["default"].weight, 1.0)
        nn.init.constant_(next(iter(tuner.responses.values())).down, 1.0)
        optimizer = torch.optim.Adam((w for w in model.parameters() if w.requires_grad), lr=0.05)
        x = torch.ones(32, 1, 1)
        for step in range(400):
            deviations = tuner.deviations(step, range(32))
            tuner.rows = deviations.detach()
            penalty = tuner.scales[0].value(tuner.rows[:, 0])
            w = model.train()(x).flatten()
            optimizer.zero_grad()
            ((w - 1).square() + penalty * w.square()).mean().backward()
            optimizer.step()
            tuner.rows, tuner.perturbs = tuner.deviations(step, range(32), "held out"), True
            loss = (model.eval()(x).flatten() - 1 / (1 + truth)).square().mean()
            tuner.move(torch.autograd.grad(loss, [tuner.shift, tuner.raw_spread]))
            tuner.perturbs = False
        found[truth] = tuner.values()["beta"]
    assert found[1.0] == pytest.approx(1.0, rel=0.25)
    assert found[0.2] == pytest.approx(0.2, rel=0.35)


def test_without_perturbations_it_is_bitwise_the_plain_run(workplace: Path) -> None:
    unclipped = {
        "packing": False,
        "max_grad_norm": 1e9,
    }  # the norm's sum rounds otherwise with more terms, even if they are zeros
    plain = run(workplace, "plain", training=unclipped)
    still = run(workplace, "still", tune=STILL, training=unclipped)
    own = adapters.read(still.adapter).weights
    for name, weight in adapters.read(plain.adapter).weights.items():
        kept = own[name][:4] if name.endswith(adapters.IN) else own[name][:, :4]
        assert torch.equal(kept, weight), name
        assert name.endswith(adapters.IN) or not own[name][:, 4:].any()
    logs = [json.loads((folder.result).read_text())["metrics"] for folder in (plain, still)]
    assert logs[0]["valid_loss"] == logs[1]["valid_loss"]
    assert json.loads(still.result.read_text())["tuned"] == {"beta": 0.5}


def test_a_run_reports_what_it_found_and_the_way_there(tuned: RunFolder) -> None:
    result = json.loads(tuned.result.read_text())
    found = result["tuned"]
    assert found.keys() == {"beta", "label_smoothing"}
    assert found["beta"] not in {0.5, 0.0}
    assert result["metrics"]["train_tune_beta"] == pytest.approx(found["beta"])
    for name in ("train_tune_beta_spread", "train_tune_held_out_loss"):
        assert name in result["metrics"]
    messages = [json.loads(line)["message"] for line in tuned.events.read_text().splitlines()]
    assert any(message.startswith("Tuned beta from 0.5 to") for message in messages)


def test_what_is_saved_is_one_plain_adapter_that_answers_like_the_run(
    workplace: Path, tuned: RunFolder
) -> None:
    config = json.loads((tuned.adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (6, 12)
    assert not (tuned.adapter / FOLDER).exists()
    canary = json.loads(tuned.canary.read_text())
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(workplace / "model"), tuned.adapter
    )
    prompt, answer = canary["prompt_token_ids"], canary["completion_token_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    served = logits.gather(1, torch.tensor(answer)[:, None]).squeeze(1).tolist()
    assert canary["adapter_logprobs"] == pytest.approx(served, abs=1e-4)
    last = adapters.read(tuned.checkpoints / "checkpoint-4")  # a checkpoint is published as it is
    for name, weight in delta(adapters.read(tuned.adapter)).items():
        torch.testing.assert_close(delta(last)[name], weight)


def test_a_step_does_not_depend_on_its_split(workplace: Path, tuned: RunFolder) -> None:
    split = run(workplace, "split", tune=MOVING, training={"micro_batch_size": 2})
    whole = delta(adapters.read(tuned.adapter))
    for name, weight in delta(adapters.read(split.adapter)).items():
        torch.testing.assert_close(weight, whole[name], rtol=1e-3, atol=1e-4)


def test_a_run_resumes_bit_for_bit(workplace: Path, tuned: RunFolder) -> None:
    whole, found = adapters.read(tuned.adapter), json.loads(tuned.result.read_text())["tuned"]
    for gone in (tuned.adapter, tuned.checkpoints / "checkpoint-4"):
        shutil.rmtree(gone)
    tuned.result.unlink()
    assert train.main([str(workplace / "tuned.yaml"), "--resume"]) == 0
    again = adapters.read(tuned.adapter)
    assert all(torch.equal(again.weights[name], weight) for name, weight in whole.weights.items())
    assert json.loads(tuned.result.read_text())["tuned"] == found


def test_steps_after_training_see_the_plain_adapter(workplace: Path, tuned: RunFolder) -> None:
    half = run(workplace, "half", tune=MOVING, after=[{"type": "interpolate", "amount": 0.5}])
    whole = delta(adapters.read(tuned.adapter))
    for name, weight in delta(adapters.read(half.adapter)).items():
        torch.testing.assert_close(weight, whole[name] / 2)


def test_a_layer_whose_outputs_cannot_be_gated_is_refused() -> None:
    model = get_peft_model(nn.Sequential(nn.Embedding(6, 5)), LoraConfig(r=3, target_modules=["0"]))
    model.base_model.model[0].lora_A = nn.ModuleDict({"default": nn.Linear(6, 3)})
    with pytest.raises(ModelError, match=r"tune: expected LoRA on linear layers only, found .*, a Embedding"):
        tuner_of(model)
