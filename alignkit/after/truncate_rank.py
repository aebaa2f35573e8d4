"""Cutting an adapter to fewer ranks. `lora.nested` trains adapters that lose little by it."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from alignkit.adapter_sections import LoraSection
from alignkit.after.base import AfterStep, Finished
from alignkit.errors import ModelError

NEAR = 1e-5
"""Held-out loss that a rank must gain, so that of near equals the smaller rank is taken."""


class TruncateRank(AfterStep):
    """Cut the adapter to its first ranks, at the same scale: delta W = s B[:, :rank] A[:rank, :]."""

    type: Literal["truncate_rank"] = "truncate_rank"
    rank: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto", description="ranks to keep; auto: the best of 1, 2, 4, … and all by held-out loss"
    )

    def apply(self, run: Finished) -> None:
        """Replace the run's adapter by the cut one."""
        whole = run.adapter
        if whole is None:
            raise ModelError("truncate_rank needs an adapter, but all weights were trained")
        if self.rank != "auto":
            run.put_adapter(whole.cut(self.rank))
            run.report(f"Cut the adapter from rank {whole.rank} to {self.rank}")
            return
        losses = {}
        for rank in ranks(whole.rank):
            run.put_adapter(whole.cut(rank))
            losses[rank] = run.loss()
        best = min(losses, key=lambda rank: losses[rank] + NEAR * rank)
        run.put_adapter(whole.cut(best))
        found = ", ".join(f"{rank}: {loss:.4g}" for rank, loss in losses.items())
        run.report(f"Cut the adapter from rank {whole.rank} to {best} (held-out loss by rank {found})")

    def refusals(self, lora: LoraSection | None, has_validation: bool) -> Iterator[str]:  # noqa: FBT001
        """Yield the reasons why this run has no such rank."""
        if lora is None:
            yield "type: truncate_rank needs lora, found null"
            return
        if self.rank == "auto" and not has_validation:
            yield "rank: auto needs data.validation"
        elif self.rank != "auto" and self.rank > lora.r:
            yield f"rank: expected at most lora.r {lora.r}, found {self.rank}"


def ranks(most: int) -> tuple[int, ...]:
    """1, 2, 4, … below `most`, and `most`."""
    return (*(2**power for power in range(most.bit_length()) if 2**power < most), most)
