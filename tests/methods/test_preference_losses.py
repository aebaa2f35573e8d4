"""SimPO, ORPO, IPO and KTO against TRL and Liger, and what a method without a reference costs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, LlamaModel
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from alignkit.losses import LabelledLogps, PairLogps
from alignkit.methods import IPO, KTO, ORPO, MaPO, PairMethod, SimPO
from alignkit.trainers import PreferenceTrainer
from tests.tiny import build_tiny_model

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
COUNT, LENGTH, HIDDEN, VOCABULARY = 6, 5, 16, 23


class Sequences(NamedTuple):
    """Random hidden states of COUNT chosen answers, then as many rejected ones, all of LENGTH tokens."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor

    def pairs(self) -> PairLogps:
        """The log-probs of the pairs, from materialised logits."""
        logps = (self.hidden @ self.weight.T).log_softmax(dim=-1)
        chosen, rejected = logps.gather(2, self.labels[..., None])[..., 0].sum(dim=1).chunk(2)
        tokens = torch.full((COUNT,), LENGTH)
        absent: Any = None
        return PairLogps(chosen, rejected, absent, absent, tokens, tokens)


def sequences() -> Sequences:
    torch.manual_seed(3)
    labels = torch.randint(VOCABULARY, (2 * COUNT, LENGTH))
    return Sequences(torch.randn(2 * COUNT, LENGTH, HIDDEN), torch.randn(VOCABULARY, HIDDEN) / 4, labels)


def stub(**options: Any) -> Any:
    """A stand-in for a TRL trainer, with the attributes that its loss reads."""
    return SimpleNamespace(accelerator=SimpleNamespace(device=torch.device("cpu")), **options)


def test_simpo_equals_trls_cpo_trainer() -> None:
    """TRL's CPOTrainer.cpo_loss with loss_type simpo, of mean log-probs a token."""
    pairs = sequences().pairs()
    theirs = stub(loss_type="simpo", beta=2.5, simpo_gamma=0.8, alpha=0.0, label_smoothing=0.0)
    averaged = pairs.averaged()
    losses, chosen, rejected = CPOTrainer.cpo_loss(theirs, averaged.chosen, averaged.rejected)
    found = SimPO(beta=2.5, margin=0.8).loss(pairs)
    torch.testing.assert_close(found.losses, losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.chosen_rewards, chosen, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.rejected_rewards, rejected, rtol=1e-5, atol=1e-6)


def test_simpo_equals_ligers() -> None:
    """Liger's LigerFusedLinearSimPOLoss without its likelihood term, from hidden states to the mean loss."""
    liger = pytest.importorskip("liger_kernel.chunked_loss")
    data = sequences()
    loss = liger.LigerFusedLinearSimPOLoss(beta=2.5, gamma=0.8, compute_nll_loss=False, compiled=False)
    expected = loss(data.weight, data.hidden, data.labels)[0]
    found = SimPO(beta=2.5, margin=0.8).loss(data.pairs()).losses.mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_orpos_odds_ratio_equals_trls() -> None:
    """TRL's ORPOTrainer.odds_ratio_loss; its likelihood term is over the prompt too, ours as in the paper."""
    pairs = sequences().pairs()
    averaged = pairs.averaged()
    ratio, chosen, rejected, *_ = ORPOTrainer.odds_ratio_loss(
        stub(beta=0.7), averaged.chosen, averaged.rejected
    )
    found = ORPO(beta=0.7).loss(pairs)
    torch.testing.assert_close(found.losses + averaged.chosen, -ratio, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.chosen_rewards, chosen, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.rejected_rewards, rejected, rtol=1e-5, atol=1e-6)


def test_orpo_equals_ligers() -> None:
    """Liger's LigerFusedLinearORPOLoss, likelihood term included, of answers of one length."""
    liger = pytest.importorskip("liger_kernel.chunked_loss")
    data = sequences()
    expected = liger.LigerFusedLinearORPOLoss(beta=0.7, compiled=False)(
        data.weight, data.hidden, data.labels
    )[0]
    found = ORPO(beta=0.7).loss(data.pairs()).losses.mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_kto_equals_ligers() -> None:
    """Liger's LigerFusedLinearKTOFunction.preference_loss_fn, given the same baseline."""
    liger = pytest.importorskip("liger_kernel.chunked_loss.kto_loss")
    logps, reference, baseline = torch.randn(COUNT) * 4, torch.randn(COUNT) * 4, torch.tensor(0.6)
    desirable, tokens = torch.arange(COUNT) % 3 == 0, torch.ones(COUNT)
    expected = liger.LigerFusedLinearKTOFunction.preference_loss_fn(
        logps, desirable, tokens, reference, beta=0.4, kl=baseline
    )[0]
    found = KTO(beta=0.4).loss(LabelledLogps(logps, reference, desirable, tokens, baseline))
    assert float(found.losses.mean()) == pytest.approx(float(expected), rel=1e-5)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def rows() -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"Question {index}?"}],
                "chosen": [{"role": "assistant", "content": "yes " * (index % 4 + 1)}],
                "rejected": [{"role": "assistant", "content": "no, never " * (index % 3 + 1)}],
            }
            for index in range(6)
        ]
    )


def built(
    kind: type[DPOTrainer],
    folder: Path,
    model_dir: Path,
    peft: LoraConfig | None,
    options: Any,
    **method: Any,
) -> DPOTrainer:
    config = DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=6,
        learning_rate=0.002,
        optim="sgd",  # Adam's first steps make of a gradient's last bits as much as of all the others
        max_steps=3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        max_length=128,
        **options,
    )
    return kind(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=config,
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        train_dataset=rows(),
        eval_dataset=rows(),
        peft_config=peft,
        **method,
    )


def losses(trainer: DPOTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_ipo_equals_trls_dpo_trainer(tmp_path: Path, model_dir: Path) -> None:
    """TRL's DPOTrainer with loss_type ipo, trained for three steps and evaluated."""
    mine = built(PreferenceTrainer, tmp_path / "a", model_dir, LORA, {}, method=IPO(beta=0.5))
    theirs = built(DPOTrainer, tmp_path / "b", model_dir, LORA, {"loss_type": ["ipo"], "beta": 0.5})
    mine.train()
    theirs.train()
    assert len(losses(mine)) == 3
    assert losses(mine) == pytest.approx(losses(theirs), rel=1e-5)
    assert mine.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("peft", [LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize(
    ("method", "references"),
    [(SimPO(), 0), (ORPO(), 0), (MaPO(), 0), (IPO(), 1)],
    ids=["simpo", "orpo", "mapo", "ipo"],
)
def test_a_method_without_a_reference_loads_and_runs_none(
    tmp_path: Path,
    model_dir: Path,
    peft: LoraConfig | None,
    method: PairMethod,
    references: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One model is made, and one forward run a batch; IPO shows that both are counted."""
    made, forwards = [], []
    make, forward = LlamaForCausalLM.__init__, LlamaModel.forward

    def counted_make(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(type(self))
        make(self, *args, **kwargs)

    def counted_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        forwards.append(self.training)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "__init__", counted_make)
    monkeypatch.setattr(LlamaModel, "forward", counted_forward)
    trainer = built(PreferenceTrainer, tmp_path, model_dir, peft, {}, method=method)
    trainer.train()
    assert len(made) == 1 + references * (peft is None)
    assert len(forwards) == 3 * (1 + references)
    trainer.evaluate()
    assert len(forwards) == 4 * (1 + references)
