"""Types of the extension module. Its functions are documented in qkv.ops; tests/test_package.py keeps the stub true."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

_Array: TypeAlias = npt.NDArray[Any]
_T = TypeVar("_T")

compiler: str

class PackedWeight:
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def group_size(self) -> int | None: ...
    @property
    def nbytes(self) -> int: ...
    def dequantize(self) -> npt.NDArray[np.float32]: ...
    def parts(self) -> tuple[str, int, int, _Array, _Array | None, _Array | None]: ...
    @staticmethod
    def from_parts(
        dtype: str, group_size: int, width: int, values: _Array, scale: _Array | None, offset: _Array | None
    ) -> PackedWeight: ...
    def __getstate__(self) -> tuple[str, int, int, _Array, _Array | None, _Array | None]: ...
    def __setstate__(self, state: tuple[str, int, int, _Array, _Array | None, _Array | None]) -> None: ...

# Runtime.
def isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def current_isa() -> str: ...
def kernel_names() -> list[str]: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def usable_cpus() -> int: ...
def affinity_cpus() -> int: ...
def cgroup_cpus(root: str) -> float: ...
def trim() -> None: ...
def empty(shape: Sequence[int], dtype: Any) -> _Array: ...
def buffer_stats() -> dict[str, int]: ...
def set_past_caches(nbytes: int) -> None: ...
def limit(name: str, chunks: int, repeats: int) -> float: ...

# TypeError in the op's words for what is no floating-point array or a mix of dtypes; True if any is float64.
def check_arrays(op: str, arrays: dict[str, object]) -> bool: ...

# Ops. None instead of a result: an argument is float64, qkv.reference is to serve it.
def matmul(a: _Array, b: _Array) -> _Array | None: ...
def linear(
    x: _Array,
    weight: _Array | PackedWeight,
    bias: _Array | None,
    activation: str | None,
    gate: _Array | None,
    residual: _Array | None,
    out: _Array | None,
) -> _Array | None: ...
def pack_weight(w: _Array, dtype: str, group_size: int) -> PackedWeight: ...
def softmax(x: _Array, axis: int, log: bool) -> _Array | None: ...
def norm(
    x: _Array, weight: _Array | None, bias: _Array | None, eps: float, rms: bool, residual: _Array | None
) -> Any: ...
def unary(name: str, x: _Array) -> _Array | None: ...
def scaled_sum(x: _Array, scale: float, other: _Array | None, divide: bool) -> _Array: ...
def top_k(x: _Array, k: int) -> tuple[_Array, _Array]: ...
def log_softmax_parts(x: _Array) -> _Array: ...
def linear_top_k(x: _Array, weight: PackedWeight, bias: _Array | None, k: int) -> tuple[_Array, _Array, _Array]: ...
def copy_blocks(arrays: list[_Array], from_: _Array, to: _Array, filled: int) -> None: ...
def embedding(ids: _Array, table: _Array | PackedWeight) -> _Array | None: ...
def rotary(x: _Array, angles: _Array, factor: float, dim: int, interleaved: bool) -> _Array | None: ...
def rotary_angles(positions: _Array, frequencies: _Array) -> _Array: ...
def attention(
    q: _Array,
    k: _Array,
    v: _Array,
    causal: bool | str,
    mask: _Array | None,
    bias: _Array | None,
    relative_bias: _Array | None,
    alibi_slopes: _Array | None,
    scale: float | None,
    softcap: float | None,
    window_left: int | None,
    window_right: int | None,
    sinks: _Array | None,
    kv_lengths: _Array | None,
    bshd: bool,
    return_lse: bool,
    return_weights: bool,
    out: _Array | None,
    bf16: bool = ...,
) -> Any: ...
def attention_varlen(
    q: _Array,
    k: _Array,
    v: _Array,
    cu_seqlens_q: _Array,
    cu_seqlens_k: _Array,
    causal: bool | str,
    relative_bias: _Array | None,
    alibi_slopes: _Array | None,
    scale: float | None,
    softcap: float | None,
    window_left: int | None,
    window_right: int | None,
    sinks: _Array | None,
    return_lse: bool,
    return_weights: bool,
    out: _Array | None,
    bf16: bool = ...,
) -> Any: ...
def attention_paged(
    q: _Array,
    k_cache: _Array,
    v_cache: _Array,
    block_tables: _Array,
    kv_lengths: _Array,
    cu_seqlens_q: _Array | None,
    k_scale: _Array | None,
    v_scale: _Array | None,
    starts: _Array | None,
    causal: bool | str,
    relative_bias: _Array | None,
    alibi_slopes: _Array | None,
    scale: float | None,
    softcap: float | None,
    window_left: int | None,
    window_right: int | None,
    sinks: _Array | None,
    return_lse: bool,
    return_weights: bool,
    out: _Array | None,
    check_only: bool,
    bf16: bool = ...,
) -> Any: ...
def paged_write(
    k: _Array,
    v: _Array,
    k_cache: _Array,
    v_cache: _Array,
    slots: _Array,
    k_scale: _Array | None,
    v_scale: _Array | None,
) -> bool: ...
def additive_attention(
    q: _Array,
    k: _Array,
    w: _Array,
    v: _Array,
    mask: _Array | None,
    kv_lengths: _Array | None,
    return_weights: bool,
) -> Any: ...

# DLPack capsules ("dltensor").
def from_dlpack(capsule: object) -> _Array: ...
def to_dlpack(array: _Array) -> object: ...

# Kernel calls, to be made again over the same memory; see csrc/bind/recording.h.
class Recording:
    @property
    def complete(self) -> bool: ...
    def __len__(self) -> int: ...
    def replay(self) -> None: ...

# The result of work(), and the kernel calls that this thread made in it.
def record(work: Callable[[], _T]) -> tuple[_T, Recording]: ...
