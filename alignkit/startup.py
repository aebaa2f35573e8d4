"""What makes a program start sooner: garbage is not collected meanwhile, and installed packages are listed once."""

import atexit
import functools
import gc
from importlib import metadata


def begin() -> None:
    """Speed up imports until `end`. Call it before large ones, in a program's own process."""
    gc.disable()  # what is only imported would be looked through again and again
    # transformers and trl each ask for it, and each time it reads a file of every installed package: a second.
    metadata.packages_distributions = functools.cache(metadata.packages_distributions)


def end() -> None:
    """Collect garbage again after `begin`, except in what there is by now. Without `begin`, change nothing."""
    if not gc.isenabled():
        gc.freeze()
        atexit.register(gc.unfreeze)  # libraries look for leaks at the end
        gc.enable()
        metadata.packages_distributions = getattr(
            metadata.packages_distributions, "__wrapped__", metadata.packages_distributions
        )
