"""Options that a run tunes by itself: the adapter's response to them, and their own steps on held-out rows.

After Self-Tuning Networks (arXiv 1903.03088), our reading, on LoRA:

    y = W x + s B A x + s v(d) * (B_h A_h x)        v(d) = C d

d [n] is how far the options are from their start, on an unbounded scale; v gates the outputs of a second adapter. A
step of training draws d = shift + spread * noise for each row, and trains B, A, B_h, A_h and C by the loss with the
options at d, so the model learns how its best weights respond to the options. A held-out step moves shift and spread
by the held-out loss at the options' start, through v alone. At the end d = shift is fixed, and [B, v B_h], [A; A_h]
is one plain adapter of rank r + r_h.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkit.adapter_sections import TuneSection
from alignkit.after import Adapter
from alignkit.after.adapter import CONFIG_FILE, IN, OUT, WEIGHTS_FILE, read, write
from alignkit.errors import ModelError
from alignkit.methods import PairMethod
from alignkit.methods.tuning import scale_of, with_values
from alignkit.trainers.draws import generator_of

FOLDER = "tune"
"""Folder in a checkpoint with the adapter as it trains and the state of the tuning; the checkpoint's own is plain."""
MODULE = "option_responses"
"""Name of the module in a model that holds the responses, so that they train, and DDP finds them."""
STATE_FILE = "state.safetensors"
_PLAIN = ("Linear", "Linear4bit", "Linear8bitLt")


class Response(nn.Module):
    """The response of one adapted layer: v(d) * (B_h A_h x) with v(d) = C d. It is 0 until B_h has trained."""

    def __init__(self, layer: Any, rank: int, options: int, generator: torch.Generator) -> None:
        super().__init__()
        inner = layer.lora_A[layer.active_adapter[0]].weight
        inputs, outputs = inner.shape[1], layer.lora_B[layer.active_adapter[0]].weight.shape[0]
        bound = inputs**-0.5
        down = (torch.rand(rank, inputs, generator=generator) * 2 - 1) * bound
        gate = torch.randn(outputs, options, generator=generator)
        wide = torch.promote_types(inner.dtype, torch.float32)
        self.down = nn.Parameter(down.to(inner.device, wide))
        """A_h [r_h, k]."""
        self.up = nn.Parameter(torch.zeros(outputs, rank, device=inner.device, dtype=wide))
        """B_h [d, r_h]."""
        self.gate = nn.Parameter(gate.to(inner.device, wide))
        """C [d, n]."""

    def forward(self, x: Tensor, deviations: Tensor) -> Tensor:
        """[N, T, d] for x [N, T, k] and deviations [N, n] or [1, n]."""
        gates = (deviations.to(self.gate) @ self.gate.T)[:, None]
        return gates * F.linear(F.linear(x.to(self.down.dtype), self.down), self.up)

    def at(self, shift: Tensor) -> Tensor:
        """v(shift) B_h, [d, r_h]."""
        return (self.gate @ shift.to(self.gate))[:, None] * self.up


class Tuner:
    """The tuned options of a run: their place and spread, the layers' responses, and the held-out steps."""

    def __init__(self, model: Any, method: PairMethod, options: TuneSection, *, seed: int) -> None:
        """Give every adapted layer a response. Raises ModelError for layers whose outputs cannot be gated."""
        self.options, self.method, self._seed = options, method, seed
        self.scales = [scale_of(method, name) for name in options.options]
        count = len(self.scales)
        device = next(model.parameters()).device
        self.shift = torch.zeros(count, device=device, requires_grad=True)
        start = torch.tensor(options.spread, dtype=torch.float64)
        self.raw_spread = (
            torch.full((count,), float(start.expm1().log()), device=device).detach().requires_grad_()
        )
        self.optimizer = torch.optim.Adam([self.shift, self.raw_spread], lr=options.learning_rate)
        self.rows: Tensor | None = None
        """[N, n], the deviations of the sequences of the current forward; None for `shift`."""
        self.perturbs = False
        """Whether a model in evaluation mode is perturbed too, as in a held-out step."""
        self._trained_adapter = model.active_adapter
        self.responses: dict[str, Response] = {}
        self._hooks: list[Any] = []
        generator = torch.Generator().manual_seed(seed % 2**32)
        for place, layer in model.named_modules():
            if self._trained_adapter in (getattr(layer, "lora_A", None) or {}):
                self.responses[place] = self._respond(place, layer, generator)
        # beside the layers, since peft saves what is inside them
        model.add_module(MODULE, nn.ModuleList(self.responses.values()))

    def _respond(self, place: str, layer: Any, generator: torch.Generator) -> Response:
        if type(layer).__name__ not in _PLAIN:
            raise ModelError(
                f"tune: expected LoRA on linear layers only, found {place}, a {type(layer).__name__}"
            )
        response = Response(layer, self.options.rank, len(self.scales), generator)
        self._hooks.append(layer.register_forward_hook(partial(self._add_response, response)))
        return response

    def _add_response(
        self, response: Response, layer: Any, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor | None:
        if layer.disable_adapters or list(layer.active_adapters) != [self._trained_adapter]:
            return None
        perturbed = self.rows is not None and (layer.training or self.perturbs)
        deviations = self.rows if perturbed else self.shift.detach()[None]
        return output + layer.scaling[self._trained_adapter] * response(inputs[0], deviations).to(
            output.dtype
        )

    @property
    def spread(self) -> Tensor:
        """[n], standard deviations of the perturbations, differentiable."""
        return F.softplus(self.raw_spread)

    def deviations(self, step: int, rows: Iterable[int], kind: str = "train") -> Tensor:
        """[B, n], the perturbed options of rows, differentiable. The noise depends on seed, step and row alone."""
        generators = (generator_of(f"{self._seed}/{kind}/{step}/{row}") for row in rows)
        noise = torch.stack([torch.randn(len(self.scales), generator=one) for one in generators])
        return self.shift + self.spread * noise.to(self.shift)

    def perturbed(self, step: int, rows: Tensor) -> PairMethod:
        """The method with options perturbed for each pair, whose forward then has the same perturbations."""
        deviations = self.deviations(step, rows.tolist()).detach()
        self.rows = deviations.repeat(2, 1)
        values = {
            scale.name: scale.value(column)
            for scale, column in zip(self.scales, deviations.unbind(1), strict=True)
        }
        return with_values(self.method, values)

    def values(self) -> dict[str, float]:
        """The options' current values."""
        return {
            scale.name: float(scale.value(at))
            for scale, at in zip(self.scales, self.shift.detach(), strict=True)
        }

    def metrics(self) -> dict[str, float]:
        """The options' values, and the spread of their perturbations on their own scale."""
        spreads = zip(self.scales, self.spread.tolist(), strict=True)
        found = {f"tune/{name}": value for name, value in self.values().items()}
        return found | {f"tune/{scale.name}_spread": spread for scale, spread in spreads}

    def move(self, gradients: Sequence[Tensor]) -> None:
        """Make an Adam step along the gradients of shift and spread, less the entropy's."""
        self.optimizer.zero_grad()
        if self.options.spread > 0 and self.options.entropy_weight > 0:
            (-self.options.entropy_weight * self.spread.log().sum()).backward()
        for place, gradient in zip((self.shift, self.raw_spread), gradients, strict=True):
            place.grad = gradient if place.grad is None else place.grad + gradient
        self.optimizer.step()

    def folded(self, adapter: Adapter) -> Adapter:
        """The adapter with its response at the current options, [B, v B_h], [A; A_h], of rank r + r_h."""
        shift = self.shift.detach()
        weights = {
            name: (response.at(shift) if name.endswith(OUT) else response.down).detach().to(weight)
            for name, weight in adapter.weights.items()
            for response in [self.responses[name.removesuffix(OUT).removesuffix(IN)]]
        }
        rank = self.options.rank
        whole = Adapter(
            weights, rank, adapter.scale * (rank**0.5 if adapter.use_rslora else rank), adapter.use_rslora
        )
        return adapter.plus(whole)

    def remove(self, model: Any) -> None:
        """Take the responses out of the model."""
        while self._hooks:
            self._hooks.pop().remove()
        delattr(model, MODULE)

    def save(self, folder: Path) -> None:
        """Keep the adapter in a checkpoint as it trains, with the tuning, and put the plain one in its place."""
        adapter, kept = read(folder), folder / FOLDER
        kept.mkdir(exist_ok=True)
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            (kept / name).write_bytes((folder / name).read_bytes())
        state = {"shift": self.shift, "raw_spread": self.raw_spread}
        parts = {
            f"{place}.{name}": weight
            for place, response in self.responses.items()
            for name, weight in response.named_parameters()
        }
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in (state | parts).items()},
            kept / STATE_FILE,
        )
        write(self.folded(adapter), folder)

    def load(self, folder: Path) -> None:
        """Restore the options and responses from a folder that `save` made."""
        state = load_file(folder / STATE_FILE)
        with torch.no_grad():
            self.shift.copy_(state["shift"])
            self.raw_spread.copy_(state["raw_spread"])
            for place, response in self.responses.items():
                for name, weight in response.named_parameters():
                    weight.copy_(state[f"{place}.{name}"])


class TunesOptions:
    """Mixin before a trainer of preference pairs that tunes options of its method; without one it does nothing."""

    args: Any
    state: Any
    _items: Any

    tuner: Tuner | None = None

    def use_tuning(self, options: TuneSection | None, model: Any) -> None:
        """Begin to tune. Raises ValueError without held-out rows, ModelError for a model that cannot be tuned."""
        trainer: Any = self
        if options is None:
            return
        if not hasattr(model, "peft_config"):
            raise ValueError("tune: expected a model with a LoRA adapter, found one whose weights all train")
        if not hasattr(trainer.eval_dataset, "__len__") or isinstance(trainer.eval_dataset, dict):
            raise ValueError(
                "tune: expected an eval_dataset of rows, since the options move by the held-out loss"
            )
        self.tuner = Tuner(model, trainer.method, options, seed=trainer.args.seed)
        trainer.add_callback(_HeldOutStep(trainer))

    def step_options(self) -> None:
        """Move the options by the loss of held-out rows, if it is their turn. Collective."""
        trainer: Any = self
        tuner, step = self.tuner, trainer.state.global_step
        if tuner is None:
            return
        items = self._items["train"]
        options = tuner.options
        if step > options.warmup_steps and step % options.every == 0:
            loss, *gradients = held_out(trainer, tuner, step)
            tuner.move(gradients)
            items.add_ratio("tune/held_out_loss", float(loss), 1.0)
        for name, value in tuner.metrics().items():
            items.add_ratio(name, value, 1.0)

    def fold_options(self, run: Any) -> dict[str, float] | None:
        """Make the adapter of `run`, a FinishedRun, the plain one at the options found, and return these."""
        tuner, self.tuner = self.tuner, None
        if tuner is None:
            return None
        folded = tuner.folded(run.adapter)
        tuner.remove(run.model)
        run.put_adapter(folded)
        return tuner.values()

    def _logging_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super()._logging_state()  # type: ignore[misc]
        return state if self.tuner is None else {**state, "tune": self.tuner.optimizer.state_dict()}

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state of the options' optimizer."""
        super().restore_state(state)  # type: ignore[misc]
        if self.tuner is not None and "tune" in state:
            self.tuner.optimizer.load_state_dict(state["tune"])

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        if self.tuner is not None and self.args.should_save:
            self.tuner.save(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the adapter as it trained, and the tuning."""
        folder = resume_from_checkpoint
        if self.tuner is not None:
            folder = str(Path(folder) / FOLDER)
            self.tuner.load(Path(folder))
        super()._load_from_checkpoint(folder, model)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        """Load the adapter of a checkpoint as it trained, and the tuning."""
        state = self.state
        best = state.best_model_checkpoint
        if self.tuner is not None:
            state.best_model_checkpoint = str(Path(best) / FOLDER)
            self.tuner.load(Path(best) / FOLDER)
        super()._load_best_model()  # type: ignore[misc]
        state.best_model_checkpoint = best


def held_out(trainer: Any, tuner: Tuner, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, gradient [n] of shift, gradient [n] of raw_spread) of held-out rows at perturbed options.

    The loss is the method's at the options' start, so it does not contain the options. Weights get no gradient. The
    rows depend on seed and step alone, and the processes share them.
    """
    dataset, accelerator = trainer.eval_dataset, trainer.accelerator
    generator = torch.Generator().manual_seed((trainer.args.seed * 1_000_003 + step) % 2**32)
    rows = torch.randperm(len(dataset), generator=generator)[: tuner.options.rows].tolist()
    own = rows[accelerator.process_index :: accelerator.num_processes]
    size = trainer.args.per_device_train_batch_size
    found = [torch.zeros((), device=tuner.shift.device), *(torch.zeros_like(tuner.shift) for _ in range(2))]
    training, tuner.perturbs = trainer.model.training, True
    trainer.model.eval()
    try:
        for begin in range(0, len(own), size):
            part = own[begin : begin + size]
            tuner.rows = tuner.deviations(step, part, "held out").repeat(2, 1)
            loss = trainer.pair_losses([dataset[row] for row in part]).sum() / len(rows)
            gradients = torch.autograd.grad(loss, [tuner.shift, tuner.raw_spread])
            found = [one + more for one, more in zip(found, (loss.detach(), *gradients), strict=True)]
    finally:
        tuner.rows, tuner.perturbs = None, False
        trainer.model.train(training)
    loss, shift, spread = (accelerator.reduce(one, "sum") for one in found)
    return loss, shift, spread


class _HeldOutStep(TrainerCallback):
    """Moves the options after an optimizer step, before the step is logged or saved."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_step_end(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Move the options, on every process."""
        self._trainer.step_options()


__all__ = ["Response", "Tuner", "TunesOptions", "held_out"]
