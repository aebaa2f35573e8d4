"""Sampling answers from a trainer's model and scoring answers with it, on one device or sharded."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import GenerationConfig

from alignkit.data.tokens import IGNORED
from alignkit.models.adapters import start_of
from alignkit.models.loading import ends_of
from alignkit.trainers.upstream import (
    disable_gradient_checkpointing,
    load_best_model,
    unwrap_model_for_generation,
    use_adapter,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """Token ids of a prompt and of its answer."""

    prompt: list[int]
    tokens: list[int]


def draw(trainer: Any, prompts: Sequence[list[int]], *, max_new_tokens: int, seed: int) -> list[Answer]:
    """Draw one sample per prompt from the policy, at temperature 1 and without truncation, up to its end token.

    The same `seed` and weights give the same answers. The trainer's random state does not change. Collective: every
    rank must call it with the same prompts.
    """
    tokenizer = trainer.processing_class
    ends = ends_of(published(trainer.model, trainer.accelerator), tokenizer)
    ids, mask = _left_padded(prompts, tokenizer.pad_token_id, trainer.accelerator.device)
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends,
        use_cache=True,
    )
    devices = [trainer.accelerator.device] if trainer.accelerator.device.type == "cuda" else []
    with _evaluating(trainer), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        with unwrap_model_for_generation(trainer.model, trainer.accelerator) as model:
            out = _generator(model, trainer.accelerator)(
                input_ids=ids, attention_mask=mask, generation_config=config
            )
    drawn = out[:, ids.size(1) :].tolist()
    return [Answer(list(prompt), _ended(tokens, ends)) for prompt, tokens in zip(prompts, drawn, strict=True)]


Under = Literal["policy", "reference", "base"]
"""The model that scores: the current one, the one before training, or the one without any adapter."""


def token_logps(trainer: Any, answers: Sequence[Answer], under: Under = "policy") -> list[Tensor] | None:
    """Compute the log-probs [length] in nats of each answer's tokens, float32 on the CPU.

    Returns None if the trainer has no such model, because all weights train and no copy was kept. Collective: every
    rank must call it.
    """
    model, switched = _model(trainer, under)
    if model is None:
        return None
    width = max(len(answer.prompt) + len(answer.tokens) for answer in answers)
    ids = torch.full((len(answers), width), trainer.processing_class.pad_token_id)
    labels = torch.full_like(ids, IGNORED)
    mask = torch.zeros_like(ids)
    for row, answer in enumerate(answers):
        start, end = len(answer.prompt), len(answer.prompt) + len(answer.tokens)
        ids[row, :end] = torch.tensor(answer.prompt + answer.tokens)
        labels[row, start:end] = ids[row, start:end]
        mask[row, :end] = 1
    ids, labels, mask = (values.to(trainer.accelerator.device) for values in (ids, labels, mask))
    with _evaluating(trainer), switched, trainer.accelerator.autocast():
        outputs = model(
            input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, fused_lm_head=True
        )
    logps = outputs.log_probs.float().cpu()
    return [
        logps[row, len(a.prompt) - 1 : len(a.prompt) + len(a.tokens) - 1] for row, a in enumerate(answers)
    ]


def published(model: Any, accelerator: Any) -> Any:
    """Return the unwrapped model that the run publishes: the student of a pair, else the model itself."""
    unwrapped = accelerator.unwrap_model(model)
    return getattr(unwrapped, "student", unwrapped)


def _generator(model: Any, accelerator: Any) -> Any:
    """`generate` of the published model. Under FSDP2 the root module's, whose hooks must run around it."""
    unwrapped = accelerator.unwrap_model(model)
    if isinstance(unwrapped, FSDPModule):
        if "generate" not in vars(unwrapped):
            register_fsdp_forward_method(unwrapped, "generate")
        return unwrapped.generate
    return published(model, accelerator).generate


def _model(trainer: Any, under: Under) -> tuple[Any, AbstractContextManager[None]]:
    """The model to call, and a context in which it has the requested weights."""
    if under == "policy":
        return trainer.model, nullcontext()
    policy = published(trainer.model, trainer.accelerator)
    if is_peft_model(policy):
        name = start_of(policy) if under == "reference" else None
        return trainer.model, use_adapter(policy, adapter_name=name)
    return getattr(trainer, "ref_model", None), nullcontext()


@contextmanager
def _evaluating(trainer: Any) -> Iterator[None]:
    was_training = trainer.model.training
    trainer.model.eval()
    try:
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(trainer.model, trainer.args.gradient_checkpointing_kwargs),
        ):
            yield
    finally:
        trainer.model.train(was_training)


def _left_padded(prompts: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _ended(tokens: list[int], ends: list[int]) -> list[int]:
    return tokens[: next((index + 1 for index, token in enumerate(tokens) if token in ends), len(tokens))]


def answer_of(row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Return (prompt, good answer) in token ids of a row of a trainer's dataset. The answer is empty if it has none.

    A row is a preference or labelled row as TRL tokenises them, or has `input_ids` and `labels`. There, the first
    contiguous run of loss tokens is the answer.
    """
    if "prompt_ids" in row:
        good = row.get("completion_ids", []) if row.get("label") else row.get("chosen_ids", [])
        return list(row["prompt_ids"]), list(good)
    ids, is_loss = row["input_ids"], [label != IGNORED for label in row["labels"]]
    start = is_loss.index(True)
    end = is_loss.index(False, start) if False in is_loss[start:] else len(ids)
    return list(ids[:start]), list(ids[start:end])


def load_weights(trainer: Any, folder: Path) -> None:
    """Load the adapter or all weights in `folder`, a checkpoint or a run's result, into the trainer's model.

    Collective if the model is sharded.
    """
    trainer.state.best_model_checkpoint = str(folder)
    load_best_model(trainer)
    trainer.state.best_model_checkpoint = None
