"""Runs of a language model for experiments: a recipe with short rows, trained in this process, and measured.

A finished run is not trained again. Conversations are rendered without the model's default system prompt, which is
longer than a question.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from torch import Tensor

from alignkit import train
from alignkit.models.loading import load_tokenizer, load_weights
from evidence.harness import Settings

TEMPLATES = {
    "<|im_end|>": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "<end_of_turn>": (
        "{{ bos_token }}{% for message in messages %}<start_of_turn>"
        "{{ 'model' if message.role == 'assistant' else message.role }}\n{{ message.content }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
}
"""The token that ends a turn -> a template without a system prompt, for the models whose vocabulary has it."""
AT_ONCE = 32
"""Answers that are written at once."""
READ_AT_ONCE = 8
"""Answers that are read at once, each with the log-probs of the whole vocabulary for its tokens and its prompt's."""
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
    template.write_text(TEMPLATES[end_of(settings.model)], encoding="utf-8")
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
    """Train a recipe unless it is finished, and return (folder, result). Raises RuntimeError unless it succeeds."""
    folder = settings.work / (name + "-smoke" * settings.smoke)
    if not succeeded(folder):
        shutil.rmtree(folder, ignore_errors=True)
        path = written(folder, given)
        if train.main([str(path)]) != 0 or not succeeded(folder):
            raise RuntimeError(f"{path} failed or was stopped: see {folder}")
        if not keep_checkpoints:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return folder, json.loads((folder / "result.json").read_text(encoding="utf-8"))


def named(arm: str) -> str:
    """The name of an arm in the folders of its runs: its words, so that a new arm renames no other."""
    return "-".join(re.findall(r"\w+", arm))


def succeeded(folder: Path) -> bool:
    """Whether the run in a folder is finished."""
    result = folder / "result.json"
    return result.is_file() and json.loads(result.read_text(encoding="utf-8"))["status"] == "succeeded"


def written(folder: Path, given: Mapping[str, Any]) -> Path:
    """Write the recipe of a run beside its folder, and return the file."""
    path = folder.with_name(f"{folder.name}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**given, "output_dir": str(folder)}), encoding="utf-8")
    return path


@cache
def end_of(model: str) -> str:
    """The token that ends a turn of a language model. Raises ValueError if its vocabulary has none of `TEMPLATES`."""
    words = load_tokenizer(model, field="model").get_vocab()
    for token in TEMPLATES:
        if token in words:
            return token
    raise ValueError(f"{model}: expected a model whose turns end with {' or '.join(TEMPLATES)}")


def padded(rows: Sequence[list[int]]) -> Tensor:
    """Token ids [n, L], filled on the right; a causal model needs no mask, as no token sees what comes after it."""
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


class Asked:
    """The language model, over which adapters are measured."""

    def __init__(self, settings: Settings, adapter: Path | None = None, *, amount: float = 1.0) -> None:
        """Load the model, with an adapter multiplied by `amount`."""
        self.tokenizer = load_tokenizer(settings.model, field="model")
        self._end = end_of(settings.model)
        self.tokenizer.chat_template = TEMPLATES[self._end]
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

    def answer_ids(self, answer: str) -> list[int]:
        """The ids of an answer, the end token included."""
        return list(self.tokenizer(answer + self._end, add_special_tokens=False).input_ids)

    def log_probs(self, prompt: Prompt, ids: list[int]) -> Tensor:
        """The log-probs [n, V] that predict the n `ids` of an answer."""
        return self.log_probs_of([(prompt, ids)])[0]

    @torch.no_grad()
    def log_probs_of(self, rows: Sequence[tuple[Prompt, list[int]]]) -> list[Tensor]:
        """The log-probs [n, V] that predict the n ids of each answer, all in one forward."""
        starts = [len(self.prompt_ids(prompt)) for prompt, _ in rows]
        whole = [self.prompt_ids(prompt) + ids for prompt, ids in rows]
        logits = self.model(padded(whole)).logits
        return [
            one[start - 1 : len(ids) - 1].float().log_softmax(dim=-1)
            for one, start, ids in zip(logits, starts, whole, strict=True)
        ]

    def read(self, rows: Sequence[tuple[Prompt, str]]) -> list["Read"]:
        """Read the tokens of each (prompt, answer)."""
        found = []
        for first in range(0, len(rows), READ_AT_ONCE):
            some = [
                (prompt, self.answer_ids(answer)) for prompt, answer in rows[first : first + READ_AT_ONCE]
            ]
            of_each = zip(self.log_probs_of(some), some, strict=True)
            found += [Read(log_probs, torch.tensor(ids)) for log_probs, (_, ids) in of_each]
        return found

    def logps(self, rows: Sequence[tuple[Prompt, str]]) -> list[float]:
        """The log-prob of each (prompt, answer), in nats per token."""
        return [one.logp for one in self.read(rows)]

    def answer(self, prompts: Sequence[Prompt], tokens: int = 24, *, seed: int | None = None) -> list[str]:
        """Answer prompts: greedily, or drawn at temperature 1 from `seed`."""
        if seed is not None:
            torch.manual_seed(seed)
        return [self.text(ids) for ids in self.generate(prompts, tokens, sample=seed is not None)]

    def text(self, ids: list[int]) -> str:
        """The text of an answer's ids."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], tokens: int, *, sample: bool) -> list[list[int]]:
        """Answer prompts greedily or at temperature 1: the ids of each, with the end token if it has ended."""
        end, found = self.tokenizer.convert_tokens_to_ids(self._end), []
        given: dict[str, Any] = {"max_new_tokens": tokens, "eos_token_id": end, "pad_token_id": end}
        given |= {"do_sample": sample, **dict.fromkeys(("temperature", "top_k", "top_p"))}
        if sample:
            given |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        for first in range(0, len(prompts), AT_ONCE):
            ids = [self.prompt_ids(prompt) for prompt in prompts[first : first + AT_ONCE]]
            longest = max(map(len, ids))
            left_padded = torch.tensor([[end] * (longest - len(one)) + one for one in ids])
            mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in ids])
            written = self.model.generate(input_ids=left_padded, attention_mask=mask, **given)[
                :, longest:
            ].tolist()
            found += [one[: one.index(end) + 1] if end in one else one for one in written]
        return found


@dataclass(frozen=True, slots=True)
class Read:
    """What a model predicts for the n tokens of an answer."""

    log_probs: Tensor
    """[n, V]."""
    ids: Tensor
    """[n]."""

    @property
    def logp(self) -> float:
        """The log-prob of the answer, in nats per token."""
        return float(self.log_probs.gather(1, self.ids[:, None]).mean())


def joined(reads: Sequence[Read]) -> Read:
    """The tokens of all answers, one after another."""
    return Read(torch.cat([one.log_probs for one in reads]), torch.cat([one.ids for one in reads]))


def calibration(tokens: Read, bins: int = 15) -> float:
    """The expected calibration error of the model's first choices of tokens."""
    sure, chosen = tokens.log_probs.exp().double().max(dim=1)
    right = (chosen == tokens.ids).double()
    at = (sure * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, at, right - sure)
    return float(gaps.abs().sum() / len(sure))
