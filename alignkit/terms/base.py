"""`Term`, the base class of what a recipe adds to a method's loss, and the records that row terms read and return."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from alignkit.errors import FieldIssue
from alignkit.schema import Section
from alignkit.sections import RunSections

Effect = Literal["weights", "extras", "parameters"]
"""Kind of a term, as `EFFECTS` describes it."""
EFFECTS: dict[Effect, str] = {
    "weights": "weights of the rows",
    "extras": "an extra loss of the rows",
    "parameters": "a loss of the trained parameters",
}
State = dict[str, Tensor]
"""Tensors that a row term carries from one optimizer step to the next, by name. Checkpoints hold them."""
Metrics = dict[str, tuple[float, float]]
"""Name -> (numerator, denominator). Both are summed until the next log and divided then."""


class Term(Section):
    """An addition to the loss of a method. A subclass declares its options as fields.

    The first paragraph of a subclass's docstring is its description for users.
    """

    type: str

    effect: ClassVar[Effect]
    """What the term adds. It fits the methods whose `term_effects` name this."""
    needs_rewards: ClassVar[bool] = False
    """Whether the method's loss must return rewards with a gradient."""
    needs_reference: ClassVar[bool] = False
    """Whether the rewards must be relative to a reference."""
    micro_batch_matters: ClassVar[bool] = False
    """Whether a step depends on the micro-batch size."""
    paper: ClassVar[str] = ""
    """arXiv number, or title, of the source."""
    fidelity: ClassVar[Literal["exact", "translation"]] = "translation"
    """Exact: the paper's algorithm on an object it was made for. Translation: its equations on a model's pairs."""

    code_read: ClassVar[bool] = False
    """Whether the authors' published code was read; otherwise the docs call the term our reading."""

    @classmethod
    def summary(cls) -> str:
        """Return the description for users: the first paragraph of the class's docstring."""
        return " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())

    @classmethod
    def own_options(cls) -> dict[str, Any]:
        """Return the term's options by name, without `type`."""
        return {name: option for name, option in cls.model_fields.items() if name != "type"}

    @classmethod
    def misfit(cls, method: Any) -> str | None:
        """Return why the term cannot be used with a method (a class or an instance); None if it can."""
        name = cls.model_fields["type"].default
        if cls.effect not in method.term_effects:
            possible = [what for effect, what in EFFECTS.items() if effect in method.term_effects]
            taken = f"only {' or '.join(possible)}" if possible else "no terms"
            return f"{name} adds {EFFECTS[cls.effect]}, but {method_name(method)} takes {taken}"
        if cls.needs_reference and not getattr(method, "uses_reference", False):
            return f"{name} needs rewards relative to a reference, and {method_name(method)} has none"
        return None

    @property
    def needs_groups(self) -> bool:
        """Whether every row must have a `group`."""
        return False

    @property
    def weight_copies(self) -> int:
        """Number of float32 copies of the trained weights that the term keeps, for estimates of memory."""
        return 0

    def refusals(self, _recipe: RunSections, _others: list["Term"]) -> Iterator[FieldIssue]:
        """Yield an issue for each option that this run cannot have. Paths are relative to the term."""
        return iter(())


def method_name(method: Any) -> str:
    """Return the `type` of a method, given as a class or an instance."""
    found: Any = method
    return str(found.model_fields["type"].default if isinstance(method, type) else found.type)


@dataclass(frozen=True, slots=True)
class Setup:
    """Facts about a run that a row term starts from."""

    rows: int
    """Number of training rows. Row ids are 0 to rows - 1."""
    batch_rows: int
    """Rows of an optimizer step."""
    groups: tuple[str, ...] = ()
    """Names of the groups, sorted. A row's group id is its group's index here."""
    group_rows: tuple[int, ...] = ()
    """Number of training rows of each group."""
    start_loss: float | None = None
    """Loss of every row while the policy equals the reference; None if it differs from row to row."""


@dataclass(frozen=True, slots=True)
class RowView:
    """What a row term sees of B rows of one forward. Padding rows are left out."""

    losses: Tensor
    """[B], losses of the method, differentiable."""
    rows: Tensor
    """[B] int64, ids of the rows in the training set."""
    groups: Tensor
    """[B] int64, ids of the groups; -1 for a row without a group."""
    margins: Tensor
    """[B], chosen minus rejected reward; differentiable if `needs_rewards`."""
    chosen: Tensor
    """[B], rewards of the chosen answers; differentiable if `needs_rewards`."""
    rejected: Tensor
    """[B], rewards of the rejected answers; differentiable if `needs_rewards`."""


@dataclass(frozen=True, slots=True)
class RowEffect:
    """What a row term does to B rows: the step's loss is the mean of weights * losses + extra."""

    weights: Tensor | None = None
    """[B], detached; None for 1."""
    extra: Tensor | None = None
    """[B], differentiable; None for 0."""
    record: Mapping[str, Tensor] = field(default_factory=dict)
    """Values [B] for `fold`, by the term's `records`, such as the weights."""


@dataclass(frozen=True, slots=True)
class Seen:
    """All rows of an optimizer step, sorted by row id, the same on every process. Values are float64."""

    rows: Tensor
    """[n] int64, ids of the rows."""
    groups: Tensor
    """[n] int64, ids of the groups; -1 for a row without a group."""
    losses: Tensor
    """[n], losses of the method."""
    margins: Tensor
    """[n], chosen minus rejected reward."""
    record: Mapping[str, Tensor] = field(default_factory=dict)
    """The values [n] that the term recorded."""


class RowTerm(Term):
    """A term of rows: weights, or extra losses.

    What it reads of other rows is the state after the previous optimizer step, so that a step does not depend on how
    it is split over processes and micro-batches.
    """

    records: ClassVar[tuple[str, ...]] = ()
    """Names of the values that `apply` records for `fold`."""

    def begin(self, _setup: Setup) -> State:
        """Return the state before the first step."""
        return {}

    def apply(self, view: RowView, state: State) -> RowEffect:
        """Return the effect on the rows of one forward. It must not change `state`."""
        raise NotImplementedError

    def fold(self, state: State, _seen: Seen) -> tuple[State, Metrics]:
        """Return the state after an optimizer step, and the step's metrics."""
        return state, {}


@dataclass(frozen=True, slots=True)
class Scored:
    """A token sequence of a run's data, for a term that measures the model before the first step."""

    ids: list[int]
    labels: list[int]
    """The ids, with -100 where there is no loss."""


class Model(Protocol):
    """What a parameter term may ask of the model before the first step."""

    rank: int
    """Number of this process."""
    processes: int

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The trained weights by name."""

    @property
    def scalings(self) -> Mapping[str, float]:
        """Name of a module with a trained adapter -> alpha / r."""

    def sequences(self, file: str | None, count: int) -> list[Scored]:
        """Return at most `count` sequences of a file of completions, or of the held-out rows. Raises DataError."""

    def logits(self, one: Scored) -> Tensor:
        """Return the logits [labels with loss, V] that predict the labels, without gradient."""

    def log_prob(self, one: Scored) -> Tensor:
        """Return the summed log-prob of the labels, differentiable."""

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over all processes."""


UNSHARDED = "{} needs whole weights in each process: expected ddp, zero1 or zero2"
"""Message that refuses parameter terms where the processes share the weights."""


class ParameterTerm(Term):
    """A term of the trained weights: a scalar that is added to the loss of a step once."""

    effect: ClassVar[Effect] = "parameters"

    def prepare(self, model: Model) -> State:
        """Return what the penalty needs, once before the first step. Collective. A resume reads it from a file."""
        raise NotImplementedError

    def penalty(self, weights: Mapping[str, Tensor], scalings: Mapping[str, float], state: State) -> Tensor:
        """Return the penalty (scalar), differentiable in the trained weights."""
        raise NotImplementedError
