"""Whether a device computes in bfloat16 faster than in float32."""

from __future__ import annotations

from functools import cache
from pathlib import Path

CPU_FEATURES = {"avx512_bf16", "amx_bf16"}
"""Instructions without which bfloat16 is emulated and slower. With avx512_bf16 `cnn_small` at 32 px trains 1.6 times as
fast (benchmarks/results/precision.md)."""


@cache
def _cpu_features() -> frozenset[str]:
    """What the processor can do, as Linux lists it; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.split(":")[1].split()) for line in lines if line.startswith("flags")), frozenset())


def use_bf16(wanted: bool | None, device: str) -> bool:
    """Whether to compute in bfloat16: as wanted, else on GPUs and on processors that have it in hardware."""
    if wanted is not None:
        return wanted
    return device.startswith("cuda") or bool(CPU_FEATURES & _cpu_features())
