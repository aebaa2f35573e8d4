"""D2O: alignment from dispreferred answers alone."""

import math
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
    """Alignment from dispreferred answers alone, contrasted with the model's own samples."""

    rows: ClassVar[str] = "dispreferred"
    learning_rate: ClassVar[float] = 5e-5
    packs: ClassVar[bool] = True
    held_out_metrics: ClassVar[frozenset[str]] = frozenset(
        {"valid_rewards_accuracies", "valid_rewards_margins", "valid_rewards_ece"}
    )
    term_effects: ClassVar[frozenset[str]] = frozenset({"weights", "parameters"})

    type: Literal["d2o"] = "d2o"
    paper: ClassVar[str] = "2403.03419"
    beta: Strength = Field(
        0.1, ge=0, le=100, description="weight of the log-ratio of the model's own samples; 0 leaves them out"
    )
    alpha: Strength = Field(
        0.1, gt=0, le=100, description="weight of the log-ratio of the dispreferred answer"
    )
    logps: Literal["sum", "mean"] = Field(
        "sum", description="how the token log-probs of an answer are combined"
    )
    rejected_floor: float | None = Field(
        None,
        lt=0,
        ge=-1e6,
        description="log-ratio below which the dispreferred answer gets no more gradient; default: no floor",
    )
    samples_per_prompt: Annotated[int, InJobs(le=64, auto=True)] = Field(
        11, ge=1, le=256, description="K, the samples drawn for a prompt whose row has none"
    )
    temperature: Annotated[float, InJobs(le=2)] = Field(
        1.0, gt=0, le=10, description="softmax temperature for sampling"
    )
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling: share of the probability to keep")
    max_tokens: Annotated[int, InJobs(le=4096)] = Field(
        256, ge=1, le=131_072, description="maximum length of a sample, in tokens"
    )
    redraws: int = Field(
        2, ge=0, le=20, description="extra attempts to replace samples that were filtered out"
    )
    instruction_pool: list[Instruction] = Field(
        default_factory=list,
        max_length=100,
        description="instructions put before the prompt in turn while sampling, never while scoring or training",
    )
    sampler_url: Annotated[str | None, RECIPES_ONLY, MAY_CHANGE] = Field(
        None, pattern=r"^https?://\S+$", description="URL of a vLLM server of the reference to sample from"
    )
    sampler_model: Annotated[str | None, RECIPES_ONLY] = Field(
        None, description="the model's name on that server; default: the only one it serves"
    )
    sampling_batch_size: Annotated[int, RECIPES_ONLY, MAY_CHANGE] = Field(
        32, ge=1, le=4096, description="samples drawn at a time when there is no sampler_url"
    )
    sample_reference: Annotated[str | None, CONTENT_MATTERS, A_MODEL] = Field(
        None,
        min_length=1,
        description="model r- that draws and scores the samples; default: the model before training",
    )
    rejected_reference: Annotated[str | None, CONTENT_MATTERS, A_MODEL] = Field(
        None,
        min_length=1,
        description="model r+ that scores the dispreferred answer; default: the model before training",
    )
    resample_every: Annotated[int | None, STEPS] = Field(
        None, ge=1, description="steps between fresh samples from the current policy; default: never"
    )
    ref_refresh_every: Annotated[int | None, STEPS] = Field(
        None, ge=1, description="steps between copies of the policy into the references; default: never"
    )
    resample_warmup_steps: Annotated[int, STEPS] = Field(
        0, ge=0, description="steps before the first resampling or refresh"
    )
    sequence_batch_size: Annotated[int, InJobs(le=256), MAY_CHANGE] = Field(
        8,
        ge=1,
        le=4096,
        description="answers per forward pass; memory grows with this, not with samples_per_prompt. Rows whose "
        "answers fit into as many tokens train in one pass instead of two",
    )

    @model_validator(mode="after")
    def _one_source_of_references(self) -> Self:
        if self.ref_refresh_every is not None and (self.sample_reference or self.rejected_reference):
            raise ValueError(
                "ref_refresh_every cannot be combined with sample_reference or rejected_reference"
            )
        return self

    def loss(self, logps: SampleLogps) -> PreferenceLoss:
        """Return `losses.d2o_loss` of B prompts (arXiv 2403.03419). The trainer averages over the optimizer step."""
        return d2o_loss(*logps[:4], **self._strengths(logps))

    def coefficients(self, logps: SampleLogps) -> D2OCoefficients:
        """Return `losses.d2o_coefficients`: d mean(loss) / d log-prob for each log-prob of the policy."""
        return d2o_coefficients(*logps[:4], **self._strengths(logps))

    def start_loss(self) -> float:
        """Return the loss of every row while the policy equals the references: -log sigma(0)."""
        return math.log(2)

    def _strengths(self, logps: SampleLogps) -> dict[str, Any]:
        return {
            "beta": self.beta,
            "alpha": self.alpha,
            "sample_mask": logps.mask,
            "rejected_floor": self.rejected_floor,
        }

    def try_out(self) -> None:
        """Raise ValueError unless, on three prompts, `coefficients` equals the gradient of the mean of `loss`."""
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
        """Yield issues for resampling or refreshes that the sharding rules out, and for a missing sampler model."""
        if self.sampler_url and recipe.model.adapter and not self.sampler_model:
            # The server must sample from the base model with the adapter, which it serves under a name of its own.
            yield FieldIssue(
                "method.sampler_model", "is required with model.adapter: the adapter's name on the server"
            )
        yield from self.refused_online(sharded)

    def refused_online(self, sharded: str | None) -> Iterator[FieldIssue]:
        """Yield issues for the options that cannot act in the middle of a run under this sharding."""
        if self.resample_every and not self.sampler_url and sharded in SHARES_WEIGHTS:
            yield FieldIssue(
                "method.resample_every",
                f"sampling from the policy needs a sampler_url, or ddp, zero1 or zero2, found {sharded}",
            )
        if self.ref_refresh_every and sharded == "FSDP":
            yield FieldIssue(
                "method.ref_refresh_every",
                "expected ddp or ZeRO, found FSDP: no process can copy the policy under FSDP",
            )

    def plan(self, recipe: RunSections) -> Plan:
        """Plan K samples and the dispreferred answer, a few at a time, each scored and then trained.

        Nothing is scored where a row's padded answers fit into one forward. No reference stays loaded.
        """

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
            passes = (train,) if each <= self.sequence_batch_size else (score, train)
            return Work(passes, drawing=drawing, scoring=(replace(score, times=each / together),))

        return Plan({"policy": policy_use(recipe)}, work)
