"""Packing in a model's fused forward, and the check that a model computes the same from packed rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn

from alignkit.errors import ModelError
from alignkit.kernels.model_head import IGNORED, PackedRows, evaluating, head_states
from alignkit.kernels.upstream import is_compiled
from alignkit.packing.attention import ARGUMENT, NAME, PackedTrees, install
from alignkit.packing.masks import FULL, SLIDING, exceeded_window, layer_types, masks
from alignkit.packing.trees import Cost, Tree, arrange, lay_out, trees_of, width

MASKED = ("sdpa", "flex_attention")
"""Attention implementations that follow a mask of each pair of tokens without storing all scores."""
GAIN = 0.9
"""Packing is used if its cost is below this share of the padded batch's."""
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Dtype of the hidden states -> largest difference that rounding explains, as a share of the largest value."""
_ALLOWED = frozenset({"input_ids", "attention_mask", "use_cache"})
_FAILURES = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError)


def pack(model: Any, *, wanted: bool | None = None) -> str | None:
    """Make the fused forward of `model` pack its batches where that costs less. Returns why not, or None if it does.

    `model` is a causal LM with a fused head, without peft's wrapper. It is checked first, by `refusal`. Raises
    ModelError with the reason if `wanted` is true and the model cannot. False turns packing off.
    """
    model._packer = None  # noqa: SLF001 - ours
    if wanted is False:
        return "it is turned off"
    reason = refusal(model)
    if reason is None:
        model._packer = Packer(model, split=_splits(model))  # noqa: SLF001 - ours
    elif wanted is True:
        raise ModelError(f"training.packing: {type(model).__name__} cannot train on packed rows: {reason}")
    return reason


def is_packed(model: Any) -> bool:
    """Whether `pack` has made the fused forward of `model`, with or without peft's wrapper, pack its batches."""
    bare = model.get_base_model() if is_peft_model(model) else model
    return bare.__dict__.get("_packer") is not None


def refusal(model: Any) -> str | None:
    """Why a causal LM cannot train on packed rows; None if it can.

    Compares the hidden states of a small packed batch with those of the padded batch, without gradients.
    """
    config = model.config.get_text_config()
    attention = config._attn_implementation  # noqa: SLF001
    if attention not in MASKED:
        return f"its attention is {attention}, expected {' or '.join(MASKED)}"
    if others := sorted(layer_types(config) - {FULL, SLIDING}):
        return f"its layers have {', '.join(others)}, expected {FULL} or {SLIDING}"
    if _drops(model):
        return "it trains with dropout, which would draw once for a prompt that two answers share"
    return _differs(model, split=False)


def _differs(model: Any, *, split: bool) -> str | None:
    """Why hidden states of packed rows are not those of the padded batch; None if they are."""
    try:
        with evaluating(model), torch.no_grad():
            difference, limit = _difference(model, split=split)
    except _FAILURES as error:
        return f"its forward does not take a mask of each pair of tokens ({type(error).__name__})"
    if not difference <= limit:
        return (
            f"its hidden states would differ by {difference:.2g} of the largest, expected at most {limit:.2g}"
        )
    return None


def _splits(model: Any) -> bool:
    """Whether attention can be cut at the ends of prompts and answers: on a CPU, by layers that are not compiled.

    A model whose layers do not hand their forward's arguments to the attention fails the comparison, and computes all
    pairs.
    """
    attention = model.config.get_text_config()._attn_implementation  # noqa: SLF001
    if attention != NAME or model.device.type != "cpu" or _is_compiled(model):
        return False
    install()
    return _differs(model, split=True) is None


def _is_compiled(model: nn.Module) -> bool:
    """Whether layers are compiled, which would be compiled anew for each batch whose answers end elsewhere."""
    return any(map(is_compiled, model.modules()))


class Packer:
    """The packed form of a model's batches."""

    def __init__(self, model: Any, *, split: bool) -> None:
        """`split` tells whether attention is cut at the ends of prompts and answers, unless layers are compiled."""
        self._model = model
        self._config = model.config.get_text_config()
        self._cost = Cost(_attention_cost(model, self._config), split)

    def __call__(self, inputs: Mapping[str, Any], labels: Tensor) -> PackedRows | None:
        """Return the packed form of a batch's `inputs` with `labels` [B, L]; None if it would not cost less.

        It never has more tokens than the padded batch. Batches with other inputs than token ids, or padded on the
        left, are not packed.
        """
        if any(value is not None for name, value in inputs.items() if name not in _ALLOWED):
            return None
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        if ids is None or ids.dim() != 2 or mask is None or mask.dim() != 2:
            return None
        tokens, kept, learned = (value.cpu().numpy() for value in (ids, mask, labels != IGNORED))
        learned = learned.copy()
        learned[:, 0] = False  # no token predicts the first
        if not learned.any() or not (np.diff(kept, axis=1) <= 0).all():
            return None
        cost = self._cost._replace(split=self._cost.split and not _is_compiled(self._model))
        rows = arrange(list(trees_of(tokens, *_bounds(learned))), cost)
        padded = cost.padded(*tokens.shape, masked=not kept.all())
        if len(rows) * width(rows) > tokens.size or cost.of(rows) > GAIN * padded:
            return None
        return packed(self._config, tokens, rows, learned, ids.device, split=cost.split)


def packed(
    config: Any, ids: Any, rows: Sequence[Sequence[Tree]], learned: Any, device: Any, *, split: bool
) -> PackedRows:
    """Return the inputs of a forward over `rows` of trees, and where the predictor of each `learned` [B, L] token is.

    With `split`, attention is cut at the ends of prompts and answers, unless a sequence exceeds a sliding window.
    """
    arrays = lay_out(ids, rows)
    tokens, positions, trees, branches = (
        torch.from_numpy(value).to(device)
        for value in (arrays.ids, arrays.positions, arrays.trees, arrays.branches)
    )
    inputs: dict[str, Any] = {"input_ids": tokens, "position_ids": positions}
    if split and exceeded_window(config, positions) is None:
        # a mask of four dimensions keeps the model from making one; the trees say what is seen
        inputs |= {"attention_mask": torch.zeros(1, 1, 1, 1), ARGUMENT: PackedTrees(rows)}
    else:
        inputs["attention_mask"] = masks(config, positions, trees, branches)
    places = torch.from_numpy(arrays.places[:, :-1][learned[:, 1:]]).to(device)
    return PackedRows(inputs, places)


def _bounds(learned: Any) -> tuple[Any, Any]:
    """Positions [B] of the first and the last label; 0 for sequences without."""
    length = learned.shape[1]
    has = learned.any(axis=1)
    first = np.where(has, learned.argmax(axis=1), 0)
    last = np.where(has, length - 1 - learned[:, ::-1].argmax(axis=1), 0)
    return first, last


def _attention_cost(model: Any, config: Any) -> float:
    """Products of a token's attention to one other, relative to all its other products outside the head."""
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    body = sum(weight.numel() for weight in model.parameters() if id(weight) not in embeddings)
    return 2 * heads * head_width * config.num_hidden_layers / max(1, body)


def _drops(model: nn.Module) -> bool:
    """Whether a module drops activations in training."""
    return any(
        (isinstance(module, nn.Dropout) and module.p > 0)
        or any(
            isinstance(value, float) and value > 0
            for name, value in vars(module).items()
            if name in {"attention_dropout", "attn_dropout"}
        )
        for module in model.modules()
    )


def _difference(model: Any, *, split: bool) -> tuple[float, float]:
    """(difference, limit) of the hidden states of two packed pairs, as shares of the largest value."""
    config, device = model.config.get_text_config(), model.device
    ids, mask, learned = _two_pairs(config.vocab_size)
    tokens = {"input_ids": torch.from_numpy(ids).to(device)}
    padded = head_states(model, **tokens, attention_mask=torch.from_numpy(mask).to(device)).hidden
    rows = [list(trees_of(ids, *_bounds(learned)))]
    inputs, places = packed(config, ids, rows, learned, device, split=split)
    expected = padded[:, :-1][torch.from_numpy(learned[:, 1:]).to(device)].double()
    found = head_states(model, **inputs).hidden.flatten(0, 1)[places].double()
    limit = TOLERANCE[padded.dtype]
    if torch.is_autocast_enabled(device.type):
        limit = max(limit, TOLERANCE[torch.get_autocast_dtype(device.type)])
    return float((found - expected).abs().max() / expected.abs().max()), limit


def _two_pairs(vocabulary: int) -> tuple[Any, Any, Any]:
    """(ids, attention mask, labels' mask) [4, 18]: two prompts, each with two answers of different lengths."""
    random = np.random.default_rng(0)
    low = min(3, vocabulary - 1)
    ids, mask = np.full((4, 18), low), np.zeros((4, 18), np.int64)
    learned = np.zeros((4, 18), bool)
    for pair, prompt in enumerate((7, 3)):
        shared = random.integers(low, vocabulary, prompt)
        for row, answer in ((pair, 11), (pair + 2, 5)):
            end = prompt + answer
            ids[row, :end] = [*shared, *random.integers(low, vocabulary, answer)]
            mask[row, :end], learned[row, prompt:end] = 1, True
    return ids, mask, learned
