"""pack_weight: float32 weights into each type, as loading a model does. No peer packs alike."""

from __future__ import annotations

from qkv.bench import Case, Suite, suites

from .gemm_quantized import TYPES
from .peers import Array, Call

KINDS = (("float32", None), *TYPES)


def cases() -> list[Case]:
    n, k = 3072, 768
    return [
        Case(
            f"{n}x{k} {dtype}{f'/{group}' if group else ''}",
            {"n": n, "k": k, "dtype": dtype, "group": group},
            0,
            4.0 * n * k,
        )
        for dtype, group in KINDS
    ]


def inputs(n: int, k: int, dtype: str, group: int | None) -> dict[str, Array]:
    return {"weight": suites.normal(n, k), "dtype": dtype, "group": group}


def qkv_side(weight: Array, dtype: str, group: int | None) -> Call:
    import qkv

    return lambda: qkv.pack_weight(weight, dtype, group).nbytes


SUITES = {"quantize": Suite("quantize", __name__, cases, inputs, {"qkv": qkv_side})}
