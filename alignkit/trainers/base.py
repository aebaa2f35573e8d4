"""AlignTrainer, the mixin that every trainer puts before TRL's class."""

from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model

from alignkit.trainers.exact_resume import ExactResume
from alignkit.trainers.item_log import ItemLog
from alignkit.trainers.length_order import GroupsByLength
from alignkit.trainers.model_card import CARD, Card
from alignkit.trainers.scoring import published
from alignkit.trainers.terms import TakesTerms
from alignkit.trainers.upstream import get_config_model_id
from alignkit.trainers.whole_steps import WholeSteps


class AlignTrainer(TakesTerms, ItemLog, ExactResume, WholeSteps, GroupsByLength):
    """Mixin before a TRL trainer: metrics per item, exact resume, and a loss averaged over the whole optimizer step.

    The loss is a mean over tokens. Add `WholeRowSteps` after this mixin for a mean over rows.
    """

    method: Any

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """Write the card of the model, with its true method, base, data and last metrics, into `args.output_dir`."""
        trainer: Any = self
        if trainer.is_world_process_zero():
            data = {} if dataset_name is None else {"training": dataset_name}
            given = [tags] if isinstance(tags, str) else tags or []
            card = self.card(name=model_name or "", data=data, tags=given)
            (Path(trainer.args.output_dir) / CARD).write_text(card.text(), encoding="utf-8")

    def card(self, **told: Any) -> Card:
        """The model card of the trained model. `told` has the fields of `Card` that the trainer does not know."""
        trainer: Any = self
        model = published(trainer.model, trainer.accelerator)
        base = str(get_config_model_id(model.config) or "")
        is_folder = Path(base).is_dir() or base.startswith(("/", "."))
        options = self.method.model_dump(mode="json", exclude={"type", "teacher", "teacher_training"})
        metrics: dict[str, Any] = {}
        for entry in trainer.state.log_history:
            metrics |= {name: value for name, value in entry.items() if name not in {"step", "epoch"}}
        known: dict[str, Any] = {
            "method": self.method,
            "base_model": Path(base).name if is_folder else base or type(model).__name__,
            "on_hub": bool(base) and not is_folder,
            "adapter": is_peft_model(model),
            "options": {name: value for name, value in options.items() if _is_plain(value)},
            "metrics": metrics,
        }
        return Card(**known | told)


def _is_plain(value: Any) -> bool:
    """Whether an option may stand in a card: no section, and no path of this machine."""
    return isinstance(value, bool | int | float) or (isinstance(value, str) and "/" not in value)
