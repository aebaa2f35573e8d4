"""A trainer's model as the steps after training see it, on one process or under DDP, ZeRO-1 and ZeRO-2."""

from collections.abc import Callable
from typing import Any

from accelerate.utils import is_peft_model
from peft import get_peft_model_state_dict
from torch import Tensor

from alignkit.after import Adapter
from alignkit.after.adapter import not_plain
from alignkit.errors import ModelError
from alignkit.models.adapters import START, start_of
from alignkit.models.loading import load_weights
from alignkit.recipe import Recipe
from alignkit.trainers.scoring import published


class FinishedRun:
    """The trained model of a trainer. Implements `alignkit.after.Finished`."""

    def __init__(
        self,
        trainer: Any,
        recipe: Recipe,
        guard: Any,
        report: Callable[[str, bool], None],
        keep: Callable[[str, str], None],
    ) -> None:
        """`guard` is the collapse guard or None. `report(message, is_warning)` adds an event, on the main process.

        `keep(name, note)` saves the model beside the result. Collective.
        """
        self._trainer, self._recipe, self._guard, self._report = trainer, recipe, guard, report
        self._keep = keep
        self.model = published(trainer.model, trainer.accelerator)
        self._is_lora = is_peft_model(self.model)

    @property
    def adapter(self) -> Adapter | None:
        """The trained adapter, as copies; None if all weights train. Raises ModelError if it is not plain LoRA."""
        return self._read(self.model.active_adapter) if self._is_lora else None

    @property
    def start_adapter(self) -> Adapter | None:
        """The frozen copy of the adapter that training continued; None if there is none."""
        return self._read(START) if self._is_lora and start_of(self.model) is not None else None

    def _read(self, name: str) -> Adapter:
        config = self.model.peft_config[name]
        found = get_peft_model_state_dict(self.model, adapter_name=name, save_embedding_layers=False)
        weights = {place: weight.detach().clone() for place, weight in found.items()}
        if fault := not_plain({**config.to_dict(), "peft_type": "LORA"}, weights):
            raise ModelError(f"after: expected plain LoRA of one rank, found {fault}")
        return Adapter(weights, config.r, config.lora_alpha, config.use_rslora)

    def put_adapter(self, adapter: Adapter) -> None:
        """Replace the active adapter; its rank may differ. The model cannot train on afterwards."""
        name = self.model.active_adapter
        for place, module in self.model.named_modules():
            if name not in (getattr(module, "lora_A", None) or {}):
                continue
            for part in ("lora_A", "lora_B"):
                inner = getattr(module, part)[name]
                for kind, weight in inner.named_parameters():
                    weight.data = adapter.weights[f"{place}.{part}.{kind}"].to(weight)
            module.lora_A[name].out_features = module.lora_B[name].in_features = adapter.rank
            module.r[name], module.lora_alpha[name] = adapter.rank, adapter.alpha
            module.scaling[name] = adapter.scale
        config = self.model.peft_config[name]
        config.r, config.lora_alpha = adapter.rank, adapter.alpha

    def weights(self) -> dict[str, Tensor]:
        """Copies of the weights by name."""
        return {name: weight.detach().clone() for name, weight in self.model.named_parameters()}

    def start_weights(self) -> dict[str, Tensor]:
        """The weights before training, loaded again from the recipe's model."""
        own = self._recipe.model
        start = load_weights(own.path, own.dtype, own.attn_implementation, field="model.path")
        return dict(start.named_parameters())

    def put_weights(self, weights: dict[str, Tensor]) -> None:
        """Replace the weights."""
        for name, weight in self.model.named_parameters():
            weight.data.copy_(weights[name])

    def loss(self) -> float:
        """Evaluate the current weights on the held-out data."""
        return float(self._trainer.evaluate()["eval_loss"])

    def faults(self) -> list[str]:
        """The reasons why the collapse guard refuses the current weights."""
        return [] if self._guard is None else self._guard.faults_now()

    def keep(self, name: str, note: str) -> None:
        """Save the current weights beside the result."""
        self._keep(name, note)

    def report(self, message: str, *, warn: bool = False) -> None:
        """Print a message and add it to the run's events."""
        self._report(message, warn)
