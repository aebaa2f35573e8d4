"""A tiny random model of every causal architecture of the installed transformers, and how each fares.

`python -m tests.architectures` writes `alignkit/models/architectures.yaml`, which the product reads, and the table of
docs/models.md.
"""

import dataclasses
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from alignkit.checks import require_exact_head
from alignkit.errors import ModelError
from alignkit.kernels.model_head import fuse_head

ROOT = Path(__file__).parents[1]
KNOWN = ROOT / "alignkit" / "models" / "architectures.yaml"
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- begin: written by python -m tests.architectures -->", "<!-- end -->"
KINDS = ("agrees", "refused", "not_built")
GENERATED = (
    "# Written by python -m tests.architectures: how a tiny model of every causal architecture fares.\n"
)

NAMES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LARGEST = 100_000_000
"""Parameters; what is larger with tiny settings is not built."""
SECONDS = 60

_HEADS = 4
_SIZES: dict[int, tuple[str, ...]] = {
    96: ("vocab_size", "vocab_size_per_layer_input"),
    64: (
        "max_position_embeddings",
        "n_positions",
        "max_sequence_length",
        "n_ctx",
        "max_seq_len",
        "context_length",
        "max_target_positions",
        "max_source_positions",
        "d_inner",
        "mamba_d_ssm",
    ),
    48: (
        "intermediate_size",
        "ffn_dim",
        "decoder_ffn_dim",
        "encoder_ffn_dim",
        "n_inner",
        "dim_ff",
        "ffn_hidden_size",
        "expert_ffn_hidden_size",
        "feed_forward_size",
    ),
    32: (
        "hidden_size",
        "d_model",
        "n_embd",
        "dim",
        "embedding_size",
        "word_embed_proj_dim",
        "lru_width",
        "attention_hidden_size",
        "image_size",
        "out_hidden_size",
        "embedding_dim",
    ),
    24: ("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"),
    16: (
        "q_lora_rank",
        "kv_lora_rank",
        "mamba_d_head",
        "mamba_headdim",
        "mamba_head_dim",
        "attention_window_size",
        "sliding_window",
        "window_size",
        "patch_size",
        "router_hidden_size",
    ),
    8: (
        "head_dim",
        "attention_head_dim",
        "attention_head_size",
        "d_kv",
        "kv_channels",
        "global_head_dim",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "mamba_d_state",
        "state_size",
        "ssm_state_size",
        "mamba_chunk_size",
        "chunk_size",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "hidden_size_per_layer_input",
    ),
    _HEADS: (
        "num_attention_heads",
        "n_head",
        "n_heads",
        "num_heads",
        "decoder_attention_heads",
        "encoder_attention_heads",
        "num_decoder_attention_heads",
        "num_encoder_attention_heads",
        "mamba_n_heads",
        "mamba_num_heads",
        "mamba_d_conv",
        "mamba_dt_rank",
        "time_step_rank",
        "rotary_dim",
        "linear_num_value_heads",
        "num_local_experts",
        "num_experts",
        "n_routed_experts",
        "moe_num_experts",
        "laurel_rank",
        "num_hidden_layers",
        "n_layer",
        "n_layers",
        "num_layers",
        "decoder_layers",
        "encoder_layers",
        "num_decoder_layers",
        "num_encoder_layers",
        "adapter_rank",
    ),
    2: (
        "num_key_value_heads",
        "num_kv_heads",
        "n_mamba_heads",
        "linear_num_key_heads",
        "num_experts_per_tok",
        "num_experts_per_token",
        "moe_top_k",
        "moe_k",
        "depth",
        "top_k_experts",
        "eos_token_id",
    ),
    1: (
        "n_groups",
        "mamba_ngroups",
        "n_group",
        "topk_group",
        "first_k_dense_replace",
        "n_shared_experts",
        "num_shared_experts",
        "bos_token_id",
    ),
    0: ("pad_token_id", "num_kv_shared_layers"),
}
_VALUES = {name: size for size, names in _SIZES.items() for name in names}
_VALUES |= {
    "logits_scaling": 4.0,
    "final_logit_softcapping": 2.0,
    "logits_soft_cap": 2.0,
    "logit_scale": 0.25,
}
_VALUES |= {"lm_head_multiplier": 0.5, "output_multiplier": 0.5}

_ATTENTION_TOO = {"layer_types": ["linear_attention", "full_attention"] * 2}
_QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
    "hc_lowrank": 8,
    "ngram_vocab_size_base": 64,
    "split_ngram_parts": 2,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_OTHERS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        }
    },
    "cpmant": {"prompt_length": 4, "segment_types": 4},
    "ctrl": {"dff": 48},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "hidden_size": 32, "moe_top_k": 2},
    },
    "dots1": {"num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "kimi_linear": _ATTENTION_TOO,
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"head_dim": 16},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "moe", "mlp"]},
    "prophetnet": {"num_hidden_layers": None},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"] * 2,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "num_buckets": 4,
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "roc_bert": {"pronunciation_vocab_size": 8, "shape_vocab_size": 8},
    "xlstm": {"num_blocks": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "mamba_dt_rank": 4,
        "num_key_value_heads": 4,
        "attention_hidden_size": None,
        "attention_head_dim": 16,
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2, "num_key_value_heads": 4, "n_mamba_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
}
"""What an architecture needs beside small sizes, or instead of them; None leaves a value as it is by default."""


def tiny_config(name: str) -> Any:
    """The smallest configuration of `name` (a model_type) that still has every kind of its layers."""
    return CONFIG_MAPPING[name](**_settings(CONFIG_MAPPING[name], _OTHERS.get(name, {})))


def _settings(kind: type, others: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)} | set(getattr(kind, "attribute_map", {}))
    found = {name: value for name, value in _VALUES.items() if name in names}
    if "kv_lora_rank" in found:  # latent attention has as many keys as queries
        found["num_key_value_heads"] = _HEADS
    for name, part in (getattr(kind, "sub_configs", None) or {}).items():
        if name in names and dataclasses.is_dataclass(part):
            found[name] = _settings(part, others.get(name, {}))
    found |= {name: value for name, value in others.items() if not isinstance(found.get(name), dict)}
    return {name: value for name, value in found.items() if value is not None}


def tiny_model(name: str) -> Any:
    """A random model of `name` whose logits are of a size that shows differences."""
    config = tiny_config(name)
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters with tiny settings")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float()
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise TimeoutError if the block takes longer than this many seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The result of checking one architecture."""

    kind: str
    """One of `KINDS`."""
    why: str = ""


def outcome(name: str) -> Outcome:
    """Builds a tiny model of `name` and compares its heads, log-probs and gradients."""
    try:
        with within(SECONDS):
            model = tiny_model(name)
            ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
            with torch.no_grad():
                model(input_ids=ids, use_cache=False)
    except Exception as error:  # each architecture has its own way to refuse small settings
        return Outcome("not_built", f"{type(error).__name__}: {' '.join(str(error).split())[:120]}")
    try:
        with within(SECONDS):
            require_exact_head(model)
            require_same_gradients(model, ids)
    except ModelError as error:
        return Outcome("refused", str(error))
    except AssertionError as error:
        return Outcome("refused", f"its gradients cannot be compared: {' '.join(str(error).split())[:120]}")
    return Outcome("agrees")


def require_same_gradients(model: Any, ids: torch.Tensor) -> None:
    """Raise AssertionError unless the fused head gives every weight the gradient that the model's own logits do."""

    def gradients(logps: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        (logps * torch.linspace(-1, 1, logps.numel()).view_as(logps)).sum().backward()
        return {
            name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
        }

    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    own = gradients(logits.log_softmax(dim=-1).gather(2, ids[:, 1:, None]).squeeze(2))
    fuse_head(model)
    fused = gradients(model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs)
    assert own.keys() == fused.keys()
    for name, gradient in own.items():
        limit = 1e-3 * max(float(gradient.abs().max()), 1e-2)
        assert (gradient - fused[name]).abs().max() <= limit, name


def table(outcomes: dict[str, Outcome]) -> str:
    """The Markdown of docs/models.md between its marks."""
    named = {kind: sorted(n for n, found in outcomes.items() if found.kind == kind) for kind in KINDS}
    agree, refused, not_built = (len(named[kind]) for kind in KINDS)
    head = f"transformers {transformers.__version__}: {agree} architectures agree, {refused} are refused, "
    lines = [
        f"{head}{not_built} could not be built tiny.",
        "",
        f"**Agree**: {', '.join(f'`{name}`' for name in named['agrees'])}.",
        "",
        "| architecture | outcome | why |",
        "| --- | --- | --- |",
    ]
    for kind, title in (("refused", "refused"), ("not_built", "not built tiny")):
        lines += [f"| `{name}` | {title} | {outcomes[name].why.replace('|', '/')} |" for name in named[kind]]
    return "\n".join(lines)


def main() -> None:
    """Write what was found into the product and its documentation."""
    transformers.logging.set_verbosity(50)
    outcomes = {name: outcome(name) for name in NAMES}
    refused = {name: found.why for name, found in outcomes.items() if found.kind == "refused"}
    kinds = ("agrees", "not_built")
    named = {kind: sorted(name for name, found in outcomes.items() if found.kind == kind) for kind in kinds}
    values = {"transformers": transformers.__version__, **named, "refused": refused}
    KNOWN.write_text(GENERATED + yaml.safe_dump(values, sort_keys=False, width=1000), encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table(outcomes)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
