"""Instructions that the Triton kernels take for each element, read from their machine code; no GPU is needed.

    python benchmarks/gpu_instructions.py [--capability 90] [--docs docs/notes/gpu.md]

A kernel's loop over rows is nearly all that it does: its instructions, times the rows that the filter adds, over the
elements of a row. Beside them the time to issue them and the time that memory takes for the same element, on an H100.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

try:
    import triton
except ImportError:
    raise SystemExit(
        "gpu_instructions: triton is not installed, whose compiler it reads; pip install '.[triton]'"
    ) from None
from gpu_kernels import GPUS  # which puts the folder of `pages` on the path
from pages import put_into
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stylepairs.kernels.gpu import triton_kernels

ROWS, CHANNELS, COLUMNS, THREADS = 16, 64, 16, 128
ISSUED_PER_SECOND = 132 * 4 * 1.755e9  # of an H100 SXM: multiprocessors, warp instructions a cycle, boost clock
BF16, FP32 = {"x", "out", "g", "inner"}, {"taps", "demod", "noise", "bias", "by_channel", "by_pixel"}
CONTIGUOUS = {"xc", "oc", "gc"}  # channels_last
MULTIPLES_OF_16 = {"C", "OW", "xn", "xh", "xw", "on", "oh", "ow", "gn", "gh", "gw", "nn", "nh"}
# Name, kernel, with the filter, bytes of an element read and written.
KERNELS = (
    ("tail with filter, forward", triton_kernels.tail_kernel, True, 4),
    ("tail with filter, backward, first of two", triton_kernels.tail_backward_kernel, True, 6),
    ("tail without filter, forward", triton_kernels.tail_kernel, False, 4),
    ("tail without filter, backward", triton_kernels.tail_backward_kernel, False, 6),
)


def compiled(kernel: Any, fir: bool, capability: int) -> bytes:
    """Machine code for bfloat16 in channels_last, arguments specialised as Triton does for StyleGAN2's sizes."""
    flags: dict[str, int] = {
        "FIR": fir,
        "DEMOD": True,
        "NOISE": True,
        "BIAS": True,
        "CLAMP": False,
        "SUM_CHANNELS": True,
    }
    flags |= {"SUM_PIXELS": True, "ROWS": ROWS, "BLOCK_C": CHANNELS, "BLOCK_X": COLUMNS}
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        kind = "*bf16" if name in BF16 else "*fp32" if name in FP32 else "i32"
        kind = "fp32" if name in ("slope", "gain", "clamp") else kind
        if name in flags or name in CONTIGUOUS or name == "nw":
            constants[(index,)], kind = flags.get(name, 1), "constexpr"
        elif kind.startswith("*") or name in MULTIPLES_OF_16:
            attributes[(index,)] = [["tt.divisibility", 16]]
        signature[name] = kind
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": THREADS // 32, "enable_fp_fusion": True}
    code: bytes = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"]
    return code


def dumped(code: bytes, what: str) -> str:
    """What Triton's own cuobjdump says of it."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        return subprocess.run([tool, what, file.name], capture_output=True, text=True, check=True).stdout


def loop_instructions(listing: str) -> int:
    """Of the longest loop: from the target of a backward branch to the branch."""
    found = re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", listing, re.MULTILINE)
    addresses = [int(address, 16) for address, _ in found]
    longest = 0
    for address, (_, text) in zip(addresses, found, strict=True):
        branch = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if branch and int(branch.group(1), 16) < address:
            longest = max(longest, sum(int(branch.group(1), 16) <= at <= address for at in addresses))
    return longest


def table(capability: int) -> str:
    lines = ["| kernel | warp instructions an element | registers | spilled | issued in, ps | memory takes, ps |"]
    lines.append("|---|---|---|---|---|---|")
    for name, kernel, fir, element_bytes in KERNELS:
        code = compiled(kernel, fir, capability)
        usage = dumped(code, "-res-usage")
        registers, stack = (re.search(rf"{key}:(\d+)", usage.splitlines()[-1]) for key in ("REG", "STACK"))
        assert registers is not None
        assert stack is not None
        passes = (ROWS + 3) / ROWS if fir else 1
        each = loop_instructions(dumped(code, "-sass")) * passes * THREADS / 32 / (CHANNELS * COLUMNS)
        issued, memory = each / ISSUED_PER_SECOND * 1e12, element_bytes / GPUS["h100"].bandwidth
        lines.append(f"| {name} | {each:.2f} | {registers[1]} | {stack[1]} | {issued:.1f} | {memory:.1f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, default=90, help="of the GPU compiled for, times ten")
    parser.add_argument("--docs", type=Path, help="page to put the table into")
    options = parser.parse_args(arguments)
    found = table(options.capability)
    print(found)
    if options.docs is not None:
        put_into(options.docs, found, "instructions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
