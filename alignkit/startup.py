"""What makes a program start sooner: garbage is not collected meanwhile, and installed packages are listed once."""

import atexit
import functools
import gc
from importlib import metadata

_list_packages = metadata.packages_distributions


def begin() -> None:
    """Speed up imports until `end`. Call it before large ones, in a program's own process."""
    gc.disable()  # what is only imported would be looked through again and again
    # transformers and trl each ask for the list, for which a file of every installed package is read: a second.
    metadata.packages_distributions = functools.cache(_list_packages)


def end() -> None:
    """Collect garbage again after `begin`, except in what there is by now. Without `begin`, change nothing."""
    if not gc.isenabled():
        gc.freeze()
        atexit.register(gc.unfreeze)  # libraries look for leaks at the end
        gc.enable()
        metadata.packages_distributions = _list_packages
