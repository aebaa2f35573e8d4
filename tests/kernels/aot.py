"""Compiles a Triton kernel ahead of time, without a GPU, and says what it takes: registers, spills, shared memory."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.kernels.backend import interpreted

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True, slots=True)
class Resources:
    """What one kernel takes on one target."""

    registers: int
    """Of one thread."""
    spills: int
    """What does not fit into registers: bytes stored a thread on NVIDIA, registers on AMD. Wanted: 0."""
    shared_bytes: int
    """Of one block."""


def compile_for(
    fn: Any, signature: dict[str, str], constexprs: dict[str, Any], target: str, **options: Any
) -> Resources:
    """Compile `fn`, a `triton.jit` function, for `target`, one of TARGETS.

    `signature` maps every argument that is no constexpr to Triton's type ("*bf16", "*fp32", "i32", "fp32"); pointers
    are taken as aligned to 16 bytes, as PyTorch allocates them. `options` are those of a launch, as num_warps.
    Raises RuntimeError under Triton's interpreter, and what Triton raises for a kernel that does not compile.
    """
    if interpreted():
        raise RuntimeError("TRITON_INTERPRET=1 is set: an interpreted kernel cannot be compiled")
    from triton.compiler import ASTSource, compile  # noqa: A004

    types = {name: "constexpr" if name in constexprs else signature[name] for name in fn.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, kind in enumerate(types.values())
        if kind.startswith("*")
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
    return Resources(
        _number(r"Used (\d+) registers", said), _number(r"(\d+) bytes spill stores", said), shared
    )


def _of_amd(assembly: str, shared: int) -> Resources:
    spilled = sum(_number(rf"\.{kind}_spill_count:\s+(\d+)", assembly) for kind in ("vgpr", "sgpr"))
    return Resources(_number(r"\.vgpr_count:\s+(\d+)", assembly), spilled, shared)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"no {pattern!r} in:\n{text}"
    return int(found[1])
