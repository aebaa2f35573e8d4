"""f-DPO in float32 and under bfloat16 autocast, by divergence: what the rounding of log-ratios does to the result.

The scores of the forward KL and of Jeffreys hold e^-z, so an error of z is a factor there; the reverse KL's and JSD's
do not. Both precisions train on the same pairs (see `frontier`), and are measured in float32.
"""

from typing import Any

from evidence.frontier import trained
from evidence.harness import Evidence, Settings, Values, bars, main

DIVERGENCES = ("reverse_kl", "js_divergence", "forward_kl", "jeffreys")
PRECISIONS = {"float32": "no", "bfloat16": "bf16"}
ARMS = tuple(f"{divergence} {precision}" for divergence in DIVERGENCES for precision in PRECISIONS)


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Train in one precision, and measure reward, KL, accuracy and calibration."""
    divergence, precision = arm.split(" ")
    method: dict[str, Any] = {
        "type": "f_dpo",
        "divergence": divergence,
        "beta": 0.2,
        "match_curvature": True,
    }
    training = {"mixed_precision": PRECISIONS[precision]}
    return trained(settings, f"precision_bias/{ARMS.index(arm)}-{seed}", method, seed, training)


EVIDENCE = Evidence(
    "precision_bias",
    "Under bfloat16 autocast the divergences with e^-z end at another reward, KL or calibration than in float32; the "
    "reverse KL and JSD do not.",
    ARMS,
    measure,
    bars("reward", "true reward of drawn answers"),
    outcome="In part. Under bfloat16 autocast the KL to the reference ends higher by 16 % for the forward KL (5 "
    "to 28 % from three seeds), as claimed, and by 14 % for Jeffreys and 2 % for the reverse KL, neither "
    "with certainty. JSD is not free of it: its KL rises by 4 % (0.1 to 7 %) and its reward by 0.008. The "
    "rewards of the forward KL and of Jeffreys rise by 0.03 and 0.04, not with certainty. Autocast rounds "
    "the whole pass, not the log-ratios alone. Answers have at most 24 tokens; the error grows with the "
    "root of their length. A precision within the budget is float32 for this model on a CPU, so `auto` "
    "gives the float32 runs; fp16 was not tried.",
    needs_model=True,
)

if __name__ == "__main__":
    main(EVIDENCE)
