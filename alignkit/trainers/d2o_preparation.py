"""The part of D2OTrainer that prepares rows: tokens, samples, and their log-probs under the references."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import Tensor
from trl import DPOTrainer

from alignkit.data.nodes import RowError
from alignkit.data.rows import DispreferredRow, parse_dispreferred
from alignkit.data.template import ends_first
from alignkit.data.tokens import TokenSequence
from alignkit.errors import DataError
from alignkit.kernels.model_head import fuse_head
from alignkit.methods import D2O
from alignkit.models.loading import ends_of
from alignkit.run.reference_store import ReferenceStore
from alignkit.sampling import LocalSampler, Sampler, SampleStore, SamplingOptions, ServerSampler, digest
from alignkit.trainers.configs import DispreferredConfig
from alignkit.trainers.d2o_rows import SAMPLING_PROMPTS, D2ORow, D2ORows, tokenise
from alignkit.trainers.packing import PacksBatches
from alignkit.trainers.references import References
from alignkit.trainers.stored_references import StoredReferences
from alignkit.trainers.tokenised import refuse_streams
from alignkit.trainers.upstream import unwrap_model_for_generation, weights_digest


class D2OPreparation(PacksBatches, StoredReferences, DPOTrainer):
    """DPOTrainer whose datasets hold row numbers. The rows hold samples and reference scores, which may be renewed.

    TRL calls two hooks for each dataset: `_prepare_dataset` before the Trainer is built and `_precompute_ref_logps`
    afterwards. A dataset given to `evaluate` goes through both too.
    """

    method: D2O

    def __init__(
        self,
        model: Any,
        args: DispreferredConfig,
        *,
        report: Callable[[str], None] | None,
        references: ReferenceStore | None = None,
        packing: bool | None = False,
        **kwargs: Any,
    ) -> None:
        refuse_streams(kwargs, "samples are drawn and scored for all rows before the first step")
        self.report = report or (lambda message: warnings.warn(message, stacklevel=2))
        self._folder = Path(args.samples_dir or Path(args.output_dir) / "samples")
        self._prepared: list[D2ORow] = []
        self._rows: D2ORows | None = None
        self._store = references
        self._packing = packing
        self.references = References(self, self._folder, self.report)
        super().__init__(model=model, args=args, data_collator=_collate, **kwargs)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: DispreferredConfig, dataset_name: str
    ) -> Any:
        if not isinstance(dataset, Dataset):
            raise TypeError(f"{dataset_name}: expected a datasets.Dataset, found {type(dataset).__name__}")
        if "row" in dataset.column_names:
            return dataset
        tokenised = dataset
        if SAMPLING_PROMPTS not in dataset.column_names:
            tokenised = self._tokenise(dataset, processing_class, args, dataset_name)
        columns: dict[str, list[Any]] = {"row": [], "prompt_ids": [], "rejected_ids": []}
        for example in tokenised:
            columns["row"].append(len(self._prepared))
            columns["prompt_ids"].append(example["prompt_ids"])
            columns["rejected_ids"].append(example["rejected_ids"])
            self._prepared.append(D2ORow.of(example))
        if not columns["row"]:
            raise DataError(f"{dataset_name}: no row is left: max_length leaves no room for any answer")
        return Dataset.from_dict(columns)

    def _tokenise(self, dataset: Dataset, tokenizer: Any, args: DispreferredConfig, name: str) -> Dataset:
        """Tokenise a dataset in one of `parse_dispreferred`'s forms."""
        try:
            rows = [_parse(number, example) for number, example in enumerate(dataset, start=1)]
            return tokenise(
                rows,
                tokenizer,
                instructions=self.method.instruction_pool,
                max_length=args.max_length,
                report=lambda message: self.report(f"{name}: {message}"),
            )
        except DataError as error:
            raise DataError(f"{name}, {error}") from error

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:  # noqa: ARG002 - TRL's hook
        """Draw the samples that the data lacks, and score all answers under the references."""
        if self._rows is None:
            self._rows = self._start_rows()
        numbers = list(dataset["row"])
        rows = self._rows.rows
        self.draw([number for number in numbers if not rows[number].samples and not rows[number].given])
        empty = [number for number in numbers if not rows[number].samples]
        if empty:
            texts = [rows[number].text for number in empty[:3]]
            found = f"{len(empty):,} of {len(numbers):,} rows have no sample left, such as those that begin {texts}"
            if len(empty) == len(numbers):
                raise DataError(f"{name}: {found}: raise temperature, max_tokens or redraws")
            self.report(f"{name}: {found}; they are dropped")
            dataset = dataset.select([i for i, number in enumerate(numbers) if rows[number].samples])
            numbers = list(dataset["row"])
        counts = [len(rows[number].samples) for number in numbers]
        if min(counts) < max(counts):
            self.report(
                f"{name}: rows have {min(counts)} to {max(counts)} samples; each row averages over its own"
            )
        self.score(numbers)
        return dataset

    def _start_rows(self) -> D2ORows:
        policy = self._unwrapped()
        fuse_head(policy.get_base_model() if is_peft_model(policy) else policy, entropy=True)
        reason = self.use_packing(wanted=self._packing)
        if reason is not None and self._packing is not False:
            self.report(f"Batches are padded, not packed: {reason}")
        args, method = self.args, self.method
        rows = D2ORows(
            self.accelerator,
            self.processing_class,
            SampleStore(self._folder),
            SamplingOptions(
                count=method.samples_per_prompt,
                temperature=method.temperature,
                top_p=method.top_p,
                max_tokens=method.max_tokens,
                redraws=method.redraws,
            ),
            seed=args.seed,
            max_length=args.max_length,
            report=self.report,
        )
        rows.rows = self._prepared
        return rows

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["row"]

    @property
    def rows(self) -> D2ORows:
        """The rows, indexed by the numbers in the datasets' column `row`."""
        if self._rows is None:
            raise RuntimeError("the trainer is still being built")
        return self._rows

    def draw(self, numbers: list[int], step: int | None = None) -> list[int]:
        """Draw samples for these rows: from the reference, or at a `step` from the policy.

        Returns the numbers of the rows that got no sample.
        """
        if not numbers:
            return []
        method = self.method
        source = f"policy at step {step}" if step else self.references.identity(method.sample_reference)
        server = f"server's {method.sampler_model}" if method.sampler_url else "here"
        identity = digest(self._run_identity(step), source, server)
        return self.rows.draw(numbers, identity, lambda: self._sampler(step), step or 0)

    def score(self, numbers: list[int]) -> None:
        """Score these rows' samples and dispreferred answers under the references.

        Scores of the policy before its first step are read from the store of references, if there is one.
        """
        method = self.method
        paths = {"samples": method.sample_reference, "rejected": method.rejected_reference}
        for path in sorted(set(paths.values()), key=str):
            if path is None and self._store is not None and self.state.global_step == 0:
                scored = {name: paths[name] is None for name in paths}
                self.rows.take_scores(
                    numbers, self._stored_scores(self.rows.sequences_of(numbers, **scored)), **scored
                )
                continue
            self.rows.score(
                numbers,
                digest(self._run_identity(self.state.global_step), self.references.identity(path)),
                lambda path=path: self.references.open(path),  # type: ignore[misc]
                samples=paths["samples"] == path,
                rejected=paths["rejected"] == path,
                reduction=method.logps,
                batch_size=method.sequence_batch_size,
                step=self.state.global_step,
            )

    def _stored_scores(self, sequences: list[TokenSequence]) -> list[float]:
        sums = self.reference_sums(sequences)
        if self.method.logps == "sum":
            return sums
        counts = [max(1, sum(end - max(start, 1) for start, end in one.loss_spans)) for one in sequences]
        means: list[float] = (torch.tensor(sums) / torch.tensor(counts)).tolist()
        return means

    def _run_identity(self, step: int | None) -> str:
        """A digest of what determines the policy at `step`: initial weights and, after step 0, the configuration."""
        if not step:
            return weights_digest(self)
        apart = {"output_dir", "logging_dir", "run_name", "samples_dir"}
        given = self.args.to_dict() | self.method.model_dump()
        options = {name: str(value) for name, value in given.items() if name not in apart}
        return digest(weights_digest(self), options)

    @contextlib.contextmanager
    def _sampler(self, step: int | None) -> Iterator[Sampler]:
        method = self.method
        if method.sampler_url is not None:
            with ServerSampler(
                method.sampler_url,
                self.processing_class,
                model=method.sampler_model,
                ends=self._ends(self._unwrapped()),
            ) as server:
                if step:
                    self._serve_policy(server, step)
                yield server
            return
        opened = (
            contextlib.nullcontext(self.references.policy())
            if step
            else self.references.open(method.sample_reference)
        )
        with (
            opened as model,
            unwrap_model_for_generation(
                model,
                self.accelerator,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as bare,
        ):
            size = method.sampling_batch_size
            yield LocalSampler(bare, self.processing_class, batch_size=size, ends=self._ends(bare))

    def _ends(self, model: Any) -> list[int]:
        """The tokens that end an answer, the chat template's first: a server's configuration may lack it."""
        return ends_first(ends_of(model, self.processing_class), self.processing_class)

    def _serve_policy(self, server: ServerSampler, step: int) -> None:
        """Load the current adapter on the server, under a unique name."""
        if not is_peft_model(self._unwrapped()):
            raise DataError(
                "resample_every with sampler_url needs LoRA: the server can load a new adapter, but not new weights"
            )
        folder = self._folder / f"adapter-step-{step}"
        self.save_model(str(folder), _internal_call=True)
        self.accelerator.wait_for_everyone()
        name = f"d2o-{digest(str(folder.resolve()), self._run_identity(step))}-{step}"
        if self.accelerator.is_main_process:
            server.load_adapter(name, folder)
        self.accelerator.wait_for_everyone()
        server.model = name

    def _unwrapped(self) -> Any:
        return self.accelerator.unwrap_model(self.model)


def _parse(number: int, example: dict[str, Any]) -> DispreferredRow:
    try:
        return parse_dispreferred(example)
    except RowError as error:
        raise DataError(f"row {number}: {error}") from error


def _collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch of row numbers, since a row's samples may change while batches wait."""
    return {"row": torch.tensor([example["row"] for example in examples])}
