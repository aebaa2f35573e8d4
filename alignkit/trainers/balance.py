"""The load-balancing loss of a mixture of experts' routers, added to the method's loss.

    L = L_method + c L_balance

c is `router_aux_loss_coef`: the model's own unless the trainer's config sets it. L_balance is returned by the model's
forward. It is smallest if all experts get equally many tokens (arXiv 2101.03961, eq. 4). Evaluations leave it out.
"""

from typing import Any

from torch import Tensor


class RouterBalance:
    """Mixin that adds the load-balancing loss. It goes before a TRL trainer, whose `aux_loss_enabled` it reads."""

    aux_loss_enabled: bool
    router_aux_loss_coef: float
    accelerator: Any
    _items: Any
    model: Any

    def router_inputs(self) -> dict[str, bool]:
        """Return the inputs that make the model's forward return its balance loss; empty if it has none."""
        return {"output_router_logits": True} if self.aux_loss_enabled and self.model.training else {}

    def balance_loss(self, outputs: Any, share: Tensor) -> Tensor | float:
        """Return the balance loss times its coefficient and `share`, the forward's weight in the step (scalar)."""
        if outputs.aux_loss is None or not self.router_inputs():
            return 0.0
        measured = self.accelerator.reduce(outputs.aux_loss.detach(), "mean")
        self._items["train"].add_ratio("aux_loss", float(measured), 1.0)
        part: Tensor = self.router_aux_loss_coef * outputs.aux_loss * share
        return part
