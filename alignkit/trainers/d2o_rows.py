"""D2O's rows: prompts and answers in tokens, samples (given or drawn), and log-probs under the references."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset

from alignkit.data.messages import Message
from alignkit.data.rows.dispreferred import DISPREFERRED, DispreferredRow
from alignkit.data.tokens import TokenSequence, render_prompt, render_rows
from alignkit.packing import is_packed
from alignkit.sampling import Sampler, SampleStore, SamplingOptions, SamplingPrompt, digest, draw
from alignkit.trainers.sequences import Reduction, parts_for_rank, parts_of, sequence_logps

SAMPLING_PROMPTS = "sampling_prompt_ids"
"""Column of a tokenised dataset: the prompts to sample from, one for each instruction of the pool."""
BLOCK = 64
"""Prompts to sample and store at a time. An interrupted run loses at most one block per process."""


@dataclass(slots=True)
class D2ORow:
    """A tokenised row with its samples and reference scores."""

    prompt: SamplingPrompt
    begin: list[int]
    """Token ids of the prompt without any instruction; drawn samples are scored after it."""
    rejected: TokenSequence
    samples: list[TokenSequence]
    given: bool
    """Whether the data has samples for the row, so that none are drawn."""
    text: str
    """The beginning of the row's last prompt message, for error messages."""
    ref_rejected: float = 0.0
    ref_samples: list[float] = field(default_factory=list)
    group: str | None = None

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> "D2ORow":
        """Make a row from the columns that `tokenise` returns."""
        context = list(columns["prompt_ids"])

        def sequence(name: str, answer: Sequence[int]) -> TokenSequence:
            ids = [*context, *answer]
            return TokenSequence(name, ids, ((len(context), len(ids)),))

        return cls(
            prompt=SamplingPrompt(
                renderings=tuple(map(tuple, columns[SAMPLING_PROMPTS])), unwanted=columns["rejected_text"]
            ),
            begin=list(columns["begin_ids"]),
            rejected=sequence("rejected", columns["rejected_ids"]),
            samples=[
                sequence(f"sample {number}", answer)
                for number, answer in enumerate(columns["sample_ids"], start=1)
            ],
            given=columns["given"],
            text=columns["text"],
            group=columns.get("group"),
        )


def tokenise(
    rows: Iterable[DispreferredRow],
    tokenizer: Any,
    *,
    instructions: Sequence[str] = (),
    max_length: int | None,
    report: Callable[[str], None],
) -> Dataset:
    """Return the tokenised dataset for D2OTrainer: rows as `alignkit.data.render` gives them, and their prompts.

    Drops a row if its prompt leaves no room for an answer within `max_length`, or if the answer has no token.
    `report` gets the number of dropped rows. Raises DataError, naming the row (from 1), if the chat template refuses
    a conversation.
    """
    found = list(render_rows(rows, tokenizer, lambda row, by: _columns(row, by, instructions, max_length)))
    kept = [columns for columns in found if columns is not None]
    if len(kept) < len(found):
        report(f"{len(found) - len(kept):,} rows dropped: max_length leaves no room for an answer")
    return Dataset.from_list(kept)


def _columns(
    row: DispreferredRow, tokenizer: Any, instructions: Sequence[str], max_length: int | None
) -> dict[str, Any] | None:
    begin = render_prompt(row.prompt, row.tools, tokenizer)
    sequences = [one.cut_to(max_length) for one in row.render(tokenizer)]
    if not sequences[0].loss_spans or (max_length is not None and len(begin) >= max_length):
        return None
    asked = [row.prompt] if not instructions else [_instructed(row.prompt, text) for text in instructions]
    (columns,) = DISPREFERRED.columns([sequences[0], *(one for one in sequences[1:] if one.loss_spans)])
    return columns | {
        "begin_ids": begin,
        SAMPLING_PROMPTS: [render_prompt(prompt, row.tools, tokenizer) for prompt in asked],
        "given": row.samples is not None,
        "rejected_text": str(row.rejected[-1]["content"]),
        "text": str(row.prompt[-1]["content"])[:80],
        "group": row.group,
    }


def _instructed(prompt: list[Message], instruction: str) -> list[Message]:
    """The prompt with the instruction before the last user turn, since not every template has a system turn."""
    last = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=len(prompt) - 1)
    asked = {**prompt[last], "content": f"{instruction}\n\n{prompt[last]['content']}"}
    return [*prompt[:last], asked, *prompt[last + 1 :]]


class D2ORows:
    """All rows of a trainer by number, both training and held-out.

    Collective: every rank holds all rows and must call `draw` and `score`. Results in `store` are not computed again.
    Rank 0 decides what the store holds.
    """

    def __init__(
        self,
        accelerator: Any,
        tokenizer: Any,
        store: SampleStore,
        options: SamplingOptions,
        *,
        seed: int,
        max_length: int | None,
        report: Callable[[str], None],
    ) -> None:
        self.rows: list[D2ORow] = []
        self._accelerator = accelerator
        self.tokenizer = tokenizer
        self._store = store
        self._options = options
        self._seed = seed
        self._max_length = max_length
        self._report = report

    def add(self, row: D2ORow) -> int:
        """Add a row and return its number."""
        self.rows.append(row)
        return len(self.rows) - 1

    def draw(
        self,
        numbers: Sequence[int],
        identity: str,
        open_sampler: Callable[[], AbstractContextManager[Sampler]],
        step: int,
    ) -> list[int]:
        """Draw new samples for the rows from a model with this identity, at this step.

        Returns the numbers of the rows that got no new sample and keep their earlier ones. Raises SamplingError.
        """
        blocks = [numbers[start : start + BLOCK] for start in range(0, len(numbers), BLOCK)]
        keys = _first_process([self._draw_key(block, identity) for block in blocks])
        found = _first_process([self._store.read("samples", key) for key in keys])
        missing = [index for index, lines in enumerate(found) if lines is None]
        if missing:
            self._report(f"Drawing {self._options.count} samples for each of {len(numbers):,} prompts")
            rank, world = self._accelerator.process_index, self._accelerator.num_processes
            with open_sampler() as sampler:
                drawn = [
                    (index, self._draw_block(blocks[index], keys[index], sampler, step))
                    for index in missing[rank::world]
                ]
            for index, lines in gather_object(drawn):
                found[index] = lines
        for block, lines in zip(blocks, found, strict=True):
            for number, line in zip(block, lines, strict=True):
                self._take(self.rows[number], line["answers"])
        self._report_left_out([line for lines in found for line in lines])
        return [
            number
            for block, lines in zip(blocks, found, strict=True)
            for number, line in zip(block, lines, strict=True)
            if not line["answers"]
        ]

    def _draw_key(self, block: Sequence[int], identity: str) -> str:
        prompts = [asdict(self.rows[number].prompt) for number in block]
        return digest(identity, asdict(self._options), self._seed, prompts)

    def _draw_block(
        self, block: Sequence[int], key: str, sampler: Sampler, step: int
    ) -> list[dict[str, Any]]:
        prompts = [self.rows[number].prompt for number in block]
        # not of the weights: those of one process and of two differ in their last bits
        seed = int(digest(self._seed, step, [asdict(prompt) for prompt in prompts])[:7], 16)
        drawn = draw(prompts, sampler, self.tokenizer, self._options, seed=seed)
        lines = [
            {
                "prompt": self.rows[number].text,
                "answers": answers,
                "texts": [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers],
                "left_out": dict(left_out),
            }
            for number, answers, left_out in zip(block, drawn.answers, drawn.left_out, strict=True)
        ]
        self._store.write("samples", key, lines)
        return lines

    def _take(self, row: D2ORow, answers: list[list[int]]) -> None:
        start = len(row.begin)
        if answers:
            row.samples = [
                TokenSequence("sample", row.begin + ids, ((start, start + len(ids)),)).cut_to(
                    self._max_length
                )
                for ids in answers
            ]

    def _report_left_out(self, lines: list[dict[str, Any]]) -> None:
        left_out: Counter[str] = Counter()
        for line in lines:
            left_out.update(line["left_out"])
        short = sum(len(line["answers"]) < self._options.count for line in lines)
        if left_out:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
            self._report(
                f"Samples left out: {reasons}; {short:,} of {len(lines):,} rows have fewer than "
                f"{self._options.count}"
            )

    def score(
        self,
        numbers: Sequence[int],
        identity: str,
        open_model: Callable[[], AbstractContextManager[Any]],
        *,
        samples: bool,
        rejected: bool,
        reduction: Reduction,
        batch_size: int,
        step: int,
    ) -> None:
        """Score the rows' samples, dispreferred answers or both under a reference with this identity.

        Raises FloatingPointError, which names step and rows, if a log-prob is not finite.
        """
        sequences = self.sequences_of(numbers, samples=samples, rejected=rejected)
        key = digest(identity, reduction, [[one.ids, one.loss_spans] for one in sequences])
        values = _first_process([self._store.read("scores", key)])[0]
        if values is None:
            with open_model() as model:
                values = self._forward(model, sequences, reduction, batch_size)
            self._require_finite(values, numbers, samples=samples, rejected=rejected, step=step)
            if self._accelerator.is_main_process:
                self._store.write("scores", key, values)
        self.take_scores(numbers, values, samples=samples, rejected=rejected)

    def sequences_of(self, numbers: Sequence[int], *, samples: bool, rejected: bool) -> list[TokenSequence]:
        """The rows' dispreferred answers, samples or both: each row's dispreferred answer first."""
        return [
            sequence
            for number in numbers
            for sequence in (
                *([self.rows[number].rejected] if rejected else []),
                *(self.rows[number].samples if samples else []),
            )
        ]

    def take_scores(
        self, numbers: Sequence[int], values: Sequence[float], *, samples: bool, rejected: bool
    ) -> None:
        """Give the rows their reference log-probs, in the order of `sequences_of`."""
        left = iter(values)
        for number in numbers:
            row = self.rows[number]
            if rejected:
                row.ref_rejected = next(left)
            if samples:
                row.ref_samples = [next(left) for _ in row.samples]

    def _forward(
        self, model: Any, sequences: list[TokenSequence], reduction: Reduction, batch_size: int
    ) -> list[float]:
        accelerator = self._accelerator
        packed = is_packed(accelerator.unwrap_model(model))
        parts = parts_of(sequences, batch_size, packed=packed)
        scored: list[tuple[int, float]] = []
        was_training = model.training
        model.eval()
        with torch.no_grad(), accelerator.autocast():
            for part in parts_for_rank(parts, accelerator.process_index, accelerator.num_processes):
                result = sequence_logps(
                    model,
                    [sequences[index] for index in part],
                    pad_token_id=self.tokenizer.pad_token_id,
                    device=accelerator.device,
                    reduction=reduction,
                )
                scored += zip(part, result.logps.tolist(), strict=True)
        model.train(was_training)
        by_index = dict(gather_object(scored))
        return [by_index[index] for index in range(len(sequences))]

    def _require_finite(
        self, values: list[float], numbers: Sequence[int], *, samples: bool, rejected: bool, step: int
    ) -> None:
        counts = [rejected + samples * len(self.rows[number].samples) for number in numbers]
        finite = torch.isfinite(torch.tensor(values)).split(counts)
        bad = [number for number, good in zip(numbers, finite, strict=True) if not good.all()]
        if bad:
            texts = [self.rows[number].text for number in bad[:3]]
            raise FloatingPointError(
                f"the reference's log-probs are not finite at step {step}, rows {bad[:20]}, which begin: {texts}"
            )


def _first_process(values: list[Any]) -> list[Any]:
    """Rank 0's values, broadcast to all ranks."""
    broadcast_object_list(values, from_process=0)
    return values
