"""Measures of drawn answers, and when they say that a model is ruined.

A run can reach held-out accuracy 1.0 with answers that are noise. What gives it away does not come from preferences:
how likely the model's own answers are under the reference, how much they repeat, and how far the likelihood of good
answers has fallen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AnswerQuality:
    """What drawn answers look like; log-probs in nats a token. None where there is nothing to measure it by."""

    reference_logp: float | None
    """Mean log-prob of the drawn answers' tokens under the reference."""
    kl: float | None
    """Estimated KL(policy || reference) of a token: the mean of log pi - log pi_ref over the drawn answers."""
    sequence_kl: float | None
    """The same, summed over an answer's tokens."""
    repetition: float
    """Share of 4-grams that stood in the same answer before, 0 to 1."""
    distinct_2: float
    """Share of different 2-grams among all, 0 to 1."""
    good_logp: float | None
    """Mean log-prob under the policy of the tokens of known good answers (chosen, or completions)."""

    def metrics(self) -> dict[str, float]:
        """The measures there are, by name."""
        return {f"answers/{name}": value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a measure may go from where the untrained model was."""

    reference_logp_drop: float = 2.5
    repetition_rise: float = 0.5
    good_logp_drop: float = 2.0


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """Share of the n-grams of one answer that stood in it before; 0 for an answer without an n-gram."""
    grams = _grams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(answers: Iterable[Sequence[int]], n: int = 2) -> float:
    """Share of different n-grams among those of all answers; 1 where there is none."""
    grams = [gram for tokens in answers for gram in _grams(tokens, n)]
    return len(set(grams)) / len(grams) if grams else 1.0


def _grams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def measure(
    answers: Sequence[Sequence[int]],
    policy_logps: Sequence[Tensor],
    reference_logps: Sequence[Tensor] | None,
    good_logps: Sequence[Tensor] | None,
) -> AnswerQuality:
    """The quality of `answers` (token ids), from the log-probs [length] of each one's tokens.

    `good_logps` are those of known good answers under the policy.
    """
    reference = None if reference_logps is None else _mean(reference_logps)
    policy = _mean(policy_logps)
    return AnswerQuality(
        reference_logp=reference,
        kl=None if reference is None or policy is None else policy - reference,
        sequence_kl=None if reference_logps is None else _sequence_kl(policy_logps, reference_logps),
        repetition=sum(map(repetition, answers)) / max(len(answers), 1),
        distinct_2=distinct(answers),
        good_logp=None if good_logps is None else _mean(good_logps),
    )


def _mean(logps: Sequence[Tensor]) -> float | None:
    """Over all tokens of all sequences."""
    count = sum(values.numel() for values in logps)
    return sum(float(values.double().sum()) for values in logps) / count if count else None


def _sequence_kl(policy: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    ratios = [float((mine - other).double().sum()) for mine, other in zip(policy, reference, strict=True)]
    return sum(ratios) / max(len(ratios), 1)


def reasons(now: AnswerQuality, baseline: AnswerQuality, limits: Limits) -> list[str]:
    """Why the model counts as collapsed, a clause each; empty while it is sound. NaN is never sound."""
    checks = (
        (
            "its answers' log-prob a token under the reference",
            "reference_logp",
            -1,
            limits.reference_logp_drop,
        ),
        ("the repeated share of its answers", "repetition", 1, limits.repetition_rise),
        ("the log-prob a token of good answers", "good_logp", -1, limits.good_logp_drop),
    )
    found = []
    for words, name, direction, limit in checks:
        before, after = getattr(baseline, name), getattr(now, name)
        if before is None or after is None:
            continue
        if not direction * (after - before) <= limit:
            verb = "fell" if direction < 0 else "rose"
            found.append(f"{words} {verb} from {before:.2f} to {after:.2f} (limit: by {limit:g})")
    return found
