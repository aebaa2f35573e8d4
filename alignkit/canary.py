"""The canary of a run: log-probs of one row, by which a server shows that it answers with these weights.

An adapter whose module names do not match loads without an error and answers as the base model, so a server must
compare numbers, not status codes.
"""

from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from alignkit.data.completions import IGNORED

MAX_TOKENS = 256
CANDIDATES = 8


def measure(trainer: Any) -> dict[str, Any] | None:
    """Per-token log-probs of an answer under the trained weights and, where they are an adapter's, under the base.

    Of the first rows of the validation (else training) set, the one that training moved most (without a base, the
    first), cut to 256 tokens. None where no row leaves an answer token. Collective: every process must call it.
    """
    dataset = trainer.train_dataset if trainer.eval_dataset is None else trainer.eval_dataset
    candidates = [_answer(row) for row in dataset.select(range(min(CANDIDATES, len(dataset))))]
    usable = [(tokens, start) for tokens, start in candidates if start < len(tokens)]
    if not is_peft_model(_published(trainer)):
        usable = usable[:1]
    measured = [_measure_row(trainer, tokens, start) for tokens, start in usable]
    return max(measured, key=_difference, default=None)


def _answer(row: dict[str, Any]) -> tuple[list[int], int]:
    """A prompt with an answer (of a pair the chosen, of a conversation the first), and where the answer starts."""
    if "labels" not in row:
        return (row["prompt_ids"] + row["chosen_ids"])[:MAX_TOKENS], len(row["prompt_ids"])
    learned = [label != IGNORED for label in row["labels"]]
    start = learned.index(True)
    end = next((index for index in range(start, len(learned)) if not learned[index]), len(learned))
    return row["input_ids"][: min(end, MAX_TOKENS)], start


def _published(trainer: Any) -> Any:
    """The model that is served in the end: of a teacher and its student, trained as one, the student."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return getattr(model, "student", model)


def _difference(canary: dict[str, Any]) -> float:
    if canary["base_logprobs"] is None:
        return 0.0
    pairs = zip(canary["adapter_logprobs"], canary["base_logprobs"], strict=True)
    return max(abs(adapter - base) for adapter, base in pairs)


def _measure_row(trainer: Any, tokens: list[int], prompt_length: int) -> dict[str, Any]:
    model = _published(trainer)
    ids = torch.tensor([tokens], device=trainer.accelerator.device)
    trained = _completion_logps(trainer, ids, prompt_length)
    base = None
    if is_peft_model(model):
        with use_adapter(model, adapter_name=None):
            base = _completion_logps(trainer, ids, prompt_length)
    return {
        "prompt_token_ids": tokens[:prompt_length],
        "completion_token_ids": tokens[prompt_length:],
        "adapter_logprobs": trained.tolist(),
        "base_logprobs": None if base is None else base.tolist(),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _completion_logps(trainer: Any, ids: Tensor, prompt_length: int) -> Tensor:
    labels = ids.clone()
    labels[:, :prompt_length] = -100
    trainer.model.eval()
    with (
        torch.no_grad(),
        trainer.accelerator.autocast(),
        disable_gradient_checkpointing(trainer.model, trainer.args.gradient_checkpointing_kwargs),
    ):
        outputs = trainer.model(input_ids=ids, labels=labels, use_cache=False, fused_lm_head=True)
    return outputs.log_probs[0, prompt_length - 1 :].float().cpu()
