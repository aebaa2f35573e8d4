"""A packed forward against the padded one: log-probs, entropies and gradients, over architectures and masks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_utils import AttentionInterface

from alignkit.errors import ModelError
from alignkit.kernels.model_head import fuse_head
from alignkit.packing import pack, refusal
from alignkit.packing.attention import PackedTrees, install
from alignkit.packing.masks import block_mask, visible
from alignkit.packing.trees import PADDING, Cost, arrange, lay_out, trees_of, width

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
SLIDING = ["sliding_attention", "full_attention"]


def llama(**options: Any) -> Any:
    return LlamaForCausalLM(LlamaConfig(**SIZES | options))


def qwen3(**options: Any) -> Any:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES | options))


def sliding_qwen3() -> Any:
    return qwen3(use_sliding_window=True, sliding_window=7, layer_types=SLIDING)


def gemma3() -> Any:
    config = Gemma3TextConfig(**SIZES, sliding_window=6, layer_types=SLIDING, query_pre_attn_scalar=8)
    return Gemma3ForCausalLM(config)


def mistral() -> Any:
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5))


MAKERS: list[Callable[[], Any]] = [llama, qwen3, sliding_qwen3, gemma3, mistral]


def made(maker: Callable[..., Any], **options: Any) -> Any:
    torch.manual_seed(0)
    model = maker(**options)
    fuse_head(model, entropy=True, top1=True)
    return model


def pairs(lengths: list[tuple[int, int, int]], seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch as DPO's collator makes it, of (prompt, chosen, rejected) lengths: all chosen rows come first."""
    random = np.random.default_rng(seed)
    rows: list[list[Any]] = [[], []]
    for prompt, *answers in lengths:
        shared = random.integers(1, 61, prompt).tolist()
        for side, answer in enumerate(answers):
            rows[side].append((shared, random.integers(1, 61, answer).tolist()))
    flat = [*rows[0], *rows[1]]
    long = max(len(shared) + len(answer) for shared, answer in flat)
    ids = torch.zeros(len(flat), long, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (shared, answer) in enumerate(flat):
        end = len(shared) + len(answer)
        ids[row, :end] = torch.tensor([*shared, *answer])
        mask[row, :end] = 1
        labels[row, len(shared) : end] = ids[row, len(shared) : end]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


LENGTHS = [(9, 11, 4), (3, 2, 17), (14, 1, 1), (1, 6, 6)]


class Watch:
    """The number of tokens of each forward of a model's body."""

    def __init__(self, model: Any) -> None:
        self.tokens: list[int] = []
        model.get_input_embeddings().register_forward_pre_hook(
            lambda _, args: self.tokens.append(args[0].numel())
        )


def results(model: Any, batch: dict[str, torch.Tensor]) -> tuple[Any, dict[str, torch.Tensor]]:
    """(output, gradients of a weighted sum of its log-probs by the weights' names)."""
    model.zero_grad()
    output = model(**batch, fused_lm_head=True)
    weights = torch.linspace(-1, 1, output.log_probs.numel()).view_as(output.log_probs)
    (output.log_probs * weights).sum().backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return output, gradients


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("maker", MAKERS)
def test_log_probs_and_gradients_equal_the_padded_form_s(
    maker: Callable[..., Any], *, checkpointing: bool
) -> None:
    model = made(maker).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = pairs(LENGTHS)
    expected, of_padded = results(model, batch)
    assert pack(model, wanted=True) is None
    watch = Watch(model)
    found, of_packed = results(model, batch)
    assert watch.tokens[0] < 0.7 * batch["input_ids"].numel()
    torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.entropy, expected.entropy, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.is_top1, expected.is_top1)
    for name, gradient in of_padded.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(of_packed[name] / scale, gradient / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("maker", MAKERS)
def test_attention_is_cut_at_the_ends_of_answers_on_a_cpu(maker: Callable[..., Any]) -> None:
    model = made(maker)
    pack(model, wanted=True)
    assert model._packer(**_inputs(pairs([(2, 2, 1)]))).inputs["packed_trees"].rows


def _inputs(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "inputs": {name: batch[name] for name in ("input_ids", "attention_mask")},
        "labels": batch["labels"],
    }


def test_layers_that_keep_arguments_from_the_attention_get_the_dense_mask() -> None:
    model = made(llama)
    for layer in model.model.layers:
        forward = layer.self_attn.forward

        def strict(*args: Any, forward: Any = forward, **kwargs: Any) -> Any:
            return forward(*args, **{name: one for name, one in kwargs.items() if name != "packed_trees"})

        layer.self_attn.forward = strict
    expected, _ = results(model, pairs(LENGTHS))
    pack(model, wanted=True)
    inputs = model._packer(**_inputs(pairs(LENGTHS))).inputs
    assert "packed_trees" not in inputs
    assert inputs["attention_mask"].shape[-1] == inputs["input_ids"].shape[-1]
    torch.testing.assert_close(
        results(model, pairs(LENGTHS))[0].log_probs, expected.log_probs, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("before", [True, False])
def test_compiled_layers_get_the_dense_mask(*, before: bool) -> None:
    model = made(llama)
    if not before:
        pack(model, wanted=True)
    for layer in model.model.layers:
        layer.compile(backend="eager", dynamic=True)
    if before:
        pack(model, wanted=True)
    assert "packed_trees" not in model._packer(**_inputs(pairs(LENGTHS))).inputs


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.integers(1, 9)] * 3), min_size=1, max_size=6), st.integers(0, 99))
def test_attention_cut_at_the_ends_of_answers_is_that_under_the_dense_mask(
    lengths: list[tuple[int, int, int]], seed: int
) -> None:
    batch = pairs(lengths, seed)
    ids, learned = batch["input_ids"].numpy(), batch["labels"].numpy() != -100
    last = learned.shape[1] - 1 - learned[:, ::-1].argmax(1)
    arranged = arrange(list(trees_of(ids, learned.argmax(1), last)), Cost(0.0, split=True))
    rows = lay_out(ids, arranged)
    seen = visible(*map(torch.from_numpy, (rows.positions, rows.trees, rows.branches)))
    query, key, value = torch.randn(
        3, len(arranged), 4, width(arranged), 8, generator=torch.Generator().manual_seed(seed)
    )
    key, value = key[:, :2], value[:, :2]  # each serves two heads
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), attn_mask=seen
    )
    install()
    attend = AttentionInterface()["sdpa"]
    found, _ = attend(
        torch.nn.Identity(),
        query,
        key,
        value,
        torch.zeros(1, 1, 1, 1),
        packed_trees=PackedTrees(arranged),
        scaling=None,
    )
    computed = torch.from_numpy(rows.trees != PADDING)
    torch.testing.assert_close(found[computed], expected.transpose(1, 2)[computed])
    assert not found[~computed].any()


def test_answers_to_many_samples_share_their_prompt_too() -> None:
    model = made(llama)
    batch = {name: value[[0, 1, 1, 0]] for name, value in pairs([(20, 9, 3)]).items()}
    expected, _ = results(model, batch)
    pack(model, wanted=True)
    watch = Watch(model)
    found, _ = results(model, batch)
    torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=1e-5, atol=1e-5)
    assert watch.tokens == [20 + 2 * (8 + 2)]


def test_sequences_without_loss_cost_nothing_and_get_zeros() -> None:
    model = made(llama)
    batch = pairs(LENGTHS)
    batch["labels"][1] = -100
    expected, _ = results(model, batch)
    pack(model, wanted=True)
    found, _ = results(model, batch)
    torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=1e-5, atol=1e-5)
    assert not found.log_probs[1].any()
    batch["labels"][:] = -100
    assert not results(model, batch)[0].log_probs.any()


def test_what_cannot_be_packed_runs_as_it_is() -> None:
    model = made(llama)
    batch = pairs(LENGTHS)
    flipped = {name: value.flip(1) for name, value in batch.items()}
    expected = [model(**each, fused_lm_head=True).log_probs for each in (flipped, batch)]
    pack(model, wanted=True)
    watch = Watch(model)
    assert torch.equal(model(**flipped, fused_lm_head=True).log_probs, expected[0])
    positions = torch.arange(batch["input_ids"].size(1))[None]
    assert torch.equal(model(**batch, position_ids=positions, fused_lm_head=True).log_probs, expected[1])
    single = {name: value[:1, :20] for name, value in batch.items()}
    model(**single, fused_lm_head=True)
    assert watch.tokens == [flipped["input_ids"].numel()] * 2 + [20]


def mamba() -> Any:
    return MambaForCausalLM(MambaConfig(vocab_size=61, hidden_size=16, num_hidden_layers=1))


def ignoring_the_mask() -> Any:
    model = llama()
    for layer in model.model.layers:
        forward = layer.self_attn.forward

        def ignoring(*args: Any, forward: Any = forward, **kwargs: Any) -> Any:
            return forward(*args, **kwargs | {"attention_mask": None})

        layer.self_attn.forward = ignoring
    return model


@pytest.mark.parametrize(
    ("maker", "reason"),
    [
        (lambda: llama(attn_implementation="eager"), "its attention is eager, expected sdpa"),
        (lambda: llama(attention_dropout=0.1), "it trains with dropout"),
        (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=16, n_layer=1, n_head=2)), "dropout"),
        (
            lambda: qwen3(layer_types=["linear_attention", "full_attention"]),
            "its layers have linear_attention",
        ),
        (mamba, "."),
        (ignoring_the_mask, "its hidden states would differ by"),
    ],
)
def test_a_model_that_cannot_is_refused_with_the_reason(maker: Callable[[], Any], reason: str) -> None:
    model = made(maker)
    before = [module.training for module in model.modules()]
    with pytest.raises(ModelError, match=f"training.packing: .* cannot train on packed rows: .*{reason}"):
        pack(model, wanted=True)
    assert pack(model) is not None
    assert model._packer is None
    assert [module.training for module in model.modules()] == before


def test_learned_positions_work_without_dropout() -> None:
    none: dict[str, Any] = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    config = GPT2Config(vocab_size=61, n_embd=16, n_layer=2, n_head=2, **none)
    assert refusal(made(lambda: GPT2LMHeadModel(config))) is None


@pytest.mark.parametrize("window", [None, 4])
def test_a_token_sees_its_own_path(window: int | None) -> None:
    """Two trees with a row of padding: prompt 0 1 2, answers 3 4 and 3; a lone sequence; padding."""
    positions = torch.tensor([[0, 1, 2, 3, 4, 3, 0, 1, 8]])
    trees = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1, PADDING]])
    branches = torch.tensor([[0, 0, 0, 1, 1, 2, 0, 0, 0]])
    paths = {0: [0], 1: [0, 1], 2: [0, 1, 2], 3: [0, 1, 2, 3], 4: [0, 1, 2, 3, 4], 5: [0, 1, 2, 5]}
    paths |= {6: [6], 7: [6, 7], 8: [8]}
    expected = torch.zeros(9, 9, dtype=torch.bool)
    for token, path in paths.items():
        for other in path:
            near = window is None or positions[0, token] - positions[0, other] < window
            expected[token, other] = near
    assert torch.equal(visible(positions, trees, branches, window)[0, 0], expected)


@pytest.mark.parametrize("window", [None, 90])
def test_flex_attention_s_mask_computes_what_the_dense_mask_does(window: int | None) -> None:
    from torch.nn.attention.flex_attention import create_mask, flex_attention

    batch = pairs([(60, 30, 50), (40, 70, 20)])
    ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy() != -100
    rows = lay_out(
        ids, [list(trees_of(ids, labels.argmax(1), labels.shape[1] - 1 - labels[:, ::-1].argmax(1)))]
    )
    parts = tuple(map(torch.from_numpy, (rows.positions, rows.trees, rows.branches)))
    dense, blocks = visible(*parts, window), block_mask(*parts, window)
    wide = dense.size(-1)
    assert torch.equal(create_mask(blocks.mask_mod, 1, None, wide, wide, device="cpu"), dense)
    query, key, value = torch.randn(3, 1, 2, wide, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=dense)
    torch.testing.assert_close(flex_attention(query, key, value, block_mask=blocks), expected)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(1, 9)] * 3), min_size=1, max_size=7), st.integers(0, 99), st.floats(0, 1)
)
def test_every_computed_token_has_its_place_and_its_position(
    lengths: list[tuple[int, int, int]], seed: int, attention: float
) -> None:
    batch = pairs(lengths, seed)
    ids, learned = (
        batch["input_ids"].numpy() % 3,
        batch["labels"].numpy() != -100,
    )  # few words: answers start alike
    first, last = learned.argmax(1), learned.shape[1] - 1 - learned[:, ::-1].argmax(1)
    trees = list(trees_of(ids, first, last))
    arranged = arrange(trees, Cost(attention))
    rows = lay_out(ids, arranged)
    assert sorted(row for tree in trees for row in tree.sequences) == list(range(len(ids)))
    assert len(arranged) * width(arranged) <= ids.size
    assert int((rows.trees != PADDING).sum()) == sum(tree.tokens for tree in trees)
    for row, end in enumerate(last):
        places = rows.places[row, :end]
        assert rows.ids.ravel()[places].tolist() == ids[row, :end].tolist()
        assert rows.positions.ravel()[places].tolist() == list(range(end))
        seen = visible(*map(torch.from_numpy, (rows.positions, rows.trees, rows.branches)))
        at, inside = divmod(int(places[-1]), rows.ids.shape[1])
        assert (
            sorted(places.tolist()) == (at * rows.ids.shape[1] + seen[at, 0, inside].nonzero()[:, 0]).tolist()
        )
