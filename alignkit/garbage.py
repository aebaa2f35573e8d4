"""The collection of garbage while a process starts: what is only imported is not looked through again and again."""

import atexit
import gc


def pause() -> None:
    """Collect nothing until `resume`. Call it before large imports, in a program's own process."""
    gc.disable()


def resume() -> None:
    """Collect garbage again after `pause`, except in what there is by now. Without a pause, change nothing."""
    if not gc.isenabled():
        gc.freeze()
        atexit.register(gc.unfreeze)  # libraries look for leaks at the end
        gc.enable()
