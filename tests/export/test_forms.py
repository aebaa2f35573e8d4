"""Exports of a run: merged, as an adapter, whole or not at all, and refused with the reason."""

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.errors import AlignkitError, ExportError, ModelError
from alignkit.export import ExportOptions, Source, export, export_name, source_at, whole_or_nothing
from alignkit.export.card import card_of
from alignkit.models.importing import import_model
from alignkit.models.origin import keep_origin
from tests.export.models import build, logprobs
from tests.tiny import build_tiny_adapter, build_tiny_model

QUIET = ExportOptions(report=lambda _: None)
CARD = "---\nlibrary_name: peft\ntags:\n- f-dpo\n---\n\n# demo\n\nTrained with f_dpo.\n"
TEXT = "The capital of France is Paris."


class Run:
    """A finished run with a LoRA adapter over a bfloat16 base from the hub."""

    def __init__(self, folder: Path) -> None:
        self.base = build_tiny_model(folder / "base")
        model = AutoModelForCausalLM.from_pretrained(self.base)
        model.to(torch.bfloat16).save_pretrained(self.base)
        keep_origin(self.base, "org/base-model")
        self.path = folder / "run"
        build_tiny_adapter(self.base, self.path / "adapter")
        tokenizer = AutoTokenizer.from_pretrained(self.base)
        tokenizer.chat_template = "{{ messages[0]['content'] }}"
        tokenizer.save_pretrained(self.path / "adapter")
        (self.path / "adapter" / "README.md").write_text(CARD)
        (self.path / "adapter" / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
        recipe = {"model": {"path": str(self.base)}, "lora": {"r": 4}}
        (self.path / "recipe.yaml").write_text(yaml.safe_dump(recipe))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def merged(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(source_at(run.path), "merged", tmp_path_factory.mktemp("out") / "merged", QUIET)


def test_merged_weights_are_those_of_float64_rounded_once(run: Run, merged: Path) -> None:
    name = "model.layers.1.mlp.down_proj"
    own, lora = (
        load_file(run.base / "model.safetensors"),
        load_file(run.path / "adapter" / "adapter_model.safetensors"),
    )
    a, b = (lora[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "AB")
    expected = (own[f"{name}.weight"].double() + 8.0 / 4 * b @ a).to(torch.bfloat16)
    found = load_file(merged / "model.safetensors")[f"{name}.weight"]
    assert found.dtype == torch.bfloat16
    steps = (found.view(torch.int16).int() - expected.view(torch.int16).int()).abs()
    assert steps.max() <= 1
    assert (steps > 0).float().mean() < 0.01  # float32's sums on the edge between two values of bfloat16
    untouched = "model.embed_tokens.weight"
    assert torch.equal(load_file(merged / "model.safetensors")[untouched], own[untouched])


def test_a_merged_model_answers_as_base_and_adapter_do(run: Run, merged: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(run.base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, run.path / "adapter")
    ids = AutoTokenizer.from_pretrained(run.base)(TEXT).input_ids
    found = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    assert (logprobs(found, ids) - logprobs(adapted, ids)).abs().mean() < 0.05


def test_a_merged_model_has_the_template_the_ends_and_a_true_card(merged: Path) -> None:
    assert AutoTokenizer.from_pretrained(merged).chat_template == "{{ messages[0]['content'] }}"
    assert json.loads((merged / "generation_config.json").read_text())["eos_token_id"] == [2, 0]
    metadata, _, text = (merged / "README.md").read_text().removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(metadata) == {
        "library_name": "transformers",
        "tags": ["alignkit", "f-dpo"],
        "base_model_relation": "finetune",
        "base_model": "org/base-model",
    }
    assert "Trained with f_dpo." in text
    assert "A LoRA adapter of" not in text
    assert not list(merged.glob("adapter*"))


def test_an_adapter_is_complete_and_names_its_base_by_the_hub(run: Run, tmp_path: Path) -> None:
    target = export(source_at(run.path), "adapter", tmp_path / "out", QUIET)
    config = json.loads((target / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base-model"
    assert AutoTokenizer.from_pretrained(target).chat_template == "{{ messages[0]['content'] }}"
    own = run.path / "adapter" / "adapter_model.safetensors"
    assert (target / "adapter_model.safetensors").read_bytes() == own.read_bytes()
    assert "base_model: org/base-model" in (target / "README.md").read_text()
    assert str(run.base) not in "".join(path.read_text() for path in target.glob("*.json"))


def test_an_unpacked_archive_is_exported_too(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = export(source_at(run.path), "adapter", tmp_path / "archive", QUIET)
    with pytest.raises(ModelError, match="cannot load org/base-model"):
        export(source_at(archive), "merged", tmp_path / "none", QUIET)
    config = archive / "adapter_config.json"
    config.write_text(config.read_text().replace("org/base-model", str(run.base)))
    assert (export(source_at(archive), "merged", tmp_path / "out", QUIET) / "model.safetensors").is_file()


def test_a_checkpoint_is_exported_by_its_step(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    (copy / "adapter").rename(copy / "checkpoint")
    (copy / "checkpoints").mkdir()
    (copy / "checkpoint").rename(copy / "checkpoints" / "checkpoint-7")
    source = source_at(copy, step=7)
    assert source.name == "run-step-7"
    assert source.is_adapter
    with pytest.raises(
        ModelError, match="has no adapter: expected a finished run, and this one has no result yet"
    ):
        source_at(copy)
    (copy / "result.json").write_text('{"status": "failed", "error": {"message": "Out of memory."}}')
    with pytest.raises(ModelError, match=r"and this one failed: Out of memory\."):
        source_at(copy)


def test_all_weights_are_exported_without_an_adapter(tmp_path: Path) -> None:
    base = build(tmp_path / "base", "qwen2")
    run = tmp_path / "run"
    shutil.copytree(base, run / "model")
    (run / "recipe.yaml").write_text(yaml.safe_dump({"model": {"path": str(base)}, "lora": None}))
    target = export(source_at(run), "merged", tmp_path / "out", QUIET)
    ids = AutoTokenizer.from_pretrained(base)(TEXT).input_ids
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (base, target)]
    assert torch.equal(*(logprobs(model, ids) for model in models))
    with pytest.raises(ExportError, match="has all its weights trained, so it has no adapter"):
        export(source_at(run), "adapter", tmp_path / "adapter", QUIET)
    assert not (tmp_path / "adapter").exists()


def test_a_quantised_base_is_refused_with_the_way_out(run: Run, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(run.base, base)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config))
    source = Source("tiny", run.path / "adapter", str(base), base_name="base")
    with pytest.raises(ExportError, match="quantised with bitsandbytes, and an adapter cannot be added"):
        export(source, "merged", tmp_path / "out", QUIET)


@pytest.mark.parametrize(
    ("path", "message"),
    [("none", "there is no folder"), ("empty", r"has no recipe.yaml, adapter_config.json or config.json")],
)
def test_what_is_no_run_is_refused(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=message):
        source_at(tmp_path / path)


def test_an_unknown_form_or_storage_is_refused_with_the_nearest(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="did you mean merged"):
        export(source_at(run.path), "mergd", tmp_path / "out", QUIET)
    with pytest.raises(ExportError, match=r"--quantize q8-0: expected one of auto, f32, .*did you mean q8_0"):
        export(source_at(run.path), "gguf", tmp_path / "out", ExportOptions("q8-0", report=lambda _: None))
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_replaced_only_with_force_and_only_by_what_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").touch()
    with (
        pytest.raises(ExportError, match="already exists: replace it with --force"),
        whole_or_nothing(target),
    ):
        pass
    with pytest.raises(FileNotFoundError), whole_or_nothing(target, force=True) as folder:
        (folder / "half").write_bytes((folder / "none").read_bytes())
    assert [path.name for path in target.iterdir()] == ["mine"]
    with whole_or_nothing(target, force=True) as folder:
        (folder / "new").touch()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let this process write no file beyond `size` bytes: as on a full disk, the write fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(run: Run, tmp_path: Path, form: str) -> None:
    with (
        largest_file(100_000),
        pytest.raises(AlignkitError, match=r"^the disk of .* is full: free some space"),
    ):
        export(source_at(run.path), form, tmp_path / "out", QUIET)
    assert list(tmp_path.iterdir()) == []


def test_a_card_names_an_unknown_base_without_its_folder(tmp_path: Path) -> None:
    source = Source("mine", tmp_path, "/secret/place/tiny", base_name="tiny")
    card = card_of(source, library="gguf", relation="quantized", note="One file.")
    assert "secret" not in card
    assert "base_model" not in card
    assert "Trained from `tiny` by alignkit." in card


def test_an_import_keeps_the_hub_id_and_a_copy_of_its_folder_too(tmp_path: Path) -> None:
    source = build_tiny_model(tmp_path / "tiny")
    keep_origin(source, "org/tiny")
    folder = import_model(str(source), tmp_path / "models", report=lambda _: None)
    assert source_at(folder).base_id == "org/tiny"


def test_the_default_folder_says_form_and_storage() -> None:
    assert export_name("gguf", "q8_0") == "gguf-q8_0"
    assert export_name("gguf", "auto") == "gguf"
    assert export_name("merged", "q8_0") == "merged"
