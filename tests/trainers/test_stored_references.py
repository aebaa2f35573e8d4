"""The reference's log-probs from a store: values, forwards, and entries that cannot be used."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, KTOConfig

from alignkit.data.tokens import TokenSequence
from alignkit.methods import FDPO, KTO
from alignkit.methods.simpo import SimPO
from alignkit.models.adapters import keep_start, train_on
from alignkit.models.weights_digest import digest_of_weights, dropouts_of
from alignkit.run.reference_store import ReferenceStore
from alignkit.trainers import LabelledTrainer, PreferenceTrainer, stored_references
from tests.quiet import QUIET
from tests.tiny import build_tiny_adapter, build_tiny_model

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
FAMILIES = ("preference", "labelled")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def other_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("other"), seed=9)


def said(text: str, role: str = "assistant") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def pairs(count: int = 6) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": said(f"Question {index}?", "user"),
                "chosen": said("yes " * (index % 4 + 1)),
                "rejected": said("no, never " * (index % 3 + 1)),
            }
            for index in range(count)
        ]
    )


def labelled(count: int = 6) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": said(f"Question {index}?", "user"),
                "completion": said("yes, no " * (index % 4 + 1)),
                "label": index % 3 != 0,
            }
            for index in range(count)
        ]
    )


def options(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
        "num_train_epochs": 2,
        "logging_steps": 1,
        **QUIET,
        "max_length": 128,
        **more,
    }


def made(
    family: str,
    folder: Path,
    model_dir: Path,
    store: ReferenceStore | None,
    peft: LoraConfig | None = LORA,
    **more: Any,
) -> Any:
    preference = family == "preference"
    config = (DPOConfig if preference else KTOConfig)(
        **options(folder, **more), **({} if preference else {"train_sampling_strategy": "random"})
    )
    data = pairs if preference else labelled
    return (PreferenceTrainer if preference else LabelledTrainer)(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=config,
        method=FDPO(beta=0.5) if preference else KTO(),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        train_dataset=data(),
        eval_dataset=data(3),
        peft_config=peft,
        references=store,
    )


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sequences of each forward of the reference, through the store or by TRL."""
    forwards: list[int] = []
    score = stored_references.sequence_logps

    def scoring(model: Any, sequences: list[TokenSequence], **how: Any) -> Any:
        forwards.append(len(sequences))
        return score(model, sequences, **how)

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("a step ran the reference")

    with monkeypatch.context() as patch:
        patch.setattr(stored_references, "sequence_logps", scoring)
        for kind in (PreferenceTrainer, LabelledTrainer):
            patch.setattr(kind, "compute_ref_log_probs", refused)
        yield forwards


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("peft", [LORA, None], ids=["lora", "full"])
def test_a_second_epoch_and_a_second_run_do_no_reference_forward(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, family: str, peft: LoraConfig | None
) -> None:
    with counted(monkeypatch) as first:
        one = losses(made(family, tmp_path / "a", model_dir, ReferenceStore(tmp_path / "store"), peft))
    assert len(first) == 2  # the training rows, and the held-out rows
    with counted(monkeypatch) as second:
        two = losses(made(family, tmp_path / "b", model_dir, ReferenceStore(tmp_path / "store"), peft))
    assert second == []
    assert one == two
    assert len(one) == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_a_run_that_scores_each_step(
    tmp_path: Path, model_dir: Path, family: str
) -> None:
    kept = losses(made(family, tmp_path / "a", model_dir, ReferenceStore(tmp_path / "store"), max_steps=3))
    computed = losses(made(family, tmp_path / "b", model_dir, None, max_steps=3))
    assert kept == pytest.approx(computed, abs=1e-4)


def test_values_depend_on_neither_micro_batch_nor_adapter(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ReferenceStore(tmp_path / "store")
    columns = ("ref_chosen_logps", "ref_rejected_logps")
    first = made("preference", tmp_path / "a", model_dir, store)
    other = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with counted(monkeypatch) as forwards:
        for peft in (other, None):
            more = {"per_device_train_batch_size": 3, "seed": 5}
            again = made("preference", tmp_path / "b", model_dir, store, peft, **more)
            assert all(again.train_dataset[name] == first.train_dataset[name] for name in columns)
    assert forwards == []


def test_stored_log_probs_are_the_models_own(tmp_path: Path, model_dir: Path) -> None:
    trainer = made("preference", tmp_path / "a", model_dir, ReferenceStore(tmp_path / "store"))
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    row = trainer.train_dataset[3]
    for answer in ("chosen", "rejected"):
        ids = torch.tensor([row["prompt_ids"] + row[f"{answer}_ids"]])
        with torch.no_grad():
            logps = torch.log_softmax(model(ids).logits[0, :-1].double(), dim=-1)
        picked = logps.gather(1, ids[0, 1:, None])[len(row["prompt_ids"]) - 1 :].sum()
        assert row[f"ref_{answer}_logps"] == pytest.approx(float(picked), abs=1e-4)


def entries(store: ReferenceStore) -> list[Path]:
    return sorted(path for path in store.folder.glob("*/*") if path.is_file())


def test_a_damaged_entry_is_computed_again(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ReferenceStore(tmp_path / "store")
    made("preference", tmp_path / "a", model_dir, store)
    whole = {path: path.read_bytes() for path in entries(store)}
    for path, content in whole.items():
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with counted(monkeypatch) as forwards:
        made("preference", tmp_path / "b", model_dir, store)
    assert len(forwards) == len(whole)
    assert {path: path.read_bytes() for path in entries(store)} == whole


def test_other_weights_have_entries_of_their_own(
    tmp_path: Path, model_dir: Path, other_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ReferenceStore(tmp_path / "store")
    first = made("preference", tmp_path / "a", model_dir, store)
    with counted(monkeypatch) as forwards:
        second = made("preference", tmp_path / "b", other_dir, store)
    assert forwards
    assert first.train_dataset["ref_chosen_logps"] != second.train_dataset["ref_chosen_logps"]


def test_forwards_hold_a_bounded_number_of_tokens(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_references, "TOKENS", 80)
    monkeypatch.setattr(stored_references, "FORWARDS", 2)
    store = ReferenceStore(tmp_path / "store")
    with counted(monkeypatch) as forwards:
        small = made("preference", tmp_path / "a", model_dir, store)
    assert sum(forwards) == 18
    assert len(forwards) > 2
    assert len(entries(store)) > 1
    monkeypatch.undo()
    large = made("preference", tmp_path / "b", model_dir, ReferenceStore(tmp_path / "other"))
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        assert small.train_dataset[name] == pytest.approx(large.train_dataset[name], abs=1e-4)


def test_a_dataset_given_to_evaluate_is_scored_too(tmp_path: Path, model_dir: Path) -> None:
    for family, data in zip(FAMILIES, (pairs, labelled), strict=True):
        trainer = made(family, tmp_path / family, model_dir, ReferenceStore(tmp_path / "store"), max_steps=1)
        trainer.train()
        assert trainer.evaluate(data(5))["eval_loss"] > 0


def test_a_method_without_a_reference_scores_nothing(tmp_path: Path, model_dir: Path) -> None:
    store = ReferenceStore(tmp_path / "store")
    PreferenceTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=DPOConfig(**options(tmp_path / "a")),
        method=SimPO(),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        train_dataset=pairs(),
        references=store,
    )
    assert not store.folder.exists()


def test_a_stream_has_no_stored_references(tmp_path: Path, model_dir: Path) -> None:
    with pytest.raises(TypeError, match=r"needs a datasets\.Dataset, found IterableDataset"):
        PreferenceTrainer(
            model=AutoModelForCausalLM.from_pretrained(model_dir),
            args=DPOConfig(**options(tmp_path, max_steps=1)),
            method=FDPO(),
            processing_class=AutoTokenizer.from_pretrained(model_dir),
            train_dataset=IterableDataset.from_generator(lambda: iter(pairs())),
            references=ReferenceStore(tmp_path / "store"),
        )


def test_a_reference_that_is_not_finite_ends_the_run_and_stores_nothing(
    tmp_path: Path, model_dir: Path
) -> None:
    broken = AutoModelForCausalLM.from_pretrained(model_dir)
    broken.model.norm.weight.data.fill_(float("nan"))
    folder = tmp_path / "broken"
    broken.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(folder)
    store = ReferenceStore(tmp_path / "store")
    with pytest.raises(FloatingPointError, match="of 12 answers are not finite"):
        made("preference", tmp_path / "a", folder, store)
    assert not store.folder.exists()


def test_a_digest_of_weights_ignores_new_adapters_and_names(tmp_path: Path, model_dir: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(model_dir)
    copied = tmp_path / "elsewhere"
    plain.save_pretrained(copied)
    before = digest_of_weights(plain)
    assert digest_of_weights(AutoModelForCausalLM.from_pretrained(copied)) == before
    assert digest_of_weights(get_peft_model(plain, LORA)) == before


def test_a_digest_of_weights_includes_the_adapter_that_training_starts_from(
    tmp_path: Path, model_dir: Path
) -> None:
    digests = set()
    for seed in (2, 3):
        adapter = build_tiny_adapter(model_dir, tmp_path / str(seed), seed=seed)
        model = train_on(AutoModelForCausalLM.from_pretrained(model_dir), adapter)
        keep_start(model)
        start = digest_of_weights(model)
        for name, weight in model.named_parameters():
            if weight.requires_grad and "lora_B" in name:
                weight.data.add_(1)
        assert digest_of_weights(model) == start
        digests.add(start)
    assert len(digests) == 2


def test_dropout_of_the_reference_is_found(model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    assert dropouts_of(model) == []
    model.config.attention_dropout = 0.1
    assert dropouts_of(model) == ["attention_dropout"]
