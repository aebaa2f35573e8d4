"""D2O: alignment from dispreferred answers alone."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from alignkit.errors import FieldIssue
from alignkit.kernels import costs
from alignkit.losses import D2OCoefficients, PreferenceLoss, SampleLogps, d2o_coefficients, d2o_loss
from alignkit.methods.base import Method
from alignkit.methods.work import Batch, Generation, Pass, Plan, Work, policy_use
from alignkit.options import A_MODEL, CONTENT_MATTERS, MAY_CHANGE, RECIPES_ONLY, InJobs
from alignkit.sections import RunSections
from alignkit.sharding import SHARES_WEIGHTS

Strength = Annotated[float, InJobs(le=2, auto=True)]
Instruction = Annotated[str, Field(min_length=1, max_length=2000)]
STEPS = InJobs(le=1_000_000)


class D2O(Method):
    """Alignment from dispreferred answers alone, held against samples of the model's own."""

    rows: ClassVar[str] = "dispreferred"

    type: Literal["d2o"] = "d2o"
    beta: Strength = Field(0.1, ge=0, le=100, description="strength of the anchor; 0 is negatives only")
    alpha: Strength = Field(0.1, gt=0, le=100, description="strength of the push off the dispreferred answer")
    logps: Literal["sum", "mean"] = Field("sum", description="log-probs of an answer, over its tokens")
    rejected_floor: float | None = Field(
        None, lt=0, ge=-1e6, description="log-ratio below which the dispreferred answer is pushed no further"
    )
    samples_per_prompt: Annotated[int, InJobs(le=64, auto=True)] = Field(
        11, ge=1, le=256, description="K, where the data brings no samples"
    )
    temperature: Annotated[float, InJobs(le=2)] = Field(
        1.0, gt=0, le=10, description="softmax temperature of the draws"
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="share of the probability that draws are from (nucleus)"
    )
    max_tokens: Annotated[int, InJobs(le=4096)] = Field(
        256, ge=1, le=131_072, description="longest answer drawn"
    )
    redraws: int = Field(2, ge=0, le=20, description="further draws for filtered samples")
    instruction_pool: list[Instruction] = Field(
        default_factory=list,
        max_length=100,
        description="put in front of the prompt in turn for drawing; not for scoring or training",
    )
    sampler_url: Annotated[str | None, RECIPES_ONLY, MAY_CHANGE] = Field(
        None, pattern=r"^https?://\S+$", description="server of the reference (vLLM), to draw from"
    )
    sampler_model: Annotated[str | None, RECIPES_ONLY] = Field(
        None, description="its model; default: the only one it serves"
    )
    sampling_batch_size: Annotated[int, RECIPES_ONLY, MAY_CHANGE] = Field(
        32, ge=1, le=4096, description="answers drawn at a time, without a server"
    )
    sample_reference: Annotated[str | None, CONTENT_MATTERS, A_MODEL] = Field(
        None,
        min_length=1,
        description="r-, scores (and gives) the samples; default: the model before training",
    )
    rejected_reference: Annotated[str | None, CONTENT_MATTERS, A_MODEL] = Field(
        None,
        min_length=1,
        description="r+, scores the dispreferred answer; default: the model before training",
    )
    resample_every: Annotated[int | None, STEPS] = Field(
        None, ge=1, description="steps between draws from the current policy; default: never"
    )
    ref_refresh_every: Annotated[int | None, STEPS] = Field(
        None, ge=1, description="steps between refreshes of the references from the policy; default: never"
    )
    resample_warmup_steps: Annotated[int, STEPS] = Field(
        0, ge=0, description="steps before the first of either"
    )
    sequence_batch_size: Annotated[int, InJobs(le=256), MAY_CHANGE] = Field(
        8, ge=1, le=4096, description="answers a forward; memory grows with this, not with samples_per_prompt"
    )

    @model_validator(mode="after")
    def _one_source_of_references(self) -> Self:
        if self.ref_refresh_every is not None and (self.sample_reference or self.rejected_reference):
            raise ValueError("ref_refresh_every does not go with sample_reference and rejected_reference")
        return self

    def loss(self, logps: SampleLogps) -> PreferenceLoss:
        """`losses.d2o_loss` of B prompts (arXiv 2403.03419); the trainer takes the mean over a whole step."""
        return d2o_loss(*logps[:4], **self._strengths(logps))

    def coefficients(self, logps: SampleLogps) -> D2OCoefficients:
        """The gradient of the mean of `loss` by each log-prob of the policy: `losses.d2o_coefficients`."""
        return d2o_coefficients(*logps[:4], **self._strengths(logps))

    def _strengths(self, logps: SampleLogps) -> dict[str, Any]:
        return {
            "beta": self.beta,
            "alpha": self.alpha,
            "sample_mask": logps.mask,
            "rejected_floor": self.rejected_floor,
        }

    def try_out(self) -> None:
        """Raise ValueError unless `coefficients` is the gradient of the mean of `loss`, on three prompts."""
        samples = torch.linspace(-9, -4, 6).view(3, 2).requires_grad_()
        rejected = torch.linspace(-8, -6, 3).requires_grad_()
        mask = torch.ones(3, 2, dtype=torch.bool)
        logps = SampleLogps(samples, samples.detach() + 0.5, rejected, rejected.detach() - 0.5, mask)
        expected = torch.autograd.grad(self.loss(logps).losses.mean(), (samples, rejected))
        coefficients = self.coefficients(logps)
        found = coefficients.samples, coefficients.rejected
        for name, ours, gradient in zip(("samples", "rejected"), found, expected, strict=True):
            if not torch.allclose(ours, gradient, rtol=1e-4, atol=1e-7):
                raise ValueError(
                    f"{type(self).__name__}.coefficients: expected the gradient of loss, whose {name} are "
                    f"{gradient.tolist()}, found {ours.tolist()}"
                )

    def refusals(self, recipe: RunSections, sharded: str | None) -> Iterator[FieldIssue]:
        """Draws and refreshes that sharding rules out, and a sampler whose model is not named."""
        if self.sampler_url and recipe.model.adapter and not self.sampler_model:
            # The server must draw from the model that the run begins with, which is not what it calls its base.
            yield FieldIssue(
                "method.sampler_model", "is required with model.adapter: the name that the server has for it"
            )
        yield from self.refused_online(sharded)

    def refused_online(self, sharded: str | None) -> Iterator[FieldIssue]:
        """The options that cannot act in the middle of a run under `sharded`."""
        if self.resample_every and not self.sampler_url and sharded in SHARES_WEIGHTS:
            yield FieldIssue(
                "method.resample_every",
                f"expected a sampler_url, or ddp, zero1 or zero2, to draw from the policy with, found {sharded}",
            )
        if self.ref_refresh_every and sharded == "FSDP":
            yield FieldIssue(
                "method.ref_refresh_every",
                "expected ddp or ZeRO, found FSDP, under which no process can copy the policy",
            )

    def plan(self, recipe: RunSections) -> Plan:
        """K samples and the dispreferred answer, a few at a time: scored, then trained; no reference stays loaded."""

        def work(batch: Batch) -> Work:
            drawn = 0 if batch.sequences > 1 else self.samples_per_prompt
            each = batch.sequences + drawn
            together = max(1, min(self.sequence_batch_size, round(batch.rows * each)))
            size = batch.heads["policy"]
            tokens = batch.tokens(together)
            score = Pass(
                "policy",
                together,
                batch.length,
                times=batch.rows * each / together,
                head=costs.log_probs(tokens, replace(size, has_gradient=False), gpu=batch.gpu),
                purpose="scoring",
            )
            train = replace(
                score, trains=True, purpose="policy", head=costs.log_probs(tokens, size, gpu=batch.gpu)
            )
            answer = min(self.max_tokens, max(1.0, recipe.data.max_length - batch.prompt))
            here = drawn and self.sampler_url is None
            drawing = (
                Generation("policy", self.sampling_batch_size, batch.prompt, answer, drawn) if here else None
            )
            return Work((score, train), drawing=drawing, scoring=(replace(score, times=each / together),))

        return Plan({"policy": policy_use(recipe)}, work)
