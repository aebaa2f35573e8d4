"""The canary of a run: log-probs of one row, which prove that a server answers with the run's weights.

An adapter whose module names do not match loads without an error, and the server then answers as the base model. So
the check must compare log-probs, not status codes.
"""

from typing import Any

from accelerate.utils import is_peft_model

from alignkit.models.adapters import start_of
from alignkit.trainers.scoring import Answer, answer_of, published, token_logps

MAX_TOKENS = 256
CANDIDATES = 8


def measure(trainer: Any) -> dict[str, Any] | None:
    """Measure the per-token log-probs of one answer under the trained weights.

    If the run trained an adapter, also under the base model and under the model before training, which is the base
    model unless the run continued an adapter. The answer is a good one, or a dispreferred one if the data has no good
    ones. The row is the one of the first eight of the validation set, else of the training set, whose log-probs
    training changed most; the first row if all weights were trained. It is cut to 256 tokens. Returns None if no row
    has an answer token left. Collective: every rank must call it.
    """
    dataset = trainer.train_dataset if trainer.eval_dataset is None else trainer.eval_dataset
    candidates = [_candidate(row) for row in dataset.select(range(min(CANDIDATES, len(dataset))))]
    usable = [candidate for candidate in candidates if candidate.tokens]
    has_base = is_peft_model(published(trainer.model, trainer.accelerator))
    measured = [_measure(trainer, answer, has_base=has_base) for answer in usable[: None if has_base else 1]]
    return max(measured, key=_difference, default=None)


def _candidate(row: dict[str, Any]) -> Answer:
    prompt, good = answer_of(row)
    answer = good or list(row.get("rejected_ids", []))
    return Answer(prompt, answer[: max(0, MAX_TOKENS - len(prompt))])


def _difference(canary: dict[str, Any]) -> float:
    if canary["start_logprobs"] is None:
        return 0.0
    pairs = zip(canary["adapter_logprobs"], canary["start_logprobs"], strict=True)
    return max(abs(adapter - start) for adapter, start in pairs)


def _measure(trainer: Any, answer: Answer, *, has_base: bool) -> dict[str, Any]:
    (trained,) = token_logps(trainer, [answer]) or []
    (base,) = (token_logps(trainer, [answer], "base") or [None]) if has_base else [None]
    model = published(trainer.model, trainer.accelerator)
    trains_on = has_base and start_of(model) is not None
    (start,) = (token_logps(trainer, [answer], "reference") or [None]) if trains_on else [base]
    return {
        "prompt_token_ids": answer.prompt,
        "completion_token_ids": answer.tokens,
        "adapter_logprobs": trained.tolist(),
        "base_logprobs": None if base is None else base.tolist(),
        "start_logprobs": None if start is None else start.tolist(),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
