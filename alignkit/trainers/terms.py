"""Row terms in a trainer: the rows that they see, their states, and the fold at the end of an optimizer step."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkit.data.flipping import FLIPPED
from alignkit.data.rows.recognise import GROUP
from alignkit.errors import DataError
from alignkit.run.resume_guard import sharding_of
from alignkit.terms import RowTerm, RowView, Seen, Setup, Term
from alignkit.terms.base import UNSHARDED, Metrics, ParameterTerm, State
from alignkit.trainers.metrics import gather_rows
from alignkit.trainers.parameter_terms import Begin, ParameterTerms

ROW = "row"
"""Batch key of the [B] int64 ids of the rows in the training set."""

MOST_REPORTED = 16
"""Groups whose metrics are logged."""


class RowTerms:
    """The row terms of a run with their states, and the values recorded since the last optimizer step."""

    def __init__(self, terms: Sequence[RowTerm], setup: Setup, device: torch.device) -> None:
        self.terms = terms
        self.setup = setup
        self._device = device
        self._states = [self._moved(term.begin(setup)) for term in terms]
        self._seen: list[tuple[Tensor, Tensor]] = []

    def apply(self, view: RowView, is_real: Tensor) -> tuple[Tensor, Tensor]:
        """Return (weights [B], extra losses [B]) of a forward, in which `is_real` [B] is False for padding rows.

        Weights multiply and extra losses add up, in the recipe's order. Padding rows keep weight 1 and extra 0.
        """
        real = is_real.to(view.losses.device).nonzero().flatten()
        part = RowView(*(getattr(view, name)[real] for name in RowView.__dataclass_fields__))
        weights, extra = torch.ones_like(part.losses.detach()), torch.zeros_like(part.losses.detach())
        columns = [part.rows, part.groups, part.losses, part.margins]
        for term, state in zip(self.terms, self._states, strict=True):
            effect = term.apply(part, state)
            weights = weights if effect.weights is None else weights * effect.weights
            extra = extra if effect.extra is None else extra + effect.extra
            columns += [effect.record[name] for name in term.records]
        self._record(columns, real, is_real)
        ones, zeros = torch.ones_like(view.losses.detach()), torch.zeros_like(view.losses.detach())
        return ones.index_copy(0, real, weights), zeros.index_copy(0, real, extra)

    def _record(self, columns: Sequence[Tensor], real: Tensor, is_real: Tensor) -> None:
        values = torch.stack([column.detach().double() for column in columns], dim=1)
        whole = values.new_zeros(len(is_real), values.size(1)).index_copy(0, real, values)
        self._seen.append((whole, is_real.to(whole.device)))

    def fold(self, accelerator: Any) -> Metrics:
        """Fold the rows of the optimizer step, of all processes, into the states. Returns the step's metrics."""
        if not self._seen:
            return {}
        values, real = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen = []
        rows = gather_rows(accelerator, values, real)
        rows = rows[rows[:, 0].argsort(stable=True)]
        ids, groups, losses, margins, *rest = rows.unbind(dim=1)
        metrics: Metrics = {}
        states = []
        for term, state in zip(self.terms, self._states, strict=True):
            record = {name: rest.pop(0) for name in term.records}
            seen = Seen(ids.long(), groups.long(), losses, margins, record)
            after, found = term.fold(state, seen)
            states.append(after)
            metrics |= found
            metrics |= self._of_groups(seen)
        self._states = states
        return metrics

    def _of_groups(self, seen: Seen) -> Metrics:
        """Loss, accuracy and weight of the step's rows of each group."""
        values = {"loss": seen.losses, "accuracy": (seen.margins > 0).double()}
        values |= {name: value for name, value in seen.record.items() if name == "weight"}
        return {
            f"groups/{name}/{key}": (
                float(value[seen.groups == group].sum()),
                float((seen.groups == group).sum()),
            )
            for group, name in enumerate(self.setup.groups[:MOST_REPORTED])
            for key, value in values.items()
        }

    def state(self) -> list[State]:
        """Return the terms' states on the CPU, for a checkpoint."""
        return [{name: value.cpu() for name, value in state.items()} for state in self._states]

    def restore(self, states: Iterable[State]) -> None:
        """Replace the states by those of a checkpoint."""
        self._states = [self._moved(state) for state in states]

    def _moved(self, state: State) -> State:
        return {name: value.to(self._device) for name, value in state.items()}


class TakesTerms:
    """Mixin before a trainer that adds a recipe's terms to its loss. Without terms it changes nothing.

    The training set must have a length. Its rows get ids in their order. The column `group` names their groups.
    """

    accelerator: Any
    args: Any
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any
    _items: Any

    row_terms: RowTerms | None = None
    parameter_terms: ParameterTerms | None = None
    group_names: tuple[str, ...] = ()
    """Names of the groups by the ids in batches: the training set's, then those of held-out rows alone."""
    micro_batch_matters = False
    """Whether a step depends on how its rows are split into micro-batches, because of the method or a term."""

    def use_terms(self, terms: Sequence[Term], start_loss: float | None) -> None:
        """Start the terms. Call it when the trainer is built. Raises DataError for data that lack groups."""
        for term in terms:
            if (problem := term.misfit(self.method)) is not None:  # type: ignore[attr-defined]
                raise ValueError(f"terms: {problem}")
        self.micro_batch_matters = any(term.micro_batch_matters for term in terms)
        self._use_parameter_terms([term for term in terms if isinstance(term, ParameterTerm)])
        chosen = [term for term in terms if isinstance(term, RowTerm)]
        if not chosen:
            return
        if not hasattr(self.train_dataset, "__len__"):
            raise DataError("train dataset: terms need a dataset with a length, found a stream")
        names = self._group_names(needed=[term.type for term in chosen if term.needs_groups])
        own = [self._group_id(names, name) for name in self._groups_of(self.train_dataset)]
        rows = len(self.train_dataset)
        processes = self.accelerator.num_processes
        setup = Setup(
            rows=rows,
            batch_rows=self.args.per_device_train_batch_size
            * self.args.gradient_accumulation_steps
            * processes,
            groups=names,
            group_rows=tuple(own.count(group) for group in range(len(names))),
            start_loss=start_loss,
        )
        self.row_terms = RowTerms(chosen, setup, self.accelerator.device)
        self.add_callback(_Fold(self))  # type: ignore[attr-defined]

    def _use_parameter_terms(self, terms: Sequence[ParameterTerm]) -> None:
        if terms and sharding_of(self.accelerator) in {"zero3", "fsdp2"}:
            raise ValueError(f"terms: {UNSHARDED.format(', '.join(term.type for term in terms))}")
        if terms:
            self.parameter_terms = ParameterTerms(self, terms)
            self.add_callback(Begin(self))  # type: ignore[attr-defined]

    def weight_loss(self, share: Tensor) -> Tensor | float:
        """Return the penalty of the parameter terms times `share`, the forward's weight in the step (scalar)."""
        if self.parameter_terms is None or self._mode != "train":  # type: ignore[attr-defined]
            return 0.0
        penalty = self.parameter_terms.penalty()
        self._items["train"].add_ratio("terms/penalty", float(penalty.detach()), 1.0)
        return penalty * share.to(penalty)

    def mark_rows(self, *, always: bool = False) -> None:
        """Put into the batches what terms, the probe and metrics of groups need: the rows' ids, groups and flags.

        `always`: ids of the rows also without them.
        """
        is_probe = FLIPPED in (getattr(self.train_dataset, "column_names", None) or ())
        held_out = [] if isinstance(self.eval_dataset, dict | None) else self._groups_of(self.eval_dataset)
        names = () if self.row_terms is None else self.row_terms.setup.groups
        self.group_names = (*names, *sorted({name for name in held_out if name is not None} - {*names}))
        if self.row_terms is not None or is_probe or always:
            self.train_dataset = self.train_dataset.add_column(ROW, list(range(len(self.train_dataset))))
        elif not self.group_names:
            return
        self.data_collator = WithFacts(self.data_collator, self.group_names)

    def fold_terms(self) -> None:
        """Fold the step's rows into the terms' states and record the metrics. Collective."""
        if self.row_terms is not None:
            for name, (above, below) in self.row_terms.fold(self.accelerator).items():
                self._items["train"].add_ratio(name, above, below)

    def pop_facts(self, inputs: dict[str, Tensor]) -> "RowFacts | None":
        """Remove the facts on the rows from `inputs` and return them; None if there are none."""
        groups, rows, flipped = (inputs.pop(name, None) for name in (GROUP, ROW, FLIPPED))
        return None if groups is None else RowFacts(groups, rows, flipped)

    def _group_names(self, needed: Sequence[str]) -> tuple[str, ...]:
        """The sorted names of the training set's groups. Raises DataError if some term needs groups that lack."""
        found = self._groups_of(self.train_dataset)
        names = tuple(sorted({name for name in found if name is not None}))
        if needed and (not names or None in found):
            lacking = sum(name is None for name in found) or len(self.train_dataset)
            raise DataError(
                f"train dataset: {', '.join(needed)} needs a group in every row, found {lacking:,} of "
                f"{len(self.train_dataset):,} rows without one"
            )
        if needed and self.eval_dataset is not None and not isinstance(self.eval_dataset, dict):
            unknown = sorted({str(name) for name in self._groups_of(self.eval_dataset)} - {*names, "None"})
            if unknown:
                raise DataError(
                    f"eval dataset: expected the training set's groups {', '.join(names)}, found {', '.join(unknown)}"
                )
        return names

    def _groups_of(self, dataset: Any) -> list[str | None]:
        return list(dataset[GROUP]) if GROUP in (dataset.column_names or ()) else []

    @staticmethod
    def _group_id(names: Sequence[str], name: str | None) -> int:
        return -1 if name is None else names.index(name)

    def _logging_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super()._logging_state()  # type: ignore[misc]
        return state if self.row_terms is None else {**state, "terms": self.row_terms.state()}

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Restore the terms' states from a checkpoint's logging state."""
        if self.row_terms is not None and "terms" in state:
            self.row_terms.restore(state["terms"])


class RowFacts(NamedTuple):
    """What a batch of pairs says of its rows."""

    groups: Tensor
    """[B] int64, ids of the groups; -1 for none."""
    rows: Tensor | None
    """[B] int64, ids of the rows; None for held-out rows."""
    flipped: Tensor | None
    """[B] bool, whether the probe has swapped the answers; None without a probe."""

    def of_groups(
        self, names: Sequence[str], values: Mapping[str, Tensor]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return (numerator, denominator) [B] of the values' means over each group."""
        members = {name: (self.groups == at).float() for at, name in enumerate(names[:MOST_REPORTED])}
        return {
            f"groups/{name}/{key}": (value * own, own)
            for name, own in members.items()
            for key, value in values.items()
        }

    def probe(self, margins: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return (numerator, denominator) [B] of the probe's metrics: flipped rows fitted as given, true accuracy."""
        if self.flipped is None:
            return {}
        fitted = margins > 0
        return {
            "probe/memorised": (fitted & self.flipped, self.flipped),
            "probe/accuracy_true": (fitted != self.flipped, torch.ones_like(self.flipped)),
        }


class WithFacts:
    """A data collator that adds what is known of the rows to another's batches."""

    def __init__(self, collate: Callable[..., dict[str, Any]], groups: Sequence[str]) -> None:
        self._collate = collate
        self._ids = {name: at for at, name in enumerate(groups)}

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate, with the tensors [B] of `RowFacts`."""
        batch = self._collate(examples)
        batch[GROUP] = torch.tensor([self._ids.get(example.get(GROUP) or "", -1) for example in examples])
        for name in (ROW, FLIPPED):
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        return batch


class _Fold(TrainerCallback):
    """Folds the rows of an optimizer step into the terms' states, before the step is logged or saved."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_step_end(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Gather and fold, on every process."""
        self._trainer.fold_terms()
