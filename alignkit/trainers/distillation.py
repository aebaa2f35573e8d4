"""A TRL trainer for distillation: SFTTrainer with student and teacher in one module and any method's loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from peft import PeftConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTTrainer

from alignkit.errors import ModelError
from alignkit.kernels.model_head import fuse_head
from alignkit.losses.distillation import TOKEN_METRICS, PairOutput
from alignkit.methods import DistillMethod
from alignkit.models.adapters import keep_start
from alignkit.run.folder import SAVED_TEACHER
from alignkit.trainers.base import AlignTrainer
from alignkit.trainers.configs import DistillationConfig, default_folder, require_config
from alignkit.trainers.metrics import gather_rows, real_rows
from alignkit.trainers.pair import TeacherStudentPair, part_of_state
from alignkit.trainers.signature import Model, shows_parameters_of
from alignkit.trainers.tokenised import require_completions
from alignkit.trainers.upstream import get_config_model_id
from alignkit.trainers.vocabulary import require_labels_within, require_same_tokenizer, shared_vocabulary


class DistillationTrainer(AlignTrainer, SFTTrainer):
    """SFTTrainer whose model is a `TeacherStudentPair` and whose loss is `method.objective`.

    Data preparation, adapters and checkpointing are TRL's. The loss is the mean over the loss tokens of the whole
    optimizer step, so that micro-batches and processes do not change it. The saved model is the student. The method's
    options are its own fields; it reads none from `args`.
    """

    @shows_parameters_of(SFTTrainer)
    def __init__(
        self,
        model: Model | None = None,
        teacher_model: Model | None = None,
        args: DistillationConfig | None = None,
        *,
        method: DistillMethod,
        teacher_processing_class: PreTrainedTokenizerBase | None = None,
        teacher_peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        """Create the trainer. `teacher_model` is a model, a folder or a hub id.

        The teacher's tokenizer is `teacher_processing_class`, or is loaded from the same place as the teacher. Raises
        TypeError, before loading any model, if `args` is not a `DistillationConfig`, and DataError if SFTTrainer
        cannot read a dataset's columns. Raises ModelError if the teacher's tokenizer differs from the student's, or
        its vocabulary is too small for the labels.
        """
        self.method = method
        self._tag_names = ["trl", method.type.replace("_", "-"), "alignkit"]
        if args is None:
            args = DistillationConfig(default_folder(model, method.type))
        require_config(args, DistillationConfig)
        if teacher_peft_config is not None and method.teacher_training is None:
            raise ValueError(f"teacher_peft_config is given, but the teacher of {method.type} does not train")
        if teacher_model is None:
            raise ValueError("teacher_model is required: a model, a folder or a hub id")
        require_completions(args, kwargs)
        if is_peft_model(model):
            keep_start(model)
        super().__init__(model=model, args=args, **kwargs)
        teacher = _load_teacher(teacher_model, args)
        require_same_tokenizer(self.processing_class, teacher_processing_class or _tokenizer_of(teacher))
        columns = shared_vocabulary(self.model, teacher)
        require_labels_within(self.train_dataset, columns, "training")
        require_labels_within(self.eval_dataset, columns, "held-out")
        self._pair_up(teacher, teacher_peft_config)
        self._saves_teacher = False

    def _pair_up(self, teacher: Any, teacher_peft_config: Any) -> None:
        """Replace the student by the pair, before anything wraps the model."""
        student = self.model
        if is_peft_model(student) and student.active_peft_config.is_prompt_learning:
            raise ValueError(
                "prompt learning is not supported: the losses need the hidden states of the row's tokens only"
            )
        fuse_head(student.get_base_model() if is_peft_model(student) else student, entropy=True, top1=True)
        fuse_head(teacher)  # so that it can be checked like the student
        teacher.config.use_cache = False
        if teacher_peft_config is not None:
            teacher = _with_adapter(teacher, teacher_peft_config, self.args)
        trains = self.method.teacher_training is not None
        pair = TeacherStudentPair(student, teacher, self.method.objective, teacher_trains=trains)
        if self.place_model_on_device:
            pair.to(self.args.device)
        self.model = self.model_wrapped = self.callback_handler.model = pair
        # The Trainer derived these from the student's forward; the pair's forward decides.
        self.model_accepts_loss_kwargs = self._loss_shifts_labels = True

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,  # noqa: FBT001, FBT002 - transformers' signature
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the pair's loss, averaged over the optimizer step's loss tokens."""
        training = self._mode == "train"
        is_real = self.pop_is_real(inputs)
        # A resumed run repeats the draws of an uninterrupted one; every evaluation makes the same draws.
        # A CPU generator reads the low 32 bits of its seed alone.
        seed = (self.args.seed * 1_000_003 + (self.state.global_step if training else 0)) % 2**32
        if not training:
            inputs = self._without_padding_rows(inputs)
        outputs: PairOutput = model(**inputs, seed=seed, calibrate=not training)
        self._record(outputs, inputs, is_real)
        count = outputs.tokens.sum() if num_items_in_batch is None else num_items_in_batch
        loss = outputs.loss / torch.as_tensor(count, device=outputs.loss.device).clamp(min=1)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the count covers all ranks, and DDP averages
        return (loss, outputs) if return_outputs else loss

    def _without_padding_rows(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs without loss on padding rows, which must not enter a set of the transport."""
        labels = inputs["labels"].clone()
        labels[real_rows(self.accelerator, len(labels)) :] = -100
        return {**inputs, "labels": labels}

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,  # noqa: ARG002, FBT001 - transformers' signature
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """Return the loss only, since no logits are made."""
        return super().prediction_step(model, inputs, True, ignore_keys)

    def _record(self, outputs: PairOutput, inputs: dict[str, Tensor], is_real: Tensor | None) -> None:
        """Record the sums of each sequence in one collective, without padding rows."""
        columns = torch.stack([*outputs.sums.values()], dim=1)
        names = tuple(outputs.sums)
        own = [index for index, name in enumerate(names) if name in TOKEN_METRICS]
        self._require_finite(columns[:, own], inputs, [names[index] for index in own])
        self._require_finite(
            columns, inputs, names
        )  # second, since a set's transport cannot tell which of its rows is at fault
        counts = torch.stack([outputs.tokens, inputs["attention_mask"].sum(dim=1)], dim=1)
        parts = [columns.double(), counts.double(), *(b.flatten(1) for b in outputs.calibration.values())]
        gathered = gather_rows(self.accelerator, torch.cat(parts, dim=1), is_real).sum(dim=0)
        sums, (tokens, seen), *bins = gathered.split([part.size(1) for part in parts])
        items = self._items[self._mode]
        for name, total in zip(outputs.sums, sums.tolist(), strict=True):
            # The Trainer logs the training loss; its evaluation loss is a mean over batches and is replaced.
            if name != "loss" or self._mode == "eval":
                items.add_ratio(name, total, float(tokens))
        for name, flat in zip(outputs.calibration, bins, strict=True):
            items.add_calibration(f"{name}/ece", flat.view(-1, 3))
        if self._mode == "train":
            self.count_tokens(int(seen))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create TRL's optimizer, with separate groups for a teacher that has its own learning rate."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        training = self.method.teacher_training
        if training is not None and training.learning_rate is not None:
            of_teacher = {id(weight) for weight in self._pair.teacher.parameters()}
            split = [
                {**group, "params": weights, **own}
                for is_teacher, own in ((False, {}), (True, {"lr": training.learning_rate}))
                for group in optimizer.param_groups
                if (weights := [w for w in group["params"] if (id(w) in of_teacher) is is_teacher])
            ]
            optimizer.param_groups[:] = split
        return optimizer

    @property
    def _pair(self) -> TeacherStudentPair:
        pair: TeacherStudentPair = self.accelerator.unwrap_model(self.model)
        return pair

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:  # noqa: FBT001, FBT002 - transformers' signature
        """Save the student. A checkpoint also holds a training teacher; a final model only if the method saves it."""
        training = self.method.teacher_training
        self._saves_teacher = training is not None and (_internal_call or training.saved)
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        pair, folder = self._pair, Path(output_dir or self.args.output_dir)
        with self._in_place_of_the_pair(pair.student):
            super()._save(str(folder), part_of_state(state_dict, "student"))
        if self._saves_teacher:
            with self._in_place_of_the_pair(pair.teacher):
                super()._save(str(folder / SAVED_TEACHER), part_of_state(state_dict, "teacher"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:  # an FSDP checkpoint holds the pair as one model
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        pair = self._pair if model is None else self.accelerator.unwrap_model(model)
        super()._load_from_checkpoint(resume_from_checkpoint, pair.student)
        if pair.teacher_trains:
            super()._load_from_checkpoint(str(Path(resume_from_checkpoint) / SAVED_TEACHER), pair.teacher)

    def _load_best_model(self) -> None:
        """Load the student's weights, and the teacher's if the folder has them."""
        if self.is_fsdp_enabled:
            super()._load_best_model()
            return
        pair, best = self._pair, self.state.best_model_checkpoint
        with self._in_place_of_the_pair(pair.student):
            super()._load_best_model()
        teacher = Path(best) / SAVED_TEACHER
        if pair.teacher_trains and teacher.is_dir() and not self.is_deepspeed_enabled:
            self.state.best_model_checkpoint = str(teacher)
            with self._in_place_of_the_pair(pair.teacher):
                super()._load_best_model()
            self.state.best_model_checkpoint = best

    @contextmanager
    def _in_place_of_the_pair(self, model: Any) -> Iterator[None]:
        pair, self.model = self.model, model
        try:
            yield
        finally:
            self.model = pair


def _load_teacher(teacher: Any, args: DistillationConfig) -> Any:
    if not isinstance(teacher, str):
        return teacher
    options = args.teacher_model_init_kwargs if isinstance(args.teacher_model_init_kwargs, dict) else {}
    try:
        return AutoModelForCausalLM.from_pretrained(teacher, **{"trust_remote_code": False, **options})
    except (OSError, ValueError) as error:
        raise ModelError(f"the teacher {teacher} cannot be loaded: {error}") from error


def _tokenizer_of(teacher: Any) -> Any:
    name = get_config_model_id(teacher.config)
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the teacher's tokenizer, needed to compare it with the student's, cannot be loaded from {name!r}; "
            f"give teacher_processing_class: {error}"
        ) from error


def _with_adapter(teacher: Any, peft_config: Any, args: DistillationConfig) -> Any:
    from peft import get_peft_model  # saves peft at start-up

    plugin = args.deepspeed_plugin
    # Like TRL for the student: ZeRO-3 gathers parameters of one dtype only.
    options = {"autocast_adapter_dtype": False} if plugin is not None and plugin.zero_stage == 3 else {}
    adapted = get_peft_model(teacher, peft_config, **options)
    if args.gradient_checkpointing:
        adapted.enable_input_require_grads()
    return adapted
