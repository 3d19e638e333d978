"""Products by wgmma and TMA: every tile, order of operands, epilogue and cut of k, whatever the plan would choose. Runs
on the emulator and on a GPU of Hopper's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import naive
import numpy as np
import pytest
import qkv
from checks import BFLOAT16, FLOAT16, FLOAT32, assert_close, normal, oracle

pytestmark = pytest.mark.skipif(
    not qkv.cuda.is_available() or qkv.cuda.compute_capability() != (9, 0),
    reason="needs a GPU of compute capability 9.0",
)

TILES = ("wgmma_large", "wgmma_medium", "wgmma_small")


def force(kernel: str = "", **cuts: int) -> None:
    qkv.cuda.module().force_gemm(kernel, **cuts)


@pytest.fixture(autouse=True)
def as_planned_again() -> Iterator[None]:
    yield
    force()


def moved(x: Any) -> Any:
    return qkv.cuda.array(x) if isinstance(x, np.ndarray) else x


def check_linear(x: Any, w: Any, what: str, **options: Any) -> None:
    out = qkv.linear(moved(x), moved(w), **{n: moved(v) for n, v in options.items()}).numpy()
    assert_close(out, oracle("linear", x, w, **options), naive.linear(x, w, **options), what)


def check_matmul(a: Any, b: Any, what: str, there: Any = None) -> None:
    out = qkv.matmul(*(there or (moved(a), moved(b)))).numpy()
    assert_close(out, oracle("matmul", a, b), naive.matmul(a, b), what)


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize("tile", TILES)
def test_sizes(tile: str, dtype: Any, rng: np.random.Generator) -> None:
    """Tiles that are not full in any direction; rows of c that are no multiple of 16 bytes; rings that go round."""
    force(tile)
    for m, k, n in [
        (1, 8, 8),
        (64, 64, 64),
        (65, 72, 136),
        (200, 328, 264),
        (129, 576, 57),
        (33, 40, 1),
        (3, 1104, 250),
    ]:
        x, w = normal(rng, (m, k), dtype), normal(rng, (n, k), dtype)
        check_linear(x, w, f"linear {m} {k} {n}", bias=normal(rng, n, dtype))
        check_matmul(x, np.ascontiguousarray(w.T), f"matmul {m} {k} {n}")


@pytest.mark.parametrize("tile", TILES)
def test_a_block_makes_several_tiles(tile: str, rng: np.random.Generator) -> None:
    """Also where tiles of one column follow each other in groups that do not come out even."""
    for group in (1, 2, 16):
        force(tile, group=group)
        x, w = normal(rng, (300, 72), BFLOAT16), normal(rng, (680, 72), BFLOAT16)
        check_linear(x, w, f"{group}", residual=normal(rng, (300, 680), BFLOAT16))


@pytest.mark.parametrize("splits", [2, 3, 4])
@pytest.mark.parametrize("tile", TILES)
def test_splits_of_k(tile: str, splits: int, rng: np.random.Generator) -> None:
    force(tile, splits=splits)
    for n in (136, 50):
        x, w = normal(rng, (70, 1064), BFLOAT16), normal(rng, (n, 1064), BFLOAT16)
        options = {"bias": normal(rng, n), "residual": normal(rng, (70, n), BFLOAT16)}
        check_linear(x, w, f"{splits} {n}", activation="silu", **options)
    check_matmul(x, normal(rng, (1064, 72), BFLOAT16), f"matmul {splits}")


@pytest.mark.parametrize("tile", TILES)
def test_batches(tile: str, rng: np.random.Generator) -> None:
    force(tile)
    a, b = normal(rng, (3, 70, 64), BFLOAT16), normal(rng, (3, 64, 136), BFLOAT16)
    check_matmul(a, b, "a product each")
    check_matmul(a, b[1], "one b")
    check_matmul(a[0], b, "one a")
    check_matmul(a, np.ascontiguousarray(b[..., :57]), "rows that are no multiple of 16 bytes")
    # heads side by side: the batch's stride is less than that of rows, in both operands
    x, y = (moved(normal(rng, (70, 3 * 64), BFLOAT16)) for _ in range(2))
    heads = [v._as_strided((3, 70, 64), (64, 192, 1), 0) for v in (x, y)]
    q, k = (v.numpy().reshape(70, 3, 64).transpose(1, 0, 2) for v in (x, y))
    check_matmul(q, k.transpose(0, 2, 1), "heads", (heads[0], heads[1]._as_strided((3, 64, 70), (64, 1, 192), 0)))


@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh", "relu", "silu", "quick_gelu", "tanh"])
@pytest.mark.parametrize("tile", TILES)
def test_epilogue(tile: str, activation: str | None, rng: np.random.Generator) -> None:
    force(tile)
    x, w = normal(rng, (150, 96), BFLOAT16), normal(rng, (264, 96), BFLOAT16)
    full = normal(rng, (150, 264), BFLOAT16)
    for options in (
        {},
        {"bias": normal(rng, 264)},
        {"gate": full},
        {"bias": normal(rng, 264, BFLOAT16), "residual": full},
    ):
        check_linear(x, w, f"{sorted(options)}", activation=activation, **options)
    # c not by TMA, the residual by it, as a part of wider rows
    out = qkv.linear(moved(x), moved(w[:257]), activation=activation, residual=moved(full)[:, :257]).numpy()
    options = {"activation": activation, "residual": full[:, :257]}
    assert_close(out, oracle("linear", x, w[:257], **options), naive.linear(x, w[:257], **options), "odd")


def test_results_in_a_part_of_a_matrix(rng: np.random.Generator) -> None:
    """Its other columns stay as they are, also within the 16 bytes to which TMA would fill up."""
    for n in (64, 60):
        whole = qkv.cuda.array(np.full((70, 200), 7, BFLOAT16))
        x, w = normal(rng, (70, 64), BFLOAT16), normal(rng, (n, 64), BFLOAT16)
        for tile in TILES:
            force(tile)
            residual = moved(normal(rng, (70, 200), BFLOAT16))[:, :n]
            qkv.linear(moved(x), moved(w), residual=residual, out=whole[:, 64 : 64 + n])
            got = whole.numpy()
            want = oracle("linear", x, w, residual=residual.numpy())
            assert_close(
                np.ascontiguousarray(got[:, 64 : 64 + n]), want, naive.linear(x, w, residual=residual.numpy()), tile
            )
            assert (got[:, :64] == 7).all() and (got[:, 64 + n :] == 7).all()


def test_what_is_not_finite_stays_where_it_is(rng: np.random.Generator) -> None:
    for tile in TILES:
        force(tile)
        x, w = normal(rng, (70, 72), BFLOAT16), normal(rng, (136, 72), BFLOAT16)
        x[7, 3], w[100, 71] = np.inf, np.nan
        check_linear(x, w, tile)


def test_names_of_kernels() -> None:
    with pytest.raises(ValueError, match="no kernel 'wgmma_huge'"):
        force("wgmma_huge")


@pytest.mark.skipif(not qkv.cuda.is_emulated(), reason="only the emulator tells which kernels ran")
def test_which_products_are_made_by_it(rng: np.random.Generator) -> None:
    from emulated import Emulator

    x, w = moved(normal(rng, (70, 64), BFLOAT16)), moved(normal(rng, (136, 64), BFLOAT16))
    full, row = moved(normal(rng, (70, 136), BFLOAT16)), moved(normal(rng, 136, BFLOAT16))
    wide = moved(normal(rng, (70, 65), BFLOAT16))
    fast = {
        "linear": lambda: qkv.linear(x, w),
        "matmul": lambda: qkv.matmul(x, w._as_strided((64, 136), (136, 1), 0)),
        "residual": lambda: qkv.linear(x, w, residual=full),
        "odd c": lambda: qkv.linear(x, w[:57]),
    }
    slow = {
        "float32": lambda: qkv.linear(*(moved(normal(rng, s, FLOAT32)) for s in ((70, 64), (136, 64)))),
        "a transposed": lambda: qkv.matmul(x._as_strided((64, 70), (1, 64), 0), full),
        "unaligned": lambda: qkv.linear(wide[:, 1:], w),
        "broadcast rows": lambda: qkv.linear(x[:1]._as_strided((70, 64), (0, 1), 0), w),
        "broadcast residual": lambda: qkv.linear(x, w, residual=row),
        "gate and residual": lambda: qkv.linear(x, w, gate=full, residual=full),
    }

    def invariant() -> Any:
        qkv.set_batch_invariant(True)
        try:
            return qkv.linear(x, w)
        finally:
            qkv.set_batch_invariant(False)

    slow["batch invariant"] = invariant
    emulator = Emulator()
    try:
        for calls, configuration, expected in ((fast, "", True), (slow, "", False), (fast, "cc=80,", False)):
            for name, call in calls.items():
                out, report = emulator.run(call, f"{configuration}count=1")
                assert out is not None, report["first"]
                assert any("gemm_wgmma" in kernel for kernel in report["kernels"]) == expected, (name, configuration)
    finally:
        emulator.configure()
