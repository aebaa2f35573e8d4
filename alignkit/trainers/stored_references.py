"""The reference's log-probs of a dataset's answers, computed once and read from a store by every later use.

A value depends on its content alone. Equal sequences are scored once; they are sorted by length and cut into forwards
of about TOKENS tokens, whatever the micro-batch, the number of processes and the order of the data. The batch of a
forward changes a float32 sum in its last bits, so the forward is part of an entry's name: a run that finds its
values, one that computes them again, and one that is resumed train on the same bits. Without a store, a step scores
the rows of its own micro-batch, and these values differ from the stored ones by that rounding: at most 1e-4 nats per
answer in float32 (as tested), in 16 bits as much as any two batches do.
"""

import hashlib
import json
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from accelerate.utils import broadcast_object_list, gather_object, is_peft_model
from datasets import Dataset, concatenate_datasets

from alignkit import __version__
from alignkit.data.tokens import TokenSequence
from alignkit.models.adapters import start_of
from alignkit.models.layers import layers_of
from alignkit.models.weights_digest import digest_of_weights
from alignkit.packing import is_packed
from alignkit.run.reference_store import ReferenceStore
from alignkit.trainers.sequences import by_prompt, sequence_logps
from alignkit.trainers.upstream import attention_of, use_adapter

TOKENS = 4096
"""Tokens of a forward, padding included; a longer sequence is scored alone."""
FORWARDS = 64
"""Forwards of an entry: what an interrupted run loses at most."""


class StoredReferences:
    """Mixin of a trainer whose reference is its policy before the first step, or `ref_model`.

    Collective: every process calls its methods with the same sequences. Weights must not be sharded.
    """

    _store: ReferenceStore | None = None
    _collator: Any = None
    _identity = ""

    def use_store(self, store: ReferenceStore) -> None:
        """Score the trainer's datasets under the reference, and let each step read the values from its rows."""
        trainer: Any = self
        self._store, self._collator = store, trainer.data_collator
        trainer.precompute_ref_logps = True
        trainer.train_dataset = self.with_references(trainer.train_dataset)
        held_out = trainer.eval_dataset
        if isinstance(held_out, dict):
            trainer.eval_dataset = {name: self.with_references(one) for name, one in held_out.items()}
        elif held_out is not None:
            trainer.eval_dataset = self.with_references(held_out)

    def with_references(self, dataset: Any) -> Any:
        """Add the columns of log-probs that the trainer's collator passes on. Raises TypeError for a stream."""
        if not isinstance(dataset, Dataset):
            raise TypeError(f"a reference store needs a datasets.Dataset, found {type(dataset).__name__}")
        rows = [self.scored_sequences(self._collator([row])) for row in dataset]
        names = list(rows[0])
        values = iter(self.reference_sums([row[name] for row in rows for name in names]))
        columns: dict[str, list[float]] = {name: [] for name in names}
        for _ in rows:
            for name in names:
                columns[name].append(next(values))
        kept = dataset.remove_columns([name for name in names if name in dataset.column_names])
        return concatenate_datasets([kept, Dataset.from_dict(columns)], axis=1)

    def scored_sequences(self, batch: dict[str, Any]) -> dict[str, TokenSequence]:
        """Return the sequences of a batch of one row, by the column that gets their log-prob."""
        raise NotImplementedError

    def reference_sums(self, sequences: Sequence[TokenSequence]) -> list[float]:
        """Return log-probs in nats, summed over loss tokens. Raises FloatingPointError if one is not finite."""
        trainer: Any = self
        assert self._store is not None  # noqa: S101 - only called with a store
        keys = [_content(sequence) for sequence in sequences]
        unique = dict(zip(keys, sequences, strict=True))
        forwards = list(_packed_forwards(unique) if self._packs() else _forwards(unique))
        entries = [forwards[start : start + FORWARDS] for start in range(0, len(forwards), FORWARDS)]
        names, found = _first_process(trainer, lambda: self._stored(entries))
        missing = [at for at, values in enumerate(found) if values is None]
        if missing:
            self._report(sum(len(part) for at in missing for part in entries[at]), len(unique))
            with self._reference() as model:
                for at in missing:
                    found[at] = self._scored(model, entries[at], unique)
                    _require_finite(found[at], entries[at], unique)
                    if trainer.accelerator.is_main_process:
                        self._store.write(names[at], found[at])
        by_key = {
            key: value
            for entry, values in zip(entries, found, strict=True)
            for key, value in zip((key for part in entry for key in part), values, strict=True)
        }
        return [by_key[key] for key in keys]

    def _stored(self, entries: list[list[list[bytes]]]) -> tuple[list[str], list[Any]]:
        """(names, values or None) of the entries; rank 0 reads for all."""
        assert self._store is not None  # noqa: S101 - only called with a store
        self._identity = self._identity or self._reference_identity()
        names = [_name(self._identity, entry) for entry in entries]
        counts = [sum(map(len, entry)) for entry in entries]
        return names, [self._store.read(name, count) for name, count in zip(names, counts, strict=True)]

    def _report(self, count: int, of: int) -> None:
        if self._store is not None and self.accelerator.is_main_process:  # type: ignore[attr-defined]
            known = f"; {of - count:,} others are stored already" if count < of else ""
            self._store.report(f"Scoring {count:,} answers under the reference, once for all epochs{known}")

    def _reference_identity(self) -> str:
        """A digest of what, beside the sequences of a forward, determines their log-probs to the last bit."""
        trainer: Any = self
        reference = trainer.accelerator.unwrap_model(trainer.ref_model or trainer.model)
        model = _bare(reference)
        device = trainer.accelerator.device
        facts = {
            "weights": digest_of_weights(reference),
            "dtype": str(model.dtype),
            "autocast": str(trainer.accelerator.mixed_precision),
            "products": torch.get_float32_matmul_precision(),
            "attention": attention_of(model),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "versions": [torch.__version__, transformers.__version__, __version__],
        }
        facts |= {"packed": True} if is_packed(reference) else {}
        facts |= {"layers": layers} if (layers := layers_of(reference)) is not None else {}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _packs(self) -> bool:
        """Whether the reference's forwards are packed; see `alignkit.packing`."""
        trainer: Any = self
        return is_packed(trainer.accelerator.unwrap_model(trainer.ref_model or trainer.model))

    @contextmanager
    def _reference(self) -> Iterator[Any]:
        """The reference in evaluation mode, to run without gradient. Random states do not change."""
        trainer: Any = self
        policy = trainer.accelerator.unwrap_model(trainer.model)
        model = policy if trainer.ref_model is None else trainer.accelerator.unwrap_model(trainer.ref_model)
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), trainer.accelerator.autocast():
                if trainer.ref_model is None and is_peft_model(policy):
                    with use_adapter(policy, adapter_name=start_of(policy)):
                        yield model
                else:
                    yield model
        finally:
            model.train(was_training)

    def _scored(
        self, model: Any, entry: list[list[bytes]], unique: dict[bytes, TokenSequence]
    ) -> list[float]:
        """The values of an entry in order; the processes share its forwards."""
        trainer: Any = self
        rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
        scored = [
            (
                at,
                sequence_logps(
                    model,
                    [unique[key] for key in part],
                    pad_token_id=trainer.processing_class.pad_token_id,
                    device=trainer.accelerator.device,
                    reduction="sum",
                ).logps.tolist(),
            )
            for at, part in list(enumerate(entry))[rank::world]
        ]
        by_place = dict(gather_object(scored))
        return [value for at in range(len(entry)) for value in by_place[at]]


def collated(batch: dict[str, Any], prefix: str = "") -> list[TokenSequence]:
    """Return the sequences of a collated batch with TRL's keys, without padding."""
    found = []
    for ids, attention, answer in zip(
        batch[f"{prefix}input_ids"],
        batch[f"{prefix}attention_mask"],
        batch[f"{prefix}completion_mask"],
        strict=True,
    ):
        kept = attention.bool()
        marks = torch.nn.functional.pad(answer[kept].long(), (1, 1)).diff()
        starts, ends = (marks == 1).nonzero()[:, 0].tolist(), (marks == -1).nonzero()[:, 0].tolist()
        found.append(TokenSequence("answer", ids[kept].tolist(), tuple(zip(starts, ends, strict=True))))
    return found


def _content(sequence: TokenSequence) -> bytes:
    """A digest of a sequence's ids and loss spans."""
    spans = array("q", [place for span in sequence.loss_spans for place in span]).tobytes()
    return hashlib.sha256(array("q", [len(sequence.ids), *sequence.ids]).tobytes() + spans).digest()


def _forwards(unique: dict[bytes, TokenSequence]) -> Iterator[list[bytes]]:
    """The sequences of each forward, by key: the longest first, and about TOKENS tokens with padding."""
    part: list[bytes] = []
    longest = 0
    for key in sorted(unique, key=lambda key: (-len(unique[key].ids), key)):
        if part and (len(part) + 1) * longest > TOKENS:
            yield part
            part = []
        longest = longest if part else len(unique[key].ids)
        part.append(key)
    if part:
        yield part


def _packed_forwards(unique: dict[bytes, TokenSequence]) -> Iterator[list[bytes]]:
    """The sequences of each packed forward, by key: those after one prompt together, and at most TOKENS tokens."""
    keys = sorted(unique, key=lambda key: (-len(unique[key].ids), key))
    for part in by_prompt([unique[key] for key in keys], range(len(keys)), TOKENS):
        yield [keys[index] for index in part]


def _name(identity: str, entry: list[list[bytes]]) -> str:
    """The name of an entry: a digest of the reference and of the sequences of each forward."""
    total = hashlib.sha256(identity.encode())
    for part in entry:
        total.update(len(part).to_bytes(8, "little") + b"".join(part))
    return total.hexdigest()


def _require_finite(
    values: list[float], entry: list[list[bytes]], unique: dict[bytes, TokenSequence]
) -> None:
    keys = [key for part in entry for key in part]
    bad = [key for key, value in zip(keys, values, strict=True) if not math.isfinite(value)]
    if bad:
        lengths = [len(unique[key].ids) for key in bad[:3]]
        raise FloatingPointError(
            f"the reference's log-probs of {len(bad)} answers are not finite, such as those of {lengths} tokens"
        )


def _first_process(trainer: Any, compute: Callable[[], Any]) -> Any:
    """Rank 0's result of `compute`, on every rank."""
    values = [compute() if trainer.accelerator.is_main_process else None]
    broadcast_object_list(values, from_process=0)
    return values[0]


def _bare(model: Any) -> Any:
    return model.get_base_model() if is_peft_model(model) else model
