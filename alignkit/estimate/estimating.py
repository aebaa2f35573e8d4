"""Estimates a recipe on given devices, on every sharding stage, and finds the smallest configuration that fits."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cached_property

from alignkit.errors import FieldIssue
from alignkit.estimate import activations, devices, sharding, timing
from alignkit.estimate.devices import Device, EstimateError
from alignkit.estimate.disk import Disk, disk
from alignkit.estimate.lengths import Lengths
from alignkit.estimate.lengths import steps as run_steps
from alignkit.estimate.memory import Layout, Memory, Model, peak
from alignkit.estimate.shapes import read_shape
from alignkit.estimate.timing import Seconds
from alignkit.kernels.costs import HeadSize
from alignkit.methods.work import Batch, ModelUse, Pass, Plan, Work
from alignkit.recipe import Recipe
from alignkit.run.environment_checks import refused_under
from alignkit.run.reference_store import worth_storing
from alignkit.sections import TrainingSection, loaded_dtype

MOST_DEVICES = 16_384
UNKNOWN_ROWS = 10**12
"""Rows of a data set whose number is unknown: more than a run of `max_steps` reads."""
HALVES = ("bf16", "fp16")
"""Mixed precisions that compute in 16 bits."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate of a run on one layout. Units are bytes and seconds."""

    device: Device
    devices: int
    stage: str
    micro_batch_size: int
    models: dict[str, Model]
    lengths: Lengths
    memory: Memory
    steps: int | None
    """Optimizer steps; None, like all derived fields, if neither max_steps nor the number of rows is known."""
    tokens: int | None
    """Tokens that the run trains on, prompts included."""
    step_seconds: Seconds
    seconds: float | None
    """Seconds of training, including sampling and scoring before it, without loading, evaluating and saving."""
    disk: Disk

    @property
    def fits(self) -> bool:
        """Whether one process's peak fits into the usable memory of a device."""
        processes = 1 if self.device.is_gpu else self.devices  # processes on a CPU share its memory
        here = self.memory.peak * processes <= self.device.usable
        return here and self.memory.host <= self.device.host

    @property
    def parameters(self) -> int:
        """Parameters of the trained model, including adapters."""
        return self.models["policy"].shape.parameters

    @property
    def trainable(self) -> int:
        """Trainable parameters of all models."""
        return sum(model.shape.trainable for model in self.models.values())


def estimate(
    recipe: Recipe,
    lengths: Lengths,
    *,
    device: str | Device = devices.CPU,
    count: int = 1,
    stage: str | None = None,
) -> Estimate:
    """The estimate on `count` devices; the default stage is single, or ddp for several. Raises EstimateError."""
    chosen = sharding.get(stage or ("single" if count == 1 else "ddp"))
    return Estimating(recipe, lengths, devices.get(device)).on(chosen, count)


def compare(
    recipe: Recipe, lengths: Lengths, *, device: str | Device = devices.CPU, count: int = 1
) -> list[Estimate]:
    """The estimates on every stage that is possible with that many devices and can train the recipe."""
    estimating = Estimating(recipe, lengths, devices.get(device))
    return [estimating.on(stage, count) for stage in estimating.stages(count)]


def smallest(
    recipe: Recipe, lengths: Lengths, *, device: str | Device = devices.CPU, stage: str | None = None
) -> Estimate | None:
    """The fewest devices that the recipe fits on, with the stage that communicates least; None if it never fits.

    Tries the numbers of devices that divide the batch: up to the devices of a node, then whole nodes. A recipe
    without micro_batch_size gets the largest that fits. With `stage`, only that stage is tried. Otherwise offloading
    is skipped: it fits on fewer devices, but takes far longer. Raises EstimateError.
    """
    estimating = Estimating(recipe, lengths, devices.get(device))
    asked = None if stage is None else sharding.get(stage)
    if asked is not None:
        estimating.require_trainable(asked)
    for count in estimating.counts():
        for tried in estimating.stages(count):
            if tried == asked or (asked is None and not tried.offload):
                found = estimating.largest(tried, count)
                if found is not None:
                    return found
    return None


class Estimating:
    """Estimates one recipe on one kind of device. Options set to `auto` get their most likely value."""

    def __init__(self, recipe: Recipe, lengths: Lengths, device: Device) -> None:
        recipe = presumed(recipe, gpu=device.is_gpu, rows=lengths.rows)
        self.recipe, self.lengths, self.device = recipe, lengths, device
        self.plan: Plan = recipe.method.plan(recipe)
        self.models = {role: self._model(role, use) for role, use in self.plan.models.items()}
        self._require_positions()
        self.most = min(MOST_DEVICES, recipe.training.batch_size)
        if not device.is_gpu:
            self.most = min(self.most, device.per_node)

    def _model(self, role: str, use: ModelUse) -> Model:
        """A model of the plan, with what `tune` and the terms add to the policy."""
        if role != "policy":
            return Model(use, read_shape(use))
        tune = self.recipe.tune
        if tune is not None and use.lora is not None:
            use = replace(use, lora=use.lora.model_copy(update={"r": use.lora.r + tune.rank}))
        return Model(use, read_shape(use), copies=sum(term.weight_copies for term in self.recipe.terms))

    def on(self, stage: sharding.Stage, count: int, micro: int | None = None) -> Estimate:
        """The estimate on one layout."""
        training = self.recipe.training
        if stage.sharding is not None and training.reference_store == "on":
            return self._scoring_in_steps.on(stage, count, micro)
        self._require_devices(stage, count)
        micro, forwards = self._split(count, micro)
        layout = Layout(
            stage,
            count,
            self.device.is_gpu,
            training.optimizer,
            mixed=training.mixed_precision in HALVES,
            accumulates=forwards > 1,
        )
        longest, mean = self.work(micro, longest=True), self.work(micro, longest=False)
        memory = peak(self.models, layout, longest, self._traces(longest, layout), self._evaluation(layout))
        rows = self.lengths.rows
        step = timing.seconds(
            self.device,
            layout,
            self.models,
            mean,
            forwards=forwards,
            rows=rows or 0,
            checkpointing=training.gradient_checkpointing is True,
        )
        step = self._with_tuning(step)
        steps, passes = run_steps(self.lengths.rows, training)
        trained_rows = rows * passes if rows else training.batch_size * (steps or 0)
        trained = [part for part in mean.passes if part.model == "policy" and part.trains]
        sequences = sum(part.sequences * part.times for part in trained) / micro
        known = steps is not None
        return Estimate(
            device=self.device,
            devices=count,
            stage=stage.name,
            micro_batch_size=micro,
            models=self.models,
            lengths=self.lengths,
            memory=memory,
            steps=steps,
            tokens=round(sequences * self.lengths.mean * trained_rows) if known else None,
            step_seconds=step,
            seconds=(steps or 0) * step.step + step.drawing + step.scoring if known else None,
            disk=disk(self.recipe, self.models, layout, steps, passes),
        )

    @cached_property
    def _scoring_in_steps(self) -> "Estimating":
        """The estimate of a run whose weights are sharded, which cannot store the reference's log-probs."""
        training = self.recipe.training.model_copy(update={"reference_store": "off"})
        recipe = self.recipe.model_copy(update={"training": training})
        return Estimating(recipe, self.lengths, self.device)

    def _with_tuning(self, step: Seconds) -> Seconds:
        """The time of a step with its part of the held-out steps of `tune`, as one process computes them."""
        tune = self.recipe.tune
        if tune is None:
            return step
        rows = self.recipe.training.batch_size
        own = sum(step.computing.values()) * tune.rows / rows / tune.every
        return replace(step, computing={**step.computing, "tuning": own})

    def _split(self, count: int, micro: int | None) -> tuple[int, int]:
        """(rows per forward, forwards per step) of a process. Raises EstimateError if the batch does not divide."""
        training = self.recipe.training
        per_process = training.batch_size // count
        micro = micro or _given(training) or per_process
        if per_process % micro:
            raise EstimateError(
                f"training.batch_size: expected a multiple of {count} devices x micro_batch_size {micro}, "
                f"found {training.batch_size}"
            )
        return micro, per_process // micro

    def counts(self) -> list[int]:
        """Numbers of devices that divide the batch: up to those of a node, then whole nodes."""
        training, node = self.recipe.training, self.device.per_node
        micro = _given(training) or 1
        possible = [*range(1, min(node, self.most) + 1), *range(2 * node, self.most + 1, node)]
        return [count for count in possible if training.batch_size % (count * micro) == 0]

    def stages(self, count: int) -> list[sharding.Stage]:
        """Stages that are possible with that many devices and train the recipe; a CPU cannot offload."""
        return [
            stage
            for stage in sharding.fitting(count)
            if (self.device.is_gpu or not stage.offload) and not self._refusals(stage)
        ]

    def largest(self, stage: sharding.Stage, count: int, tokens: int | None = None) -> Estimate | None:
        """The estimate with the recipe's micro-batch, or else the largest that fits; None if none does.

        With `tokens`, the smallest micro-batch with that many tokens on average is enough.
        """
        *smaller, whole = self.micro_batches(count, tokens)
        # The whole share keeps no gradients of earlier forwards; for smaller ones memory grows with the rows.
        first = self.on(stage, count, smaller[0] if smaller else whole)
        spared = replace(first.memory, peak=first.memory.peak - first.memory.kinds["gradients"])
        if not replace(first, memory=spared).fits:
            return None
        found = self.on(stage, count, whole)
        if found.fits:
            return found
        fitting = bisect_left(smaller, True, key=lambda micro: not self.on(stage, count, micro).fits)
        return self.on(stage, count, smaller[fitting - 1]) if fitting else None

    def smallest_peak(self, stage: sharding.Stage, count: int) -> int:
        """The peak of the smallest micro-batch that the recipe allows, bytes."""
        return self.on(stage, count, self.micro_batches(count)[0]).memory.peak

    def micro_batches(self, count: int, tokens: int | None = None) -> list[int]:
        """The recipe's micro-batch, or else all sizes that divide a process's share, up to one with `tokens`."""
        per_process, given = self.recipe.training.batch_size // count, _given(self.recipe.training)
        if given or self.plan.micro_batch_matters:
            return [given or per_process]
        found = [micro for micro in range(1, per_process + 1) if per_process % micro == 0]
        row = self.lengths.sequences * self.lengths.mean
        enough = [micro for micro in found if tokens is not None and micro * row >= tokens]
        return found[: found.index(enough[0]) + 1] if enough else found

    def work(self, rows: int, *, longest: bool) -> Work:
        """The passes of a micro-batch of so many rows, all as long as the longest or as the mean."""
        found = self.lengths
        return self.plan.work(
            Batch(
                rows=rows,
                length=found.longest if longest else found.mean,
                loss_tokens=found.longest_loss_tokens if longest else found.mean_loss_tokens,
                prompt=found.longest_prompt if longest else found.mean_prompt,
                sequences=found.sequences,
                heads={role: self._head(model) for role, model in self.models.items()},
                gpu=self.device.is_gpu,
            )
        )

    def _head(self, model: Model) -> HeadSize:
        mixed = self.recipe.training.mixed_precision in HALVES
        return HeadSize(
            model.shape.hidden,
            model.shape.vocabulary,
            2 if mixed else model.itemsize,
            has_gradient=model.use.trains,
            trains=model.shape.head_trains,
        )

    def _traces(self, work: Work, layout: Layout) -> dict[Pass, activations.Activations]:
        return {step: self._trace(step, layout) for step in work.passes}

    def _trace(self, step: Pass, layout: Layout) -> activations.Activations:
        model = self.models[step.model]
        trains = step.trains
        use = model.use if trains or model.use.lora is not None else replace(model.use, trains=False)
        forward = activations.Forward(
            step.sequences,
            round(step.length),
            backward=trains,
            checkpointing=trains and self.recipe.training.gradient_checkpointing is True,
            autocast=layout.mixed and layout.stage.engine != "deepspeed",
            attention=self.recipe.model.attn_implementation,
        )
        return activations.measure(use, forward, model.shape.layers)

    def _evaluation(self, layout: Layout) -> dict[Pass, activations.Activations]:
        """The passes of an evaluation batch, all without gradients; empty without validation data."""
        if self.recipe.data.validation is None:
            return {}
        work = self.work(int(self.recipe.training.eval_batch_size), longest=True)
        scored = [
            replace(step, trains=False, head=step.head._replace(kept=0, backward=0)) for step in work.passes
        ]
        return self._traces(replace(work, passes=tuple(scored)), layout)

    def _require_devices(self, stage: sharding.Stage, count: int) -> None:
        training, most = self.recipe.training, self.most
        if not 1 <= count <= most:
            reasons = [f"training.batch_size is {training.batch_size} rows"]
            reasons += [] if self.device.is_gpu else [f"this machine has {self.device.per_node} cores"]
            raise EstimateError(f"devices: expected 1 to {most:,} ({', '.join(reasons)}), found {count:,}")
        if not stage.goes_with(count):
            raise EstimateError(f"stage: {stage.name} is not possible with {count} device{'s'[: count > 1]}")
        if training.batch_size % count:
            raise EstimateError(
                f"training.batch_size: expected a multiple of {count} devices, found {training.batch_size}"
            )
        self.require_trainable(stage)

    def require_trainable(self, stage: sharding.Stage) -> None:
        """Raise EstimateError if training would refuse the recipe under this stage."""
        for issue in self._refusals(stage):
            raise EstimateError(f"stage: {stage.name} cannot train this recipe: {issue}")

    def _refusals(self, stage: sharding.Stage) -> list[FieldIssue]:
        return list(refused_under(stage.sharding, self.recipe))

    def _require_positions(self) -> None:
        for model in self.models.values():
            most = model.shape.max_positions
            if most is not None and self.lengths.longest > most:
                raise EstimateError(
                    f"data.max_length: {model.use.path} has {most:,} positions, found rows of "
                    f"{self.lengths.longest:,} tokens"
                )


def _given(training: TrainingSection) -> int | None:
    """The micro-batch that the recipe sets; None if it sets none."""
    return training.micro_batch_size if isinstance(training.micro_batch_size, int) else None


def presumed(recipe: Recipe, *, gpu: bool, rows: int | None) -> Recipe:
    """The recipe with likely values for `auto`, which an estimate starts from before it tries any.

    `rows` is the number of training rows; None if it is unknown.
    """
    model = {"dtype": loaded_dtype(gpu=gpu, frozen=recipe.lora is not None), "attn_implementation": None}
    training = {
        "gradient_checkpointing": False,
        "eval_batch_size": 8,
        "mixed_precision": "bf16" if gpu else "no",
        "reference_store": "on" if worth_storing(recipe, rows or UNKNOWN_ROWS) else "off",
    }
    return recipe.model_copy(
        update={
            name: section.model_copy(
                update={key: value for key, value in values.items() if getattr(section, key) == "auto"}
            )
            for name, section, values in (
                ("model", recipe.model, model),
                ("training", recipe.training, training),
            )
        }
    )
