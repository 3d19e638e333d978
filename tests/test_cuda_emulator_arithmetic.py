"""What the emulator makes of single instructions, against NumPy: roundings, NaN, shifts that are too far."""

import ctypes
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from cuda_build import Device, build, build_folder, needs_compilers

pytestmark = [needs_compilers, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
SOURCES = Path(__file__).parent / "cuda"
M32, M64 = 0xFFFFFFFF, (1 << 64) - 1


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    sources = [SOURCES / "emulator_faults.cu", SOURCES / "emulator_arithmetic.cu"]
    device = Device(build(sources, build_folder(tmp_path_factory)))
    device.configure()
    return device


def words():
    """Triples: edge cases of integers, float32 and float16 among random bits."""
    rng = np.random.default_rng(5)
    edges = [0, 1, 2, 7, 31, 32, 33, 63, 127, 128, 129, 0x7FFFFFFF, 0x80000000, 0x80000001]
    edges += [0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFF7F, 0xFFFFFF80]
    floats = [
        0.0,
        -0.0,
        1,
        -1,
        0.5,
        1.5,
        2.5,
        -2.5,
        np.inf,
        -np.inf,
        np.nan,
        1e-40,
        -1e-40,
        3e38,
        65504,
        65519.99,
        65520,
    ]
    floats += [1e-7, 6e-8, 3e-8, 2.9e-8, 1.00048828125, 1.0009765625, 3e9, -3e9, 2147483520, 300, -300, 0.99999994]
    edges = np.r_[np.array(edges, np.uint32), np.float32(floats).view(np.uint32)]
    a, b = (x.ravel() for x in np.meshgrid(edges, edges))
    random = rng.integers(0, 1 << 32, (3, 2000), dtype=np.uint32)
    normal = rng.normal(0, 3, (3, 2000)).astype(np.float32).view(np.uint32)
    halves = rng.normal(0, 3, (3, 4000)).astype(np.float16).view(np.uint32)
    c = rng.choice(edges, a.size)
    return np.concatenate([np.stack([a, b, c]), random, normal, halves], axis=1)


A, B, C = words()


def run(device, name):
    y = device.malloc(4 * A.size)
    device.call(f"run_{name}", *(device.upload(x) for x in (A, B, C)), y, A.size)
    return device.download(y, A.size, np.uint32)


def signed(x):
    return x - (1 << 32) if x >> 31 else x


def same(got, want, names=""):
    want = np.asarray(want, np.uint32)
    wrong = np.flatnonzero(got != want)
    assert wrong.size == 0, f"{wrong.size} wrong, first: " + ", ".join(
        f"({A[i]:08x}, {B[i]:08x}, {C[i]:08x}) -> {got[i]:08x}, not {want[i]:08x}" for i in wrong[:4]
    )


def clamp(x, low=-(1 << 31), high=(1 << 31) - 1):
    return max(low, min(high, x))


def quotient(a, b):
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


def bit_field(x, position, length, is_signed):
    if length == 0:
        return 0
    field = x >> position & ((1 << length) - 1) if position < 32 else 0
    sign = x >> min(position + length - 1, 31) & 1
    if is_signed and sign:
        for i in range(32):
            if i >= length or position + i > 31:
                field |= 1 << i
    return field & M32


def permute(a, b, s):
    data = [(b << 32 | a) >> 8 * i & 0xFF for i in range(8)]
    out = 0
    for i in range(4):
        pick = s >> 4 * i & 15
        byte = data[pick & 7]
        out |= (byte if pick < 8 else 0xFF * (byte >> 7)) << 8 * i
    return out


def byte(x, i, is_signed):
    v = x >> 8 * i & 0xFF
    return v - 256 if is_signed and v > 127 else v


def lop3(table):
    def f(a, b, c):
        return sum((table >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i for i in range(32))

    return f


def half(x):
    return (x & 0xFFFF ^ 0x8000) - 0x8000


def insert(a, b, position, mask):
    return (b & ~(mask << position)) | (a & mask) << position


def s8(x):
    return clamp(signed(x), -128, 127)


INTEGERS = {
    "add": lambda a, b, c: a + b,
    "add_sat": lambda a, b, c: clamp(signed(a) + signed(b)),
    "sub_sat": lambda a, b, c: clamp(signed(a) - signed(b)),
    "mul_lo": lambda a, b, c: a * b,
    "mul_hi_s": lambda a, b, c: signed(a) * signed(b) >> 32,
    "mul_hi_u": lambda a, b, c: a * b >> 32,
    "mul_wide": lambda a, b, c: signed(a) * signed(b) >> 32,
    "mad_lo": lambda a, b, c: a * b + c,
    "mad_hi": lambda a, b, c: (signed(a) * signed(b) >> 32) + c,
    "min_s": lambda a, b, c: min(signed(a), signed(b)),
    "max_u": lambda a, b, c: max(a, b),
    "abs_s": lambda a, b, c: abs(signed(a)),
    "neg_s": lambda a, b, c: -a,
    "sad_s": lambda a, b, c: abs(signed(a) - signed(b)) + c,
    "shl": lambda a, b, c: a << (b & 63),
    "shr_u": lambda a, b, c: a >> (b & 63),
    "shr_s": lambda a, b, c: signed(a) >> (b & 63),
    "shf_l_wrap": lambda a, b, c: (b << 32 | a) << (c & 31) >> 32,
    "shf_r_clamp": lambda a, b, c: (b << 32 | a) >> min(c & 63, 32),
    "lop3_96": lop3(0x96),
    "lop3_e8": lop3(0xE8),
    "lop3_1d": lop3(0x1D),
    "prmt": permute,
    "bfe_u": lambda a, b, c: bit_field(a, b & 63, c & 63, False),
    "bfe_s": lambda a, b, c: bit_field(a, b & 63, c & 63, True),
    "bfi": lambda a, b, c: insert(a, b, c & 31, (1 << (c >> 27)) - 1),
    "popc": lambda a, b, c: a.bit_count(),
    "clz": lambda a, b, c: 32 - a.bit_length(),
    "brev": lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    "bfind_s": lambda a, b, c: (a if a >> 31 == 0 else ~a & M32).bit_length() - 1,
    "dp4a": lambda a, b, c: c + sum(byte(a, i, True) * byte(b, i, True) for i in range(4)),
    "dp4a_u": lambda a, b, c: c + sum(byte(a, i, False) * byte(b, i, True) for i in range(4)),
    "dp2a_lo": lambda a, b, c: c + (a & 0xFFFF) * byte(b, 0, False) + (a >> 16) * byte(b, 1, False),
    "dp2a_hi": lambda a, b, c: c + half(a) * byte(b, 2, False) + half(a >> 16) * byte(b, 3, False),
    "carry": lambda a, b, c: c + (a + b >> 32),
    "borrow": lambda a, b, c: c - (a < b),
    "setp_u": lambda a, b, c: a < b,
    "setp_s_and": lambda a, b, c: signed(a) < signed(b) and c != 0,
    "setp_two": lambda a, b, c: 1 if signed(a) <= signed(b) else 6,
    "set_mask": lambda a, b, c: M32 * (signed(a) < signed(b)),
    "slct": lambda a, b, c: a if signed(c) >= 0 else b,
    "cvt_s8": lambda a, b, c: byte(a, 0, True),
    "cvt_u8": lambda a, b, c: byte(a, 0, False),
    "cvt_sat_s8": lambda a, b, c: s8(a),
    "cvt_sat_u8": lambda a, b, c: clamp(signed(a), 0, 255),
    "cvt_pack": lambda a, b, c: c << 16 | (s8(a) & 0xFF) << 8 | (s8(b) & 0xFF),
    "branches": lambda a, b, c: (b, c, b + c, 7)[a & 3],
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(device, name):
    f = INTEGERS[name]
    same(run(device, name), [int(f(*t)) & M32 for t in zip(A.tolist(), B.tolist(), C.tolist(), strict=True)])


DIVISIONS = {
    "div_s": quotient,
    "div_u": lambda a, b: a // b,
    "rem_s": lambda a, b: a - b * quotient(a, b),
    "rem_u": lambda a, b: a % b,
}


@pytest.mark.parametrize("name", DIVISIONS)
def test_division(device, name):
    f = DIVISIONS[name]
    for a, b, y in zip(A.tolist(), B.tolist(), run(device, name).tolist(), strict=True):
        if b:  # else unspecified
            x = (signed(a), signed(b)) if name.endswith("s") else (a, b)
            assert y == f(*x) & M32, (name, a, b)


# ---- floats

F, G, H = (x.view(np.float32) for x in (A, B, C))
with np.errstate(all="ignore"):
    D, E, Z = (x.astype(np.float64) for x in (F, G, H))


def same_floats(got, want):
    """The same bits, or both NaN."""
    want = np.asarray(want, np.float32)
    nan = np.isnan(want)
    assert np.isnan(got.view(np.float32)[nan]).all()
    same(np.where(nan, 0, got), np.where(nan, 0, want.view(np.uint32)))


def directed(exact, mode):
    """float32 of float64 that hold the exact values: 'z' to zero, 'm' down, 'p' up."""
    nearest = exact.astype(np.float32)
    down = np.where(nearest > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    up = np.where(nearest < exact, np.nextafter(nearest, np.float32(np.inf)), nearest)
    return {"m": down, "p": up, "z": np.where(exact > 0, down, up)}[mode].astype(np.float32)


def exact_sum(a, b):
    """The indices where a + b is exact in float64."""
    s = a + b
    back = s - a
    return np.isfinite(s) & ((a - (s - back)) + (b - back) == 0)


def saturated(x):
    return np.where(x > 0, np.minimum(x, 1), 0).astype(np.float32)


def flushed(x):
    return np.where(np.abs(x) < 2.0**-126, np.copysign(np.float32(0), x), x).astype(np.float32)


@np.errstate(all="ignore")
def float_results():
    return {
        "fadd": F + G,
        "fadd_sat": saturated(F + G),
        "fmul": F * G,
        "fmul_ftz": flushed(flushed(F) * flushed(G)),
        "fdiv": F / G,
        "fsqrt": np.sqrt(F),
        "fmin": np.where((F == 0) & (G == 0), np.where(np.signbit(F), F, G), np.fmin(F, G)),
        "fmax": np.where((F == 0) & (G == 0), np.where(np.signbit(F), G, F), np.fmax(F, G)),
        "fmax_nan": np.where((F == 0) & (G == 0), np.where(np.signbit(F), G, F), np.maximum(F, G)),
        "fabs": np.abs(F),
        "fneg": -F,
        "copysign": np.copysign(G, F),
        "rni": np.rint(F),
        "rmi": np.floor(F),
        "sat": saturated(F),
        "i2f": A.view(np.int32).astype(np.float32),
        "u2f": A.astype(np.float32),
        "i2f_rz": directed(A.view(np.int32).astype(np.float64), "z"),
    }


FLOATS = float_results()


@pytest.mark.parametrize("name", FLOATS)
def test_floats(device, name):
    same_floats(run(device, name), FLOATS[name])


@np.errstate(all="ignore")
@pytest.mark.parametrize("name, mode", [("fadd_rz", "z"), ("fadd_rm", "m"), ("fmul_rp", "p"), ("ffma_rm", "m")])
def test_directed_rounding(device, name, mode):
    exact = {"fadd": lambda: D + E, "fmul": lambda: D * E, "ffma": lambda: D * E + Z}[name[:4]]()
    got, want = run(device, name), directed(exact, mode)
    sure = exact_sum(D, E) if "add" in name else exact_sum(D * E, Z) if "fma" in name else np.isfinite(exact)
    sure &= (want != 0) & (np.abs(exact) < 3e38)  # not the sign of zero, nor overflow
    assert sure.sum() > 1000
    same(np.where(sure, got, 0), np.where(sure, want.view(np.uint32), 0))


@np.errstate(all="ignore")
def test_fused_multiply_add_rounds_once(device):
    want, exact = (D * E + Z).astype(np.float32), exact_sum(D * E, Z)
    got = run(device, "ffma")
    same(np.where(exact, got, 0), np.where(exact, want.view(np.uint32), 0))
    assert exact.sum() > 1000


FUNCTIONS = {"ex2": np.exp2, "lg2": np.log2, "rcp": lambda x: 1 / x, "rsqrt": lambda x: 1 / np.sqrt(x), "tanh": np.tanh}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_approximations(device, name):
    with np.errstate(all="ignore"):
        want = FUNCTIONS[name](D).astype(np.float32)
    np.testing.assert_allclose(run(device, name).view(np.float32), want, rtol=2e-6)


RANGES = {"f2i": (-(1 << 31), (1 << 31) - 1), "f2u": (0, M32), "f2s8": (-128, 127)}


@pytest.mark.parametrize("name", ["f2i_rni", "f2i_rzi", "f2u_rzi", "f2s8_rni"])
def test_floats_to_integers(device, name):
    (low, high), rounding = RANGES[name[:-4]], {"rni": np.rint, "rzi": np.trunc}[name[-3:]]
    with np.errstate(all="ignore"):
        want = np.where(np.isnan(D), 0, np.clip(rounding(D), low, high))
    same(run(device, name), want.astype(np.int64) & M32)


COMPARISONS = {
    "feq": lambda f, g, n: (f == g) & ~n,
    "fne": lambda f, g, n: (f != g) & ~n,
    "fneu": lambda f, g, n: (f != g) | n,
    "flt": lambda f, g, n: (f < g) & ~n,
    "fltu": lambda f, g, n: (f < g) | n,
    "fgeu": lambda f, g, n: (f >= g) | n,
    "fnan": lambda f, g, n: n,
    "fnum": lambda f, g, n: ~n,
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(device, name):
    same(run(device, name), COMPARISONS[name](F, G, np.isnan(F) | np.isnan(G)))


# ---- 16-bit floats

F16, BF16 = np.float16, ml_dtypes.bfloat16


def low(x, dtype):
    return (x & 0xFFFF).astype(np.uint16).view(dtype)


def high(x, dtype):
    return (x >> 16).astype(np.uint16).view(dtype)


def same_halves(got, want, dtype):
    """Compares 16-bit floats, NaN with NaN."""
    got, want = got.astype(np.uint16).view(dtype), np.asarray(want).astype(dtype)
    nan = np.isnan(want.astype(np.float32))
    assert (np.isnan(got.astype(np.float32)) == nan).all()
    wrong = np.flatnonzero((got.view(np.uint16) != want.view(np.uint16)) & ~nan)
    assert wrong.size == 0, [(hex(A[i]), hex(B[i]), hex(C[i]), got[i], want[i]) for i in wrong[:5]]


def toward_zero(x, dtype):
    with np.errstate(all="ignore"):
        y = x.astype(dtype)
        bits = y.view(np.uint16)
        y = (
            np.where(np.abs(y.astype(np.float64)) > np.abs(x.astype(np.float64)), bits - 1, bits)
            .astype(np.uint16)
            .view(dtype)
        )
    return np.where(np.isinf(x), x.astype(dtype), y)


@np.errstate(all="ignore")
def test_to_half(device):
    same_halves(run(device, "f2h"), F.astype(F16), F16)
    same_halves(run(device, "f2b"), F.astype(BF16), BF16)
    same_halves(run(device, "f2h_rz"), toward_zero(F, F16), F16)
    same_halves(run(device, "f2b_rz"), toward_zero(F, BF16), BF16)
    packed = run(device, "pack_b")
    same_halves(packed & 0xFFFF, G.astype(BF16), BF16)
    same_halves(packed >> 16, F.astype(BF16), BF16)
    relu = run(device, "pack_h_relu")
    same_halves(relu & 0xFFFF, np.where(G < 0, 0, np.where(G == 0, 0, G)).astype(F16), F16)


def test_from_half(device):
    same_floats(run(device, "h2f"), low(A, F16).astype(np.float32))


@np.errstate(all="ignore")
def sums(part, dtype):
    a, b, c = (part(x, dtype).astype(np.float64) for x in (A, B, C))
    return a, b, c


@np.errstate(all="ignore")
@pytest.mark.parametrize("name, f", [("hadd", np.add), ("hsub", np.subtract), ("hmul", np.multiply)])
def test_half_arithmetic(device, name, f):
    a, b, _ = sums(low, F16)
    same_halves(run(device, name) & 0xFFFF, f(a, b).astype(F16), F16)


@np.errstate(all="ignore")
@pytest.mark.parametrize(
    "name, dtype", [("hfma", F16), ("bfma", BF16), ("hfma2", F16), ("bfma2", BF16), ("hadd2", F16)]
)
def test_half_fused(device, name, dtype):
    """Where float64 holds the sum exactly: there rounding it once is right."""
    got = run(device, name)
    for part, bits in ((low, got & 0xFFFF), (high, got >> 16)) if name.endswith("2") else ((low, got & 0xFFFF),):
        a, b, c = sums(part, dtype)
        s = a + b if "add" in name else a * b + c
        exact = exact_sum(a, b) if "add" in name else exact_sum(a * b, c)
        want = np.where(exact, s, 0)
        # float64 to bfloat16 goes by float32 in ml_dtypes: only where that rounds once
        exact &= want.astype(np.float32).astype(np.float64) == want if dtype is BF16 else True
        want = np.where(exact, s, 0)
        assert exact.sum() > 1000
        same_halves(np.where(exact, bits, 0), want.astype(dtype), dtype)


@np.errstate(all="ignore")
def test_half_selection(device):
    got = run(device, "hmax2")
    for part, bits in ((low, got & 0xFFFF), (high, got >> 16)):
        a, b = part(A, F16), part(B, F16)
        zero = (a == 0) & (b == 0)
        same_halves(bits, np.where(zero, np.where(np.signbit(a), b, a), np.fmax(a, b)), F16)
    got = run(device, "bmin2_nan")
    a, b = (low(x, BF16).astype(np.float32) for x in (A, B))
    zero = (a == 0) & (b == 0)
    same_halves(got & 0xFFFF, np.where(zero, np.where(np.signbit(a), a, b), np.minimum(a, b)), BF16)
    same(run(device, "hneg2"), A ^ 0x80008000)
    same(run(device, "babs2"), A & 0x7FFF7FFF)


# ---- lanes and blocks


def test_lanes(device):
    x = np.random.default_rng(3).integers(0, 1 << 32, 32, dtype=np.uint32)
    x[3] = x[20]
    y = device.malloc(4 * 32 * 15)
    device.call("run_lanes", device.upload(x), y)
    got, lane = device.download(y, (15, 32), np.uint32), np.arange(32)
    bits = lambda p: int(sum(int(v) << i for i, v in enumerate(p)))  # noqa: E731
    want = [
        x[lane ^ 5],
        x[np.where(lane >= 3, lane - 3, lane)],
        x[np.where(lane % 16 + 7 < 16, lane + 7, lane)],
        x[lane // 8 * 8 + lane * 7 % 8],
        [bits(x & 1)] * 32,
        [1] * 32,
        [1] * 32,
        [bits(x % 5 == v % 5) for v in x],
        [int(x.astype(np.uint64).sum()) & M32] * 32,
        [int(x.view(np.int32).max()) & M32] * 32,
        [x.min()] * 32,
        [np.bitwise_xor.reduce(x)] * 32,
        [M32 - 1] * 32,
        [(1 << i) - 1 for i in lane],
        [x[i ^ 1] if i < 10 else bits(x & 2 != 0) & 0xFFFFFC00 for i in lane],
    ]
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        assert (g == np.asarray(w, np.uint32)).all(), i


@pytest.mark.parametrize("ones", [0, 50, 96])
def test_block_reductions(device, ones):
    y = device.malloc(4 * 96)
    device.call("run_block_reductions", device.upload((np.arange(96) < ones).astype(np.int32)), y)
    assert (device.download(y, 96, np.int32) == ones + 1000 * (ones == 96) + 2000 * (ones > 0)).all()


def test_atomics_constants_functions_and_local_memory(device):
    start = np.zeros(72, np.uint32)
    y, f, z = device.upload(start), device.upload(np.float32([1])), device.upload(np.uint64([5]))
    assert device.library.set_counter(ctypes.c_int(41)) == 0
    device.call("run_atomics", y, f, z)
    got = device.download(y, 72, np.uint32)
    i = np.arange(64)
    assert got[0] == i.sum() and got[1] == 63 and got[2] == (-63 & M32) and got[3] == 0 and got[4] == 4
    assert 1 <= got[5] <= 64 and got[7] == 41
    assert (got[8:] == np.array([3, 1, 4, 1])[i % 4] + 2 * (i % 8)).all()
    assert device.download(f, 1, np.float32)[0] == 33
    assert device.download(z, 1, np.uint64)[0] == 5 + (64 << 40) + i.sum()
    device.call("run_atomics", y, f, z)
    assert device.download(y, 72, np.uint32)[7] == 42
