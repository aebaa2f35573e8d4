"""The card of a trained model: its method, paper, base model, data and metrics, as they were."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from alignkit.methods import Method

CARD = "README.md"
AN_ADAPTER = "A LoRA adapter of"
"""The beginning of the card of an adapter; an export that merges it says so instead."""


@dataclass(frozen=True, slots=True)
class Card:
    """The content of a model card. It has no paths, because a card is published and paths reveal the machine."""

    method: Method
    base_model: str
    """Hub id, or the name of the model that was trained."""
    on_hub: bool = False
    """Whether `base_model` is a hub id, which the hub then links."""
    adapter: bool = False
    name: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    """The role of a data set, such as training, to its name and size."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()
    note: str = ""
    """A sentence about the weights, such as which step they are of."""

    def text(self) -> str:
        """The card in the hub's form: metadata in YAML, then Markdown."""
        parts = [self._metadata(), f"# {self.name or self.base_model}", self._about(), self._data_part()]
        numbers = {name: value for name, value in self.metrics.items() if isinstance(value, int | float)}
        if numbers:
            parts.append(
                _table("Metrics", "metric", {name: f"{value:.4g}" for name, value in numbers.items()})
            )
        if self.options:
            parts.append(
                _table("Options", "option", {name: str(value) for name, value in self.options.items()})
            )
        return "\n\n".join(part for part in parts if part) + "\n"

    def _metadata(self) -> str:
        values: dict[str, Any] = {"library_name": "peft" if self.adapter else "transformers"}
        if self.on_hub:
            values["base_model"] = self.base_model
        values["tags"] = sorted({"alignkit", self.method.type.replace("_", "-"), *self.tags})
        return f"---\n{yaml.safe_dump(values, sort_keys=False).strip()}\n---"

    def _about(self) -> str:
        kind = AN_ADAPTER if self.adapter else "All weights trained, from"
        paper = self.method.paper
        source = f" ([arXiv {paper}](https://arxiv.org/abs/{paper}))" if paper else ""
        trained = (
            f"Trained with {self.method.type}{source} by alignkit and TRL. {type(self.method).summary()}"
        )
        return f"{kind} `{self.base_model}`.\n\n{trained}" + (f"\n\n{self.note}" if self.note else "")

    def _data_part(self) -> str:
        if not self.data:
            return ""
        return "## Data\n\n" + "\n".join(f"- {role}: {what}" for role, what in self.data.items())


def _table(title: str, column: str, values: Mapping[str, str]) -> str:
    rows = "\n".join(f"| `{name}` | {value} |" for name, value in values.items())
    return f"## {title}\n\n| {column} | value |\n| --- | --- |\n{rows}"
