"""`AfterStep`, the base class of a step after training, and `Finished`, what it may do to a run."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from alignkit.adapter_sections import LoraSection
from alignkit.after.adapter import Adapter
from alignkit.schema import Section


class Finished(Protocol):
    """A trained model whose weights a step may read and replace. Every method is collective."""

    @property
    def adapter(self) -> Adapter | None:
        """The trained adapter; None if all weights train."""

    @property
    def start_adapter(self) -> Adapter | None:
        """The adapter that training continued; None if it began at the base model, or if all weights train."""

    def weights(self) -> dict[str, Tensor]:
        """The trained weights by name, as copies. Only if all weights train."""

    def start_weights(self) -> dict[str, Tensor]:
        """The weights before training by name. Only if all weights train."""

    def put_adapter(self, adapter: Adapter) -> None:
        """Replace the adapter. Its rank may differ."""

    def put_weights(self, weights: dict[str, Tensor]) -> None:
        """Replace the weights. Only if all weights train."""

    def loss(self) -> float:
        """Evaluate the current weights on the held-out data."""

    def faults(self) -> list[str]:
        """The reasons why the collapse guard refuses the current weights; empty if it accepts them or is off."""

    def keep(self, name: str, note: str) -> None:
        """Save the current weights beside the result, in the folder `name`, with a sentence for their card."""

    def report(self, message: str, *, warn: bool = False) -> None:
        """Add a message to the run's events."""


class AfterStep(Section):
    """A change of the trained weights. A subclass declares `type` and its options as fields."""

    type: str

    def apply(self, run: Finished) -> None:
        """Change the weights of the run."""
        raise NotImplementedError

    def refusals(self, lora: LoraSection | None, has_validation: bool) -> Iterator[str]:  # noqa: ARG002, FBT001
        """Yield the reasons why a run cannot have this step, each as `option: expected …`."""
        return iter(())
