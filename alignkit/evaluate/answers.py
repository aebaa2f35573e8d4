"""Measures of sampled answers, and the limits at which a model counts as collapsed.

A run can reach a validation accuracy of 1.0 with answers that are noise. These measures reveal it, because they do
not come from preferences: the likelihood of the model's answers under the reference, their repetition, and the drop
in likelihood of good answers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AnswerQuality:
    """Measures of sampled answers, with log-probs in nats per token. A field is None if it cannot be measured."""

    reference_logp: float | None
    """Mean log-prob of the sampled answers' tokens under the reference."""
    kl: float | None
    """Estimated KL(policy || reference) per token: the mean of log pi - log pi_ref over the sampled answers."""
    sequence_kl: float | None
    """The same estimate, summed over an answer's tokens."""
    repetition: float
    """Share of 4-grams that occurred earlier in the same answer, 0 to 1."""
    distinct_2: float
    """Share of distinct 2-grams among all 2-grams, 0 to 1."""
    good_logp: float | None
    """Mean log-prob under the policy of the tokens of known good answers (chosen, or completions)."""

    def metrics(self) -> dict[str, float]:
        """The available measures by name."""
        return {f"answers/{name}": value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Limits:
    """Maximum changes of the measures from those of the untrained model."""

    reference_logp_drop: float = 2.5
    repetition_rise: float = 0.5
    good_logp_drop: float = 1.0


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """Share of an answer's n-grams that occurred earlier in it; 0 for an answer shorter than n."""
    grams = _grams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(answers: Iterable[Sequence[int]], n: int = 2) -> float:
    """Share of distinct n-grams among those of all answers; 1 if there are none."""
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
    """The quality of `answers` (token ids), from the log-probs [length] of each answer's tokens.

    `good_logps` are the log-probs of known good answers under the policy.
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
    """The mean over all tokens of all sequences; None without tokens."""
    count = sum(values.numel() for values in logps)
    return sum(float(values.double().sum()) for values in logps) / count if count else None


def _sequence_kl(policy: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    ratios = [float((mine - other).double().sum()) for mine, other in zip(policy, reference, strict=True)]
    return sum(ratios) / max(len(ratios), 1)


def reasons(now: AnswerQuality, baseline: AnswerQuality, limits: Limits) -> list[str]:
    """The reasons why the model counts as collapsed, one clause each; empty if it is sound. NaN is never sound."""
    checks = (
        (
            "its answers' log-prob per token under the reference",
            "reference_logp",
            -1,
            limits.reference_logp_drop,
        ),
        ("the repeated share of its answers", "repetition", 1, limits.repetition_rise),
        ("the log-prob per token of good answers", "good_logp", -1, limits.good_logp_drop),
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
