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


def parts_of(
    sequences: Sequence[TokenSequence], size: int, at_least: int = 0, *, packed: bool = False
) -> list[list[int]]:
    """Divide the indices of `sequences` into parts of at most `size`, sorted by length.

    If the forward is `packed`, answers to the same prompt stay together, and a part has at most the tokens of `size`
    sequences of the longest one's length, each prompt counted once. The first part is repeated until there are
    `at_least` parts.
    """
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index].ids))
    if packed:
        parts = by_prompt(sequences, order, size * len(sequences[order[0]].ids))
    else:
        parts = [order[start : start + size] for start in range(0, len(order), size)]
    return parts + [parts[0]] * (at_least - len(parts))


def graphs_of(
    rows: Sequence[Sequence[TokenSequence]], size: int, *, packed: bool = False
) -> list[list[int]] | None:
    """Divide the indices of `rows` of sequences, in order, into parts that one forward takes whole.

    A part has at most the tokens of `size` sequences of the longest one's length: with padding, or `packed`, with
    each prompt counted once. Returns None if a row alone has more.
    """
    limit = size * max(len(one.ids) for row in rows for one in row)
    count = tokens_packed if packed else tokens_padded
    parts: list[list[int]] = []
    held: list[TokenSequence] = []
    for index, row in enumerate(rows):
        if count(row) > limit:
            return None
        if parts and count([*held, *row]) <= limit:
            parts[-1].append(index)
            held += row
        else:
            parts.append([index])
            held = list(row)
    return parts


def tokens_padded(sequences: Sequence[TokenSequence]) -> int:
    """Return the tokens of a padded forward."""
    return len(sequences) * max(len(one.ids) for one in sequences)


def tokens_packed(sequences: Sequence[TokenSequence]) -> int:
    """Return the tokens of a packed forward, before any answers are found to begin alike."""
    prompts = {_prompt(one) for one in sequences}
    return sum(map(len, prompts)) + sum(len(one.ids) - one.prompt_length for one in sequences)


def _prompt(sequence: TokenSequence) -> tuple[int, ...]:
    return tuple(sequence.ids[: sequence.prompt_length])


def by_prompt(sequences: Sequence[TokenSequence], order: Sequence[int], limit: int) -> list[list[int]]:
    """Divide the indices in `order` into parts of at most `limit` packed tokens, answers to a prompt together.

    A sequence that is longer is alone in its part. Prompts are in the order of their first sequences.
    """
    prompts: dict[tuple[int, ...], list[int]] = {}
    for index in order:
        prompts.setdefault(_prompt(sequences[index]), []).append(index)
    parts: list[list[int]] = []
    left = 0
    for prompt, members in prompts.items():
        shared = len(prompt)
        for index in members:
            own = len(sequences[index].ids) - len(prompt)
            if not parts or shared + own > left:
                parts.append([])
                left, shared = limit, len(prompt)
            parts[-1].append(index)
            left -= shared + own
            shared = 0
    return parts


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
