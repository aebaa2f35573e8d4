"""GGUF files: read back by gguf's reader and by llama.cpp, they answer as the model they were made from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, dequantize
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from alignkit.errors import ExportError
from alignkit.export import ExportOptions, export, source_at
from alignkit.export.gguf import STORED, checking
from alignkit.export.gguf.families import FAMILIES, family_of
from alignkit.export.gguf.tensors import rope_factors
from alignkit.export.gguf.vocabulary import vocabulary_of
from tests.export.models import CONFIGS, LLAMA3_ROPE, build, logprobs

TEXT = "The capital of France is Paris, and its river is the Seine."
QUIET = ExportOptions("f32", check=False, report=lambda _: None)


class Exported:
    """A tiny model, and its GGUF file in float32."""

    def __init__(self, folder: Path, kind: str) -> None:
        source = build(folder / "model", kind)
        self.kind = kind
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.model = AutoModelForCausalLM.from_pretrained(source)
        target = export(source_at(source), "gguf", folder / "gguf", QUIET)
        self.file = next(target.glob("*.gguf"))


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("qwen3") / "Tiny", "qwen3", dtype=torch.bfloat16)


def test_llama_cpp_answers_as_the_model_does(exported: Exported) -> None:
    found = checking.compare(exported.file, exported.model, exported.tokenizer)
    assert found.places > 5
    in_16_bits = exported.kind.startswith("gemma")  # llama.cpp looks up Gemma's activation in a table
    assert found.largest < (0.05 if in_16_bits else 1e-4)


def test_transformers_reads_the_same_model_back(exported: Exported) -> None:
    if exported.kind == "llama":
        pytest.skip("transformers does not read the scaled rotary embeddings of a GGUF")
    read = AutoModelForCausalLM.from_pretrained(
        exported.file.parent, gguf_file=exported.file.name, dtype=torch.float32
    )
    if exported.kind == "mistral":
        assert read.config.model_type == "llama"  # the same computation, and the name it has in GGUF
    ids = exported.tokenizer(TEXT).input_ids
    torch.testing.assert_close(logprobs(read, ids), logprobs(exported.model, ids), atol=1e-5, rtol=0)


def test_the_file_holds_the_tokens_the_template_and_the_end(exported: Exported) -> None:
    fields = GGUFReader(exported.file).fields
    tokenizer = exported.tokenizer
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert [tokens[number] for number in tokenizer.all_special_ids] == tokenizer.all_special_tokens
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id
    assert tokens[len(tokenizer) :] == [f"[PAD{number}]" for number in range(len(tokenizer), len(tokens))]
    ends = "tokenizer.ggml.eot_token_id"
    if tokenizer.eos_token != "<|im_end|>":
        assert tokens[fields[ends].contents()] == "<end_of_turn>"
    else:
        assert ends not in fields


@pytest.mark.parametrize("stored", sorted(STORED))
def test_weights_are_stored_as_asked(model: Path, tmp_path: Path, stored: str) -> None:
    target = export(source_at(model), "gguf", tmp_path / "out", ExportOptions(stored, report=lambda _: None))
    tensors = {tensor.name: tensor for tensor in GGUFReader(next(target.glob("*.gguf"))).tensors}
    assert tensors["blk.0.ffn_up.weight"].tensor_type.name == stored.upper()
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    few = stored in ("q5_1", "q5_0", "q4_1", "q4_0")
    assert tensors["token_embd.weight"].tensor_type.name == ("Q8_0" if few else stored.upper())
    weights = AutoModelForCausalLM.from_pretrained(model).state_dict()
    own = weights["model.layers.0.mlp.up_proj.weight"].float()
    tensor = tensors["blk.0.ffn_up.weight"]
    found = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)).reshape(own.shape)
    bits = {"f32": 24, "f16": 8, "bf16": 8}.get(stored, int(stored[1]) - 1 if stored[0] == "q" else 0)
    assert (found - own).abs().max() <= own.abs().max() * 2**-bits


def test_a_bfloat16_model_stays_bfloat16_by_default(model: Path, tmp_path: Path) -> None:
    target = export(
        source_at(model), "gguf", tmp_path / "out", ExportOptions(check=False, report=lambda _: None)
    )
    assert [path.name for path in target.glob("*.gguf")] == ["Tiny-BF16.gguf"]


def test_an_export_says_how_llama_cpp_answers(model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    export(source_at(model), "gguf", tmp_path / "out", ExportOptions("q8_0", report=said.append))
    assert "llama.cpp reads Tiny-Q8_0.gguf as the model does" in said[-1]


def test_a_file_of_another_model_is_refused(exported: Exported, tmp_path: Path) -> None:
    other = AutoModelForCausalLM.from_pretrained(build(tmp_path / "other", exported.kind, seed=1))
    with pytest.raises(ExportError, match="does not answer"):
        checking.check(exported.file, other, exported.tokenizer, "f32", print)


def test_without_llama_cpp_an_export_says_how_to_check(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(checking, "PACKAGE", "no_such_package")
    checking.check(exported.file, exported.model, exported.tokenizer, "f32", said.append)
    assert said == ["Not checked in llama.cpp, which is not installed: pip install 'alignkit[llamacpp]'"]


def test_scaled_rotary_embeddings_are_those_of_transformers() -> None:
    scaled = LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters=LLAMA3_ROPE)
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, "cpu")
    plain = 1 / 10000.0 ** (torch.arange(0, 64, 2) / 64)
    factors = torch.from_numpy(rope_factors(LLAMA3_ROPE, 64))
    torch.testing.assert_close(plain / factors, frequencies)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "its activation is gelu, expected silu"),
        ("llama", {"mlp_bias": True}, "its MLP has biases"),
        (
            "qwen3",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            "scaled with yarn",
        ),
        ("gemma2", {"query_pre_attn_scalar": 24}, "query_pre_attn_scalar is 24, expected 256"),
        ("gemma2", {"layer_types": ["full_attention"] * 4}, "full attention in each 2-th alone"),
        ("gemma3_text", {"attn_logit_softcapping": 30.0}, "its attention has a soft cap"),
    ],
)
def test_what_llama_cpp_computes_differently_is_refused(
    kind: str, changes: dict[str, Any], message: str
) -> None:
    config = CONFIGS[kind]({})
    family_of(kind).require(config)
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(ExportError, match=message):
        family_of(kind).require(config)


def test_another_architecture_is_refused_by_name() -> None:
    with pytest.raises(
        ExportError, match=r"gpt2 models cannot be written as GGUF here: expected one of llama, mistral"
    ):
        family_of("gpt2")
    assert set(CONFIGS) <= set(FAMILIES)


def test_a_window_that_llama_cpp_does_not_know_bounds_the_context(tmp_path: Path) -> None:
    from alignkit.export.gguf.families import context_of

    config = CONFIGS["mistral"]({})
    assert context_of(config, FAMILIES["mistral"]) == 256
    config.sliding_window = 100
    assert context_of(config, FAMILIES["mistral"]) == 100


def test_a_tokenizer_that_splits_otherwise_is_refused(model: Path) -> None:
    from tokenizers import pre_tokenizers

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(ExportError, match="splits text in none of the ways that are known here"):
        vocabulary_of(tokenizer, 600)
    with pytest.raises(ExportError, match="but the model has 10 rows"):
        vocabulary_of(tokenizer, 10)
