"""Self-distillation as a TRL trainer: the supervised trainer with the model's own past as its teacher (PS-KD)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from accelerate.utils import is_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig

from alignkit.errors import ModelError
from alignkit.kernels.linear_divergence import Divergences, linear_divergence
from alignkit.kernels.model_head import HeadWeights, head_states, in_head
from alignkit.methods import PSKD
from alignkit.trainers.signature import Model, shows_parameters_of
from alignkit.trainers.supervised import SupervisedTrainer

PAST = "past.safetensors"
"""File of a checkpoint with the past model's trained weights."""


class PastStates(NamedTuple):
    """The past model's hidden states before its head, and the head, all detached."""

    hidden: Tensor
    """[B, L-1, H]."""
    weight: Tensor
    bias: Tensor | None
    logit_scale: float
    softcap: float | None


class PastOutput(NamedTuple):
    """Outputs [B, L-1] of a forward with past predictions, zero where the label is ignored."""

    losses: Tensor
    """(1 - a) CE(label, q) + a CE(past, q), differentiable."""
    entropy: Tensor
    is_top1: Tensor
    forward_kl: Tensor
    """KL(past || q), detached."""
    aux_loss: Tensor | None = None


class PSKDTrainer(SupervisedTrainer):
    """SupervisedTrainer for `methods.PSKD`: part of each target is the model's own prediction of some steps ago.

    The past model is a copy of the trained weights, taken at every refresh and run in evaluation mode. Its weights
    are exchanged with the current ones for the duration of its forward, so no second model is loaded. Evaluations
    are those of supervised fine-tuning. Checkpoints hold the past weights.
    """

    method: PSKD

    @shows_parameters_of(SupervisedTrainer)
    def __init__(
        self, model: Model | None = None, args: SFTConfig | None = None, *, method: PSKD, **kwargs: Any
    ) -> None:
        """Create the trainer with SupervisedTrainer's arguments and a `PSKD`."""
        self._past: dict[str, Tensor] = {}
        super().__init__(model, args, method=method, **kwargs)
        self.add_callback(_Refresh(self))

    @property
    def past_weight(self) -> float:
        """The weight a of the past predictions in the current step; 0 before the first refresh."""
        return self.method.weight(self.state.global_step, self.state.max_steps)

    def refresh(self) -> None:
        """Make the current weights the past ones."""
        self._past = {name: value.detach().clone() for name, value in self._trained()}

    def _losses(self, model: Any, inputs: dict[str, Tensor], loss_mask: Tensor) -> tuple[Any, Tensor]:
        if self._mode != "train" or not self.past_weight:
            return super()._losses(model, inputs, loss_mask)
        past, weight = self._past_states(inputs), self.past_weight

        def own_head(head: HeadWeights, hidden: Tensor, labels: Tensor) -> PastOutput:
            return _with_past(head, hidden, labels, past, weight)

        outputs = model(**inputs, **self.router_inputs(), fused_lm_head=own_head)
        return outputs, outputs.losses.sum(dim=1)

    def _sums(self, outputs: Any) -> dict[str, Tensor]:
        return {"past/kl": outputs.forward_kl.sum(dim=1)} if isinstance(outputs, PastOutput) else {}

    def _past_states(self, inputs: dict[str, Tensor]) -> PastStates:
        """Run the past model up to its head, without dropout."""
        policy = self._unwrapped()
        bare, training = policy.get_base_model() if is_peft_model(policy) else policy, policy.training
        given = {name: value for name, value in inputs.items() if name != "labels"}

        def detached(head: HeadWeights, hidden: Tensor) -> PastStates:
            bias = None if head.bias is None else head.bias.detach()
            return PastStates(hidden, head.weight.detach(), bias, head.logit_scale, head.softcap)

        with torch.no_grad(), self._exchanged():
            policy.eval()
            try:
                return in_head(bare, detached, head_states(bare, **given).hidden[:, :-1])
            finally:
                policy.train(training)

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        """Exchange the trained weights with the past ones, without a copy."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, value in self._trained():
            self._past[name], value.data = value.data, self._past[name]

    def _trained(self) -> list[tuple[str, Tensor]]:
        return [(name, value) for name, value in self._unwrapped().named_parameters() if value.requires_grad]

    def _unwrapped(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the model, and into a checkpoint the past weights too."""
        super()._save(output_dir, state_dict)
        if self._past and self._aside:
            whole = {name: value.contiguous() for name, value in self._past.items()}
            save_file(whole, Path(output_dir or self.args.output_dir) / PAST)

    def restore_past(self) -> None:
        """Load the past weights that the step resumes with. Raises ModelError if the checkpoint lacks them."""
        if not self._resumed_from or not self.past_weight:
            return
        file = Path(self._resumed_from) / PAST
        if not file.is_file():
            raise ModelError(f"{file.parent.name} has no {PAST}, the past weights that ps_kd trains with")
        device = self._trained()[0][1].device
        self._past = {name: value.to(device) for name, value in load_file(file).items()}


class _Refresh(TrainerCallback):
    """Refreshes the past weights after the steps that the method names, before a checkpoint of that step."""

    def __init__(self, trainer: PSKDTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Restore the past weights of a resumed run."""
        self._trainer.restore_past()

    def on_step_end(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Refresh if the step is due."""
        if state.global_step in self._trainer.method.refreshes(state.max_steps):
            self._trainer.refresh()


def _with_past(
    head: HeadWeights, hidden: Tensor, labels: Tensor, past: PastStates, weight: float
) -> PastOutput:
    """Losses and metrics of each label from both models' hidden states. CE(past, q) = KL(past || q) + H(past)."""

    def of_tokens(found: Divergences) -> Tensor:
        from_past = found.forward_kl + found.teacher_entropy
        return (1 - weight) * cast(Tensor, found.student_ce) + weight * from_past

    found = linear_divergence(
        hidden.reshape(-1, hidden.size(-1)),
        head.weight,
        past.hidden.reshape(-1, hidden.size(-1)),
        past.weight,
        labels.reshape(-1),
        student_bias=head.bias,
        teacher_bias=past.bias,
        student_logit_scale=head.logit_scale,
        teacher_logit_scale=past.logit_scale,
        student_softcap=head.softcap,
        teacher_softcap=past.softcap,
        top1=True,
        objective=of_tokens,
    )
    values = (found.loss, found.student_entropy, found.student_top1, found.forward_kl)
    return PastOutput(*(cast(Tensor, value).view(labels.shape) for value in values))
