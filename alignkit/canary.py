"""The canary of a run: log-probs of one row, by which a server shows that it answers with this adapter.

An adapter whose module names do not match loads without an error and answers as the base model, so a server must
compare numbers, not status codes.
"""

from typing import Any

import torch
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

MAX_TOKENS = 256
CANDIDATES = 8


def measure(trainer: Any) -> dict[str, Any] | None:
    """Per-token log-probs of a chosen (or else a dispreferred) answer under the trained adapter and the base.

    Of the first rows of the validation (else training) set, the one where the two differ most, cut to 256
    tokens. None where no row leaves an answer token. Collective: every process must call it.
    """
    dataset = trainer.train_dataset if trainer.eval_dataset is None else trainer.eval_dataset
    measured = []
    for row in dataset.select(range(min(CANDIDATES, len(dataset)))):
        answer = row["chosen_ids"] if "chosen_ids" in row else row["rejected_ids"]
        tokens = (row["prompt_ids"] + answer)[:MAX_TOKENS]
        prompt_length = min(len(row["prompt_ids"]), len(tokens))
        if prompt_length < len(tokens):
            measured.append(_measure_row(trainer, tokens, prompt_length))
    return max(measured, key=_difference, default=None)


def _difference(canary: dict[str, Any]) -> float:
    pairs = zip(canary["adapter_logprobs"], canary["base_logprobs"], strict=True)
    return max(abs(adapter - base) for adapter, base in pairs)


def _measure_row(trainer: Any, tokens: list[int], prompt_length: int) -> dict[str, Any]:
    model = trainer.accelerator.unwrap_model(trainer.model)
    ids = torch.tensor([tokens], device=trainer.accelerator.device)
    adapter = _completion_logps(trainer, ids, prompt_length)
    with use_adapter(model, adapter_name=None):
        base = _completion_logps(trainer, ids, prompt_length)
    return {
        "prompt_token_ids": tokens[:prompt_length],
        "completion_token_ids": tokens[prompt_length:],
        "adapter_logprobs": adapter.tolist(),
        "base_logprobs": base.tolist(),
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
