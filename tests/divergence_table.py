"""f'(u) of every built-in divergence, written by hand from f: the oracle of all tests of the family.

Each takes u and the logarithm to use, `math.log` of floats or `torch.log` of tensors.
"""

from collections.abc import Callable
from typing import Any

DERIVATIVES: dict[str, Callable[[Any, Callable[[Any], Any]], Any]] = {
    "reverse_kl": lambda u, log: log(u) + 1,
    "forward_kl": lambda u, _: -1 / u,
    "js_divergence": lambda u, log: log(2 * u / (1 + u)),
    "alpha_divergence": lambda u, _: (1 - u**-0.5) / 0.5,
    "jeffreys": lambda u, log: log(u) + 1 - 1 / u,
    "squared_hellinger": lambda u, _: 1 - u**-0.5,
    "neyman_chi2": lambda u, _: 1 - u**-2,
    "chi2_kl": lambda u, log: u + log(u),
}
