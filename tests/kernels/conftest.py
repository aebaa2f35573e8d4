"""Makes Triton's interpreter fast enough for the ordinary suite."""

from typing import Any

from alignkit.kernels.backend import interpreted


def patch_once() -> None:
    """Keep the interpreter's replacements of `triton.language` for the whole process.

    It makes them anew, and takes them back, at every call of a jitted function from another: a third of the time of a
    small kernel. In a process where every kernel is interpreted, nobody needs the originals.
    """
    from triton.runtime import interpreter

    patch, languages = interpreter._patch_lang, (interpreter.tl, interpreter.tl.core)
    patched: set[frozenset[int]] = set()

    def patch_new(fn: Any) -> Any:
        seen = frozenset(id(value) for value in fn.__globals__.values() if any(value is x for x in languages))
        if seen not in patched:
            patch(fn)
            patched.add(seen)
        return interpreter._LangPatchScope()  # restores nothing

    interpreter._patch_lang = patch_new


if interpreted():
    patch_once()
