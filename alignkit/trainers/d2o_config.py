"""D2OTrainer's configuration."""

from dataclasses import dataclass, field
from typing import Any

from trl import DPOConfig

_REFUSED_TRL_OPTIONS: dict[str, tuple[Any, str]] = {
    "loss_type": (["sigmoid"], "D2O is one loss"),
    "f_divergence_type": ("reverse_kl", "D2O is defined under the reverse KL"),
    "ld_alpha": (None, "use `logps='mean'` against differences of length"),
    "use_weighting": (False, "WPO's weights are of pairs"),
    "label_smoothing": (0.0, "there is no preferred answer to be mistaken about"),
    "sync_ref_model": (False, "use `ref_refresh_every`"),
    "truncation_mode": ("keep_start", "an answer without its prompt is not the answer that was drawn"),
    "disable_dropout": (
        True,
        "the gradient is exact only if both passes of a step see the same policy",
    ),
    "precompute_ref_log_probs": (True, "the references' log-probs are always computed ahead"),
}


@dataclass
class D2OConfig(DPOConfig):
    """DPOConfig plus D2O's strengths, its samples and its references.

    `beta` >= 0 is the strength of the anchor. TRL's options that have no meaning here are refused with the reason.
    """

    precompute_ref_log_probs: bool = field(
        default=True, metadata={"help": "Always true: references are scored once, and again after a refresh."}
    )
    alpha: float = field(default=0.1, metadata={"help": "Strength of the push off the dispreferred answer."})
    rejected_floor: float | None = field(
        default=None,
        metadata={"help": "Log-ratio, < 0, below which the dispreferred answer is pushed no further."},
    )
    logps: str = field(
        default="sum",
        metadata={"help": "Log-probs of an answer: 'sum' over its tokens, or their 'mean'."},
    )
    samples_per_prompt: int = field(default=11, metadata={"help": "K, where samples are drawn."})
    temperature: float = field(default=1.0, metadata={"help": "Of the draws."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus of the draws."})
    max_tokens: int = field(default=256, metadata={"help": "Longest answer drawn, in tokens."})
    redraws: int = field(
        default=2, metadata={"help": "Further draws in place of empty, repeated and dispreferred samples."}
    )
    instruction_pool: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Instructions put in front of the prompt in turn, for drawing only; samples are scored and "
            "trained without."
        },
    )
    sampler_url: str | None = field(
        default=None,
        metadata={"help": "Server (OpenAI's protocol, such as vLLM) of the reference, to draw from."},
    )
    sampler_model: str | None = field(
        default=None, metadata={"help": "The model's name on that server; default: the only one it serves."}
    )
    sampling_batch_size: int = field(
        default=32, metadata={"help": "Answers drawn at a time, without a server."}
    )
    sample_reference: str | None = field(
        default=None,
        metadata={"help": "Model r- that samples come from and are scored by; default: the policy."},
    )
    rejected_reference: str | None = field(
        default=None,
        metadata={
            "help": "Model r+ that scores the dispreferred answer; default: the policy before training."
        },
    )
    resample_every: int | None = field(
        default=None,
        metadata={
            "help": "Steps between draws from the current policy; default: never, train on the first draw."
        },
    )
    ref_refresh_every: int | None = field(
        default=None, metadata={"help": "Steps between refreshes of both references from the current policy."}
    )
    resample_warmup_steps: int = field(
        default=0, metadata={"help": "Steps before the first such draw and refresh."}
    )
    sequence_batch_size: int = field(
        default=8,
        metadata={
            "help": "Sequences (answers) a forward. Memory grows with this, not with samples_per_prompt."
        },
    )
    samples_dir: str | None = field(
        default=None, metadata={"help": "Where samples and scores are kept; default: samples/ in output_dir."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (required, reason) in _REFUSED_TRL_OPTIONS.items():
            if getattr(self, name) != required:
                raise ValueError(f"{name}={getattr(self, name)!r} is not an option of D2O: {reason}.")
        for name, lowest in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= lowest:
                raise ValueError(f"{name}: expected at least {lowest}, found {value}")
        if self.logps not in {"sum", "mean"}:
            raise ValueError(f"logps: expected 'sum' or 'mean', found {self.logps!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature: expected > 0, found {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected > 0 and at most 1, found {self.top_p}")
        if self.rejected_floor is not None and not self.rejected_floor < 0:
            raise ValueError(f"rejected_floor: expected a log-ratio < 0, found {self.rejected_floor}")
        if self.ref_refresh_every is not None and (self.sample_reference or self.rejected_reference):
            raise ValueError(
                "ref_refresh_every makes the policy the reference: it does not go with sample_reference and "
                "rejected_reference"
            )


_AT_LEAST = {
    "beta": 0,
    "alpha": 0,
    "samples_per_prompt": 1,
    "max_tokens": 1,
    "redraws": 0,
    "sampling_batch_size": 1,
    "sequence_batch_size": 1,
    "resample_every": 1,
    "ref_refresh_every": 1,
    "resample_warmup_steps": 0,
}
