"""Compiles a Triton kernel ahead of time, without a GPU, and measures its registers, spills and shared memory.

`registers.json` holds the registers of every kernel on every target. To write it again, after a change that is meant
to take more: `UPDATE_REGISTERS=1 python -m pytest tests/kernels -k "compile or kernel"`.
"""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alignkit.kernels.backend import interpreted

TABLE = Path(__file__).with_name("registers.json")
TARGETS = (
    "sm_90",
    pytest.param("sm_80", marks=pytest.mark.slow),
    pytest.param("sm_100", marks=pytest.mark.slow),
    pytest.param("gfx942", marks=pytest.mark.slow),
)
"""For `parametrize`; every compilation takes a second or more."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources of one kernel on one target."""

    registers: int
    """Registers of one thread."""
    spills: int
    """Spilled registers of one thread: bytes on NVIDIA, registers on AMD. Should be 0."""
    shared_bytes: int
    """Shared memory of one block."""
    wide_loads: int = 0
    """Loads of 16 bytes a thread from global memory; counted on NVIDIA alone."""


def compile_for(
    fn: Any,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    target: str,
    multiples: Collection[str] = (),
    **options: Any,
) -> Resources:
    """Compile `fn`, a `triton.jit` function, for `target`, such as "sm_90" or "gfx942".

    `signature` maps every argument that is no constexpr to Triton's type ("*bf16", "*fp32", "i32", "fp32"); pointers
    are taken as aligned to 16 bytes, as PyTorch allocates them, and so are the numbers named in `multiples`, as a
    launch finds them to be. `options` are those of a launch, as num_warps.
    Raises RuntimeError under Triton's interpreter, and what Triton raises for a kernel that does not compile.
    """
    if interpreted():
        raise RuntimeError("TRITON_INTERPRET=1 is set: an interpreted kernel cannot be compiled")
    from triton.compiler import ASTSource, compile  # noqa: A004

    types = {name: "constexpr" if name in constexprs else signature[name] for name in fn.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, (name, kind) in enumerate(types.items())
        if kind.startswith("*") or name in multiples
    }
    source = ASTSource(fn=fn, signature=types, constexprs=constexprs, attrs=aligned)
    kernel = compile(source, target=_target(target), options=options)
    shared = int(kernel.metadata.shared)
    if target.startswith("gfx"):
        return _of_amd(kernel.asm["amdgcn"], shared)
    return _of_nvidia(kernel.asm["ptx"], shared)


def _target(name: str) -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget("hip", name, 64) if name.startswith("gfx") else GPUTarget("cuda", int(name[3:]), 32)


def _of_nvidia(ptx: str, shared: int) -> Resources:
    from triton import knobs

    found = re.search(r"^\.target (sm_(\d+)\w*)", ptx, re.MULTILINE)
    assert found is not None
    tool = knobs.nvidia.ptxas if int(found[2]) < 90 else knobs.nvidia.ptxas_blackwell
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [tool.path, "-v", f"--gpu-name={found[1]}", "-o", f"{folder}/kernel.cubin", str(source)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    registers, spills = _number(r"Used (\d+) registers", said), _number(r"(\d+) bytes spill stores", said)
    return Resources(registers, spills, shared, ptx.count("ld.global.v4.b32"))


def _of_amd(assembly: str, shared: int) -> Resources:
    spilled = sum(_number(rf"\.{kind}_spill_count:\s+(\d+)", assembly) for kind in ("vgpr", "sgpr"))
    return Resources(_number(r"\.vgpr_count:\s+(\d+)", assembly), spilled, shared)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"no {pattern!r} in:\n{text}"
    return int(found[1])


def require_fit(kernel: str, target: str, found: Resources) -> None:
    """Fail unless `found` spills nothing and takes no more registers than the table has for `kernel` on `target`.

    The table is of one version of Triton; under another only spills count.
    """
    import triton

    assert found.spills == 0, f"{kernel} spills on {target}: {found}"
    table = json.loads(TABLE.read_text())
    if os.environ.get("UPDATE_REGISTERS"):
        table["triton"] = triton.__version__
        table["registers"].setdefault(kernel, {})[target] = found.registers
        table["registers"] = dict(sorted(table["registers"].items()))
        TABLE.write_text(json.dumps(table, indent=1) + "\n")
    elif table["triton"] == triton.__version__:
        assert found.registers <= table["registers"][kernel][target], f"{kernel} on {target}: {found}"
