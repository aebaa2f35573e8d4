"""Log-probs of many sequences under a model with a fused head, a few at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from alignkit.data.tokens import TokenSequence

Reduction = Literal["sum", "mean"]


@dataclass(frozen=True, slots=True)
class SequenceLogps:
    """Log-probs and entropies of n sequences over their loss tokens."""

    logps: Tensor
    """[n], log-probs in nats, summed or averaged over loss tokens; zero for a sequence without any."""
    entropy: Tensor
    """[n], entropies in nats, summed over the loss tokens, detached."""
    tokens: Tensor
    """[n], numbers of loss tokens."""


def parts_of(sequences: Sequence[TokenSequence], size: int, at_least: int = 0) -> list[list[int]]:
    """Divide the indices of `sequences` into parts of at most `size`, sorted by length.

    The first part is repeated until there are `at_least` parts.
    """
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index].ids))
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return parts + [parts[0]] * (at_least - len(parts))


def sequence_logps(
    model: Any, sequences: Sequence[TokenSequence], *, pad_token_id: int, device: Any, reduction: Reduction
) -> SequenceLogps:
    """Score `sequences` in one forward. The head runs inside it, since ZeRO-3 gathers its weight only there."""
    length = max(len(one.ids) for one in sequences)
    input_ids = torch.full((len(sequences), length), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for row, one in enumerate(sequences):
        ids = torch.tensor(one.ids)
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
        for start, end in one.loss_spans:
            labels[row, start:end] = ids[start:end]
    outputs = model(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        labels=labels.to(device),
        use_cache=False,
        fused_lm_head=True,
    )
    counts = (labels[:, 1:] != -100).sum(dim=1).to(device)
    logps = outputs.log_probs.float().sum(dim=1)
    if reduction == "mean":
        logps = logps / counts.clamp(min=1)
    entropies = torch.zeros_like(logps) if outputs.entropy is None else outputs.entropy.float().sum(dim=1)
    return SequenceLogps(logps, entropies.detach(), counts)


def parts_for_rank(parts: Sequence[list[int]], rank: int, world_size: int) -> Iterator[list[int]]:
    """Yield the parts of one process. Every process gets equally many, since a forward may be collective."""
    rounds = -(-len(parts) // world_size)
    for turn in range(rounds):
        yield parts[min(turn * world_size + rank, len(parts) - 1)]
