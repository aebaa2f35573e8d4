"""Answers drawn from a model with an adapter, and how far its distribution over them is from the reference's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evidence.small_runs import END, Asked, Prompt

AT_ONCE = 32
"""Sequences drawn or read in one forward."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A drawn answer."""

    prompt: int
    """Index of its prompt."""
    text: str
    ids: list[int]
    """Its tokens, with the end token where it has ended."""


def draw(asked: Asked, prompts: Sequence[Prompt], each: int, *, tokens: int, seed: int) -> list[Answer]:
    """Draw `each` answers of up to `tokens` tokens to each prompt at temperature 1."""
    torch.manual_seed(seed)
    order = [index for index in range(len(prompts)) for _ in range(each)]
    found: list[Answer] = []
    for start in range(0, len(order), AT_ONCE):
        found += _draw(asked, prompts, order[start : start + AT_ONCE], tokens)
    return found


@torch.no_grad()
def _draw(asked: Asked, prompts: Sequence[Prompt], chosen: list[int], tokens: int) -> list[Answer]:
    tokenizer, end = asked.tokenizer, asked.tokenizer.convert_tokens_to_ids(END)
    ids = [asked.prompt_ids(prompts[index]) for index in chosen]
    longest = max(map(len, ids))
    padded = torch.tensor([[end] * (longest - len(one)) + one for one in ids])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in ids])
    given: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    given |= {"max_new_tokens": tokens, "eos_token_id": end, "pad_token_id": end}
    out = asked.model.generate(input_ids=padded, attention_mask=mask, **given)[:, longest:].tolist()
    answers = []
    for index, written in zip(chosen, out, strict=True):
        own = written[: written.index(end) + 1] if end in written else written
        answers.append(Answer(index, str(tokenizer.decode(own, skip_special_tokens=True)), own))
    return answers


@dataclass(frozen=True, slots=True)
class Distance:
    """How a policy differs from its reference over answers drawn from the policy."""

    kl: float
    """KL(policy || reference) of whole answers, in nats: the sum of each token's exact KL, a mean over answers."""
    entropy: float
    """Of the policy's next token, in nats."""


@torch.no_grad()
def distance(asked: Asked, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Distance:
    """Measure `asked` with its adapter against itself without, over answers that it drew."""
    kl, entropy, count = 0.0, 0.0, 0
    for answer in answers:
        prompt = asked.prompt_ids(prompts[answer.prompt])
        asked.scale(1.0)
        log_p = _log_probs(asked, prompt, answer.ids)
        asked.scale(0.0)
        log_q = _log_probs(asked, prompt, answer.ids)
        p = log_p.exp()
        kl += float((p * (log_p - log_q)).sum())
        entropy -= float((p * log_p).sum())
        count += len(answer.ids)
    asked.scale(1.0)
    return Distance(kl / len(answers), entropy / count)


def _log_probs(asked: Asked, prompt: list[int], ids: list[int]) -> Tensor:
    """The log-probs [n, V] that predict `ids`."""
    logits = asked.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    return torch.as_tensor(logits.float().log_softmax(dim=-1))
