"""Counts the bytes that are alive while a model runs on fake tensors, which have shapes but no memory."""

import weakref
from typing import Any

from torch import Tensor

from alignkit.estimate.upstream import TorchDispatchMode, WeakIdKeyDictionary, tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts storages from the operation that creates them until they are freed.

    Use it inside FakeTensorMode. Memory that an operation allocates and frees internally is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known = WeakIdKeyDictionary()

    def ignore(self, tensors: Any) -> None:
        """Exclude tensors that existed before."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()] = 0

    def restart(self) -> None:
        """Reset the peak to the current count."""
        self.peak = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._see(value)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size
