"""SinKD: distillation from a frozen teacher by optimal transport, beside cross-entropy and a KL."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from alignkit.methods.distillation import DistillMethod, Temperature, Weight
from alignkit.methods.work import NO_HEAD, Batch, HeadCost

Mode = Literal["token_set", "per_sequence"]
Reduction = Literal["sum", "mean"]
Gradient = Literal["unrolled", "envelope"]
Epsilon = Annotated[float, Field(gt=0, le=100)]
Iterations = Annotated[int, Field(ge=1, le=10_000)]
MaxRows = Annotated[int, Field(ge=1, le=65_536)]


class SinKD(DistillMethod):
    """Distillation with a Sinkhorn distance between sets of tokens beside the cross-entropy and a KL."""

    type: Literal["sinkd"] = "sinkd"
    micro_batch_matters: ClassVar[bool] = True

    temperature: Temperature = Field(2.0, description="softmax temperature of the rows that are matched")
    epsilon: Epsilon = Field(0.1, description="entropic strength of the transport; costs are at most 2")
    iterations: Iterations = Field(20, description="Sinkhorn scalings of rows and columns")
    sinkhorn_weight: Weight = Field(8e-4, description="weight of the transport")
    ce_weight: Weight = Field(1.0, description="weight of the cross-entropy with the labels")
    kl_weight: Weight = Field(0.1, description="weight of KL(teacher || student) of each token")
    kl_temperature: Temperature = Field(1.0, description="temperature of that KL; its square does not enter")
    mode: Mode = Field(
        "token_set", description="match the tokens of a micro-batch, or of each answer (per_sequence)"
    )
    max_rows: MaxRows = Field(256, description="tokens of a set that are matched; of more, a sample is drawn")
    reduction: Reduction = Field("sum", description="sum, which grows with a set's rows, or mean over them")
    debiased: bool = Field(False, description="subtract the transport of each side with itself")
    gradient: Gradient = Field("unrolled", description="unrolled, or envelope: the plan held fixed")

    def further_heads(self, batch: Batch) -> HeadCost:
        """Cost of the transport between rows of both models."""
        from alignkit.estimate import heads  # the estimate imports the methods

        if not self.sinkhorn_weight:
            return NO_HEAD
        sets, tokens = {
            "token_set": (1, batch.tokens(batch.rows)),
            "per_sequence": (batch.rows, batch.tokens(1)),
        }[self.mode]
        sizes = batch.heads["policy"], batch.heads["teacher"]
        return heads.transport(min(tokens, self.max_rows), sets, *sizes, iterations=self.iterations)
