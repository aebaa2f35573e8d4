"""The balance loss of a mixture of experts' routers, beside a method's own loss.

    L = L_method + c L_balance

c is `router_aux_loss_coef`, the model's own unless the trainer's config gives one. L_balance is what the model's
forward returns, smallest where all experts get as many tokens (arXiv 2101.03961, eq. 4). Evaluations leave it out.
"""

from typing import Any

from torch import Tensor


class RouterBalance:
    """Mixin before a TRL trainer that sets `aux_loss_enabled` and `router_aux_loss_coef`."""

    aux_loss_enabled: bool
    router_aux_loss_coef: float
    accelerator: Any
    _items: Any
    model: Any

    def router_inputs(self) -> dict[str, bool]:
        """Inputs by which a model's forward returns its balance loss; none where the model has none."""
        return {"output_router_logits": True} if self.aux_loss_enabled and self.model.training else {}

    def balance_loss(self, outputs: Any, share: Tensor) -> Tensor | float:
        """The part of a forward's balance loss in its step's; `share` is the forward's part of the step, a scalar."""
        if outputs.aux_loss is None or not self.router_inputs():
            return 0.0
        measured = self.accelerator.reduce(outputs.aux_loss.detach(), "mean")
        self._items["train"].add_ratio("aux_loss", float(measured), 1.0)
        part: Tensor = self.router_aux_loss_coef * outputs.aux_loss * share
        return part
