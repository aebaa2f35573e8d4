"""Models that do more to their logits than a fused head can know, and what each process of a run compared of a head.

Importing this makes the models known to transformers, by the `model_type` of their configuration.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TrainerCallback

from alignkit import checks, train


class FadingConfig(LlamaConfig):
    """Of a `FadingLlama`."""

    model_type = "fading_llama"


class FadingLlama(LlamaForCausalLM):
    """A llama that scales each word's logit by its place in the vocabulary, which no scale of all logits is."""

    config_class = FadingConfig

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Leaves the few logits of a probe alone, so that only comparing log-probs finds it."""
        output = super().forward(*args, **kwargs)
        words = self.config.vocab_size
        if output.logits.size(-1) == words:
            output.logits = output.logits * torch.linspace(0.5, 1, words)
        return output


class ClampedConfig(LlamaConfig):
    """Of a `ClampedLlama`."""

    model_type = "clamped_llama"


class ClampedLlama(LlamaForCausalLM):
    """A llama that cuts its logits off, which is no soft cap."""

    config_class = ClampedConfig

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Llama's, with logits of at most 2."""
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.clamp(max=2)
        return output


for config, model in ((FadingConfig, FadingLlama), (ClampedConfig, ClampedLlama)):
    AutoConfig.register(config.model_type, config)
    AutoModelForCausalLM.register(config, model)


def become(folder: Path, kind: type[LlamaForCausalLM]) -> None:
    """Make the llama in `folder` one of these, with the same weights."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"model_type": kind.config_class.model_type, "architectures": [kind.__name__]}
    file.write_text(json.dumps(config), encoding="utf-8")


def watch(output: Path) -> None:
    """Have this process keep what `require_exact_head` ran, how many steps began and the error, in NAME.head-N.json.

    Of each forward: which side of a pair, the tokens, and the log-probs of all but the first, [2, L-1].
    """
    kept: dict[str, Any] = {"forwards": [], "steps": 0, "error": None}
    require, build, report = checks.require_exact_head, train.build_trainer, train.report_failure

    def save() -> None:
        output.with_name(f"{output.name}.head-{os.environ['RANK']}.json").write_text(json.dumps(kept))

    def keep(_model: Any, _args: Any, inputs: dict[str, Any], found: Any) -> None:
        ids = inputs["input_ids"]
        log_probs = found.log_probs if "labels" in inputs else log_probs_of(found.logits, ids)
        one = {"side": inputs.get("side"), "fused": "labels" in inputs, "steps": kept["steps"]}
        kept["forwards"].append(one | {"ids": ids.tolist(), "log_probs": log_probs.tolist()})

    def required(model: Any, **options: Any) -> None:
        hook = model.register_forward_hook(keep, with_kwargs=True)
        try:
            require(model, **options)
        finally:
            hook.remove()
            save()

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            kept["steps"] += 1
            save()

    def built(*arguments: Any) -> Any:
        trainer = build(*arguments)
        trainer.add_callback(Steps())
        return trainer

    def reported(folder: Any, error: Exception) -> None:
        kept["error"] = [type(error).__name__, str(error)]
        save()
        report(folder, error)

    checks.require_exact_head, train.build_trainer, train.report_failure = required, built, reported


def log_probs_of(logits: Tensor, ids: Tensor) -> Tensor:
    """[B, L-1] log-probs of all tokens but the first, from logits [B, L, V]."""
    return logits.float().log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
