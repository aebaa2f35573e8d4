"""Runs of a language model for experiments: a recipe with short rows, trained in this process, and measured.

A finished run is not trained again. Conversations are rendered without the model's default system prompt, which is
longer than a question.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from torch import Tensor

from alignkit import train
from alignkit.models.loading import load_tokenizer, load_weights
from evidence.harness import Settings

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END = "<|im_end|>"
Prompt = str | Sequence[Mapping[str, str]]
"""The text of one user turn, or the messages of a conversation."""


def recipe(
    settings: Settings,
    *,
    train: str,
    validation: str,
    method: Mapping[str, Any],
    steps: int,
    seed: int,
    batch: int = 8,
    max_length: int = 96,
) -> dict[str, Any]:
    """Return a recipe of LoRA on short rows: `steps` steps of `batch` rows, evaluated at the end."""
    template = settings.work / "template.jinja"
    template.parent.mkdir(parents=True, exist_ok=True)
    template.write_text(TEMPLATE, encoding="utf-8")
    steps = settings.steps(steps)
    return {
        "model": {"path": settings.model, "chat_template": str(template)},
        "data": {"train": train, "validation": validation, "max_length": max_length},
        "method": dict(method),
        "lora": {"r": 8, "alpha": 16},
        "training": {
            "max_steps": steps,
            "batch_size": batch,
            "learning_rate": 5e-4,
            "save_steps": steps,
            "logging_steps": max(1, steps // 10),
        },
        "collapse_guard": None,
        "seed": seed,
    }


def run(
    settings: Settings, name: str, given: Mapping[str, Any], *, keep_checkpoints: bool = False
) -> tuple[Path, dict[str, Any]]:
    """Train a recipe unless it is finished, and return (folder, result). Raises RuntimeError if training fails."""
    folder = settings.work / (name + "-smoke" * settings.smoke)
    result = folder / "result.json"
    if not result.is_file() or json.loads(result.read_text(encoding="utf-8"))["status"] != "succeeded":
        shutil.rmtree(folder, ignore_errors=True)
        path = folder.with_suffix(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({**given, "output_dir": str(folder)}), encoding="utf-8")
        if train.main([str(path)]) != 0:
            raise RuntimeError(f"{path} failed: see {folder}")
        if not keep_checkpoints:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return folder, json.loads(result.read_text(encoding="utf-8"))


class Asked:
    """The language model, over which adapters are measured."""

    def __init__(self, settings: Settings, adapter: Path | None = None, *, amount: float = 1.0) -> None:
        """Load the model, with an adapter multiplied by `amount`."""
        self.tokenizer = load_tokenizer(settings.model, field="model")
        self.tokenizer.chat_template = TEMPLATE
        model = load_weights(settings.model, "float32", field="model")
        self.model: Any = model if adapter is None else PeftModel.from_pretrained(model, str(adapter))
        self.model.eval()
        self._scales = {
            module: dict(module.scaling) for module in self.model.modules() if hasattr(module, "lora_A")
        }
        self.scale(amount)

    def scale(self, amount: float) -> None:
        """Multiply the adapter by `amount`."""
        for module, own in self._scales.items():
            module.scaling.update({name: value * amount for name, value in own.items()})

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt, up to where the answer begins."""
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        rendered = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(rendered, add_special_tokens=False).input_ids)

    @torch.no_grad()
    def _log_probs(self, prompt: Prompt, answer: str) -> tuple[Tensor, Tensor]:
        """(log-probs [n, V] that predict the answer's tokens, the end token included; ids [n])."""
        start = self.prompt_ids(prompt)
        ids = self.tokenizer(answer + END, add_special_tokens=False).input_ids
        logits = self.model(torch.tensor([start + ids])).logits[0, len(start) - 1 : -1].float()
        return logits.log_softmax(dim=-1), torch.tensor(ids)

    def log_probs(self, rows: Sequence[tuple[Prompt, str]]) -> Tensor:
        """The log-probs [tokens, V] of all answers' tokens."""
        return torch.cat([self._log_probs(*row)[0] for row in rows])

    def answer_ids(self, rows: Sequence[tuple[Prompt, str]]) -> Tensor:
        """The ids [tokens] that `log_probs` predicts."""
        ids = (self.tokenizer(answer + END, add_special_tokens=False).input_ids for _, answer in rows)
        return torch.tensor([token for one in ids for token in one])

    def logps(self, rows: Sequence[tuple[Prompt, str]]) -> list[float]:
        """The log-prob of each (prompt, answer), in nats per token."""
        found = []
        for row in rows:
            log_probs, ids = self._log_probs(*row)
            found.append(float(log_probs.gather(1, ids[:, None]).mean()))
        return found

    def calibration(self, rows: Sequence[tuple[Prompt, str]], bins: int = 15) -> float:
        """The expected calibration error of the model's first choices of the answers' tokens."""
        each = [self._log_probs(*row) for row in rows]
        sure, chosen = torch.cat([log_probs for log_probs, _ in each]).exp().double().max(dim=1)
        right = (chosen == torch.cat([ids for _, ids in each])).double()
        at = (sure * bins).long().clamp(max=bins - 1)
        gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, at, right - sure)
        return float(gaps.abs().sum() / len(sure))

    @torch.no_grad()
    def answer(self, prompts: Sequence[Prompt], tokens: int = 24, *, seed: int | None = None) -> list[str]:
        """Answer prompts: greedily, or drawn at temperature 1 from `seed`."""
        if seed is not None:
            torch.manual_seed(seed)
        end = self.tokenizer.convert_tokens_to_ids(END)
        found = []
        for prompt in prompts:
            ids = torch.tensor([self.prompt_ids(prompt)])
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=seed is not None,
                temperature=1.0 if seed is not None else None,
                top_k=0 if seed is not None else None,
                top_p=1.0 if seed is not None else None,
                eos_token_id=end,
                pad_token_id=end,
            )
            found.append(str(self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)))
        return found
