"""Arithmetic, bits, comparisons and conversions: see ptx_instructions.py. What they call is in numbers.h and ptx.h."""

import re

from ptx_instructions import instruction, last_types, unsupported
from ptx_types import SIZES, c_type, half_format, is_float, unsigned

ROUNDINGS = {"rn": "nearest", "rz": "zero", "rm": "down", "rp": "up", "rna": "nearest"}
TO_INTEGRAL = {"rni": "nearest", "rzi": "zero", "rmi": "down", "rpi": "up"}


def rounding(name):
    for part in name:
        if part in ROUNDINGS or part in TO_INTEGRAL:
            return ROUNDINGS.get(part) or TO_INTEGRAL[part]
    return "nearest"


def finish_float(name, expression):
    """.ftz and .sat of a float result."""
    if "sat" in name:
        expression = f"saturate({expression})"
    if "ftz" in name:
        expression = f"flush({expression})"
    return expression


def float_value(f, name, text, ptx_type):
    v = f.value(text, ptx_type)
    return f"flush({v})" if "ftz" in name and ptx_type == "f32" else v


# ---- integer and float arithmetic


def binary_half(f, name, a, scalar):
    t = name[-1]
    fmt = half_format(t)
    function = scalar.format(fmt=fmt)
    x, y = f.value(a[1], t), f.value(a[2], t)
    e = f"each_half({x}, {y}, {function})" if t.endswith("x2") else f"{function}({x}, {y})"
    return f.store(a[0], half_result(name, e, fmt))


def half_result(name, expression, fmt):
    """.sat, .relu and .ftz of one or two 16-bit floats."""
    after = []
    if "sat" in name:
        after.append("saturate")
    if "relu" in name:
        after.append("relu")
    for function in after:
        one = f"[](uint16_t h) {{ return {fmt}::round({function}({fmt}::widen(h))); }}"
        expression = f"each_half({expression}, {one})" if name[-1].endswith("x2") else f"({one})({expression})"
    return expression


def directed(name):
    return any(p in ("rz", "rm", "rp") for p in name)


def float_fma(f, name, x, y, z):
    """x * y + z of float expressions, with the rounding of the name."""
    return f"double_to_float(fma_to_odd({x}, {y}, {z}), Round::{rounding(name)})"


@instruction("add", "sub")
def add(f, name, a):
    t = name[-1]
    sign = "+" if name[0] == "add" else "-"
    if half_format(t):
        return binary_half(f, name, a, f"{name[0]}16<{{fmt}}>")
    if is_float(t):
        x, y = float_value(f, name, a[1], t), float_value(f, name, a[2], t)
        if directed(name):
            if t != "f32":
                return unsupported(name)
            return f.store(a[0], finish_float(name, float_fma(f, name, x, "1.0", f"{sign}{y}")))
        return f.store(a[0], finish_float(name, f"({x} {sign} {y})"), t)
    if "sat" in name:
        return f.store(a[0], f"saturating_{name[0]}({f.value(a[1], t)}, {f.value(a[2], t)})")
    u = unsigned(t)
    if "cc" in name:
        function = "with_carry" if name[0] == "add" else "with_borrow"
        return f.store(a[0], f"{function}<{c_type(u)}>({f.value(a[1], u)}, {f.value(a[2], u)}, false, carry)")
    return f.store(a[0], f"({c_type(u)})({f.value(a[1], u)} {sign} {f.value(a[2], u)})", u)


@instruction("addc", "subc")
def addc(f, name, a):
    u = unsigned(name[-1])
    function = "with_carry" if name[0] == "addc" else "with_borrow"
    out = "carry" if "cc" in name else "dropped"
    sum_ = f"{function}<{c_type(u)}>({f.values(a[1:3], u)}, carry, {out})"
    return f"{{ bool dropped; (void)dropped; {f.store(a[0], sum_, u)} }}"


@instruction("mul")
def mul(f, name, a):
    t = name[-1]
    if half_format(t):
        return binary_half(f, name, a, "mul16<{fmt}>")
    x, y = f.value(a[1], t), f.value(a[2], t)
    if is_float(t):
        x, y = float_value(f, name, a[1], t), float_value(f, name, a[2], t)
        if directed(name):
            if t != "f32":
                return unsupported(name)
            return f.store(a[0], finish_float(name, float_fma(f, name, x, y, "-0.0")))
        return f.store(a[0], finish_float(name, f"({x} * {y})"), t)
    return f.store(a[0], product(f, name, a), "b64" if "wide" in name else t)


def product(f, name, a):
    t = name[-1]
    x, y = f.value(a[1], t), f.value(a[2], t)
    if "wide" in name:
        wide = c_type(t[0] + str(SIZES[t] * 16))
        return f"(({wide}){x} * ({wide}){y})"
    if "hi" in name:
        return f"multiply_high<{c_type(t)}>({x}, {y})"
    if "lo" in name:
        u = unsigned(t)
        wide = "uint64_t" if SIZES[t] == 8 else "uint32_t"
        return f"({c_type(u)})(({wide}){f.value(a[1], u)} * ({wide}){f.value(a[2], u)})"
    return unsupported(name)


@instruction("mad", "madc")
def mad(f, name, a):
    t = name[-1]
    if is_float(t):
        return fma(f, name, a)
    if "sat" in name:
        return unsupported(name)
    result = t[0] + str(SIZES[t] * 16) if "wide" in name else t
    u = unsigned(result)
    p, c = product(f, name, a), f.value(a[3], u)
    if "cc" in name or name[0] == "madc":
        carry_in = "carry" if name[0] == "madc" else "false"
        out = "carry" if "cc" in name else "dropped"
        sum_ = f"with_carry<{c_type(u)}>(as<{c_type(u)}>({p}), {c}, {carry_in}, {out})"
        return f"{{ bool dropped; (void)dropped; {f.store(a[0], sum_, u)} }}"
    return f.store(a[0], f"({c_type(u)})(({c_type(u)}){p} + {c})", u)


@instruction("mul24", "mad24")
def mul24(f, name, a):
    return unsupported(name)


@instruction("fma")
def fma(f, name, a):
    t = name[-1]
    if half_format(t):
        fmt = half_format(t)
        x, y, z = (f.value(v, t) for v in a[1:4])
        e = f"each_half({x}, {y}, {z}, fma16<{fmt}>)" if t.endswith("x2") else f"fma16<{fmt}>({x}, {y}, {z})"
        return f.store(a[0], half_result(name, e, fmt))
    x, y, z = (float_value(f, name, v, t) for v in a[1:4])
    if directed(name):
        if t != "f32":
            return unsupported(name)
        return f.store(a[0], finish_float(name, float_fma(f, name, x, y, z)))
    return f.store(a[0], finish_float(name, f"__builtin_fma{'f' if t == 'f32' else ''}({x}, {y}, {z})"), t)


@instruction("div")
def div(f, name, a):
    t = name[-1]
    if is_float(t):
        if directed(name):
            return unsupported(name)
        return f.store(a[0], finish_float(name, f"({float_value(f, name, a[1], t)} / {float_value(f, name, a[2], t)})"))
    return f.store(a[0], f"divide({f.value(a[1], t)}, {f.value(a[2], t)})")


@instruction("rem")
def rem(f, name, a):
    t = name[-1]
    return f.store(a[0], f"remainder_of({f.value(a[1], t)}, {f.value(a[2], t)})")


@instruction("min", "max")
def min_max(f, name, a):
    t = name[-1]
    function = {"min": "minimum", "max": "maximum"}[name[0]] + ("_nan" if "NaN" in name else "")
    if half_format(t):
        fmt = half_format(t)
        one = f"[](uint16_t a, uint16_t b) {{ return {fmt}::round({function}({fmt}::widen(a), {fmt}::widen(b))); }}"
        x, y = f.value(a[1], t), f.value(a[2], t)
        e = f"each_half({x}, {y}, {one})" if t.endswith("x2") else f"({one})({x}, {y})"
        return f.store(a[0], half_result(name, e, fmt))
    if "xorsign" in name or len(a) > 3:
        return unsupported(name)
    if is_float(t):
        return f.store(a[0], f"{function}({float_value(f, name, a[1], t)}, {float_value(f, name, a[2], t)})", t)
    e = f"{function}({f.value(a[1], t)}, {f.value(a[2], t)})"
    return f.store(a[0], f"relu({e})" if "relu" in name else e)


@instruction("abs")
def abs_(f, name, a):
    t = name[-1]
    if half_format(t):
        return f.store(
            a[0], f"static_cast<{c_type(t)}>({f.value(a[1], t)} & {'0x7FFF7FFF' if t.endswith('x2') else '0x7FFF'})"
        )
    if is_float(t):
        return f.store(a[0], finish_float(name, f"fabs{'f' if t == 'f32' else ''}({f.value(a[1], t)})"))
    u = c_type(unsigned(t))
    return (
        f"{{ const {c_type(t)} x = {f.value(a[1], t)}; {f.store(a[0], f'x < 0 ? ({c_type(t)})(0 - ({u})x) : x', t)} }}"
    )


@instruction("neg")
def neg(f, name, a):
    t = name[-1]
    if half_format(t):
        return f.store(
            a[0], f"static_cast<{c_type(t)}>({f.value(a[1], t)} ^ {'0x80008000' if t.endswith('x2') else '0x8000'})"
        )
    if is_float(t):
        return f.store(a[0], finish_float(name, f"-{f.value(a[1], t)}"))
    return f.store(a[0], f"static_cast<{c_type(unsigned(t))}>(0 - {f.value(a[1], unsigned(t))})")


@instruction("copysign")
def copysign(f, name, a):  # the sign of the first operand
    t = name[-1]
    return f.store(a[0], f"copysign{'f' if t == 'f32' else ''}({f.value(a[2], t)}, {f.value(a[1], t)})")


@instruction("testp")
def testp(f, name, a):
    x = f.value(a[1], name[-1])
    tests = {
        "finite": "isfinite({0})",
        "infinite": "isinf({0})",
        "number": "!isnan({0})",
        "notanumber": "isnan({0})",
        "normal": "isnormal({0})",
        "subnormal": "({0} != 0 && isfinite({0}) && !isnormal({0}))",
    }
    return f.store(a[0], "static_cast<bool>(" + tests[name[1]].format(x) + ")")


# Approximations are better here than on the hardware: the tests' tolerances, not their bits, say what is right.
_FUNCTIONS = {
    "rcp": "1 / {0}",
    "sqrt": "sqrt({0})",
    "rsqrt": "1 / sqrt({0})",
    "sin": "sin({0})",
    "cos": "cos({0})",
    "lg2": "log2({0})",
    "ex2": "exp2({0})",
    "tanh": "tanh({0})",
}


@instruction(*_FUNCTIONS)
def unary_function(f, name, a):
    t = name[-1]
    if half_format(t):
        fmt = half_format(t)
        one = (
            f"[](uint16_t h) {{ return {fmt}::round(static_cast<float>("
            + _FUNCTIONS[name[0]].format(f"double({fmt}::widen(h))")
            + ")); }"
        )
        x = f.value(a[1], t)
        return f.store(a[0], f"each_half({x}, {one})" if t.endswith("x2") else f"({one})({x})")
    x = float_value(f, name, a[1], t)
    if directed(name):
        return unsupported(name)
    if t == "f32":
        e = _FUNCTIONS[name[0]].format(f"double({x})") if name[0] in ("rsqrt",) else _FUNCTIONS[name[0]].format(x)
        if name[0] in ("sqrt", "sin", "cos", "lg2", "ex2", "tanh"):
            e = re.sub(r"^(\w+)\(", r"\1f(", e)
        return f.store(a[0], finish_float(name, f"static_cast<float>({e})"))
    return f.store(a[0], _FUNCTIONS[name[0]].format(x))


# ---- bits


@instruction("and", "or", "xor")
def logic(f, name, a):
    t = name[-1]
    operator = {"and": "&", "or": "|", "xor": "^"}[name[0]]
    return f.store(a[0], f"({c_type(t)})({f.value(a[1], t)} {operator} {f.value(a[2], t)})", t)


@instruction("not")
def not_(f, name, a):
    t = name[-1]
    return f.store(a[0], f"!{f.value(a[1], t)}" if t == "pred" else f"({c_type(t)})~{f.value(a[1], t)}", t)


@instruction("cnot")
def cnot(f, name, a):
    return f.store(a[0], f"static_cast<{c_type(name[-1])}>({f.value(a[1], name[-1])} == 0)")


@instruction("lop3")
def lop3(f, name, a):
    if len(name) != 2:
        return unsupported(name)
    return f.store(a[0], f"logic3({', '.join(f.value(v, 'b32') for v in a[1:5])})")


@instruction("shl", "shr")
def shift(f, name, a):
    t = name[-1]
    if a[2].isdigit() and int(a[2]) < 8 * SIZES[t]:
        u = unsigned(t) if name[0] == "shl" else t
        return f.store(a[0], f"({c_type(u)})({f.value(a[1], u)} {'<<' if name[0] == 'shl' else '>>'} {a[2]})", t)
    function = {"shl": "shift_left", "shr": "shift_right"}[name[0]]
    return f.store(a[0], f"{function}({f.value(a[1], name[-1])}, {f.value(a[2], 'u32')})")


@instruction("shf")
def shf(f, name, a):
    function = {"l": "funnel_left", "r": "funnel_right"}[name[1]]
    low, high, by = (f.value(v, "u32") for v in a[1:4])
    return f.store(a[0], f"{function}({low}, {high}, {by}, {'true' if 'clamp' in name else 'false'})")


@instruction("prmt")
def prmt(f, name, a):
    if len(name) != 2:
        return unsupported(name)
    return f.store(a[0], f"permute({', '.join(f.value(v, 'b32') for v in a[1:4])})")


@instruction("bfe")
def bfe(f, name, a):
    return f.store(a[0], f"bit_field({f.value(a[1], name[-1])}, {f.value(a[2], 'u32')}, {f.value(a[3], 'u32')})")


@instruction("bfi")
def bfi(f, name, a):
    t = name[-1]
    return f.store(a[0], f"insert_field({f.values(a[1:3], t)}, {f.values(a[3:5], 'u32')})")


@instruction("bmsk")
def bmsk(f, name, a):
    return f.store(a[0], f"insert_field(~0u, 0u, {f.value(a[1], 'u32')}, {f.value(a[2], 'u32')})")


@instruction("popc", "clz", "brev", "bfind")
def count_bits(f, name, a):
    t = name[-1]
    x = f.value(a[1], t)
    if name[0] == "popc":
        return f.store(a[0], f"static_cast<uint32_t>(__builtin_popcountll({x}))")
    if name[0] == "clz":
        return f.store(a[0], f"leading_zeros({x})")
    if name[0] == "brev":
        return f.store(a[0], f"reverse_bits({x})")
    return f.store(a[0], f"find_top_bit({x}, {'true' if 'shiftamt' in name else 'false'})")


@instruction("sad")
def sad(f, name, a):
    t = name[-1]
    x, y = f.value(a[1], t), f.value(a[2], t)
    u = c_type(unsigned(t))
    return f.store(
        a[0], f"static_cast<{u}>(({x} < {y} ? {u}({y}) - {u}({x}) : {u}({x}) - {u}({y})) + {u}({f.value(a[3], t)}))"
    )


@instruction("dp4a")
def dp4a(f, name, a):
    types = [{"s32": "int8_t", "u32": "uint8_t"}[t] for t in last_types(name)]
    return f.store(a[0], f"dot4<{types[0]}, {types[1]}>({f.values(a[1:4], 'u32')})")


@instruction("dp2a")
def dp2a(f, name, a):
    halves, bytes_ = last_types(name)
    types = {"s32": "int16_t", "u32": "uint16_t"}[halves], {"s32": "int8_t", "u32": "uint8_t"}[bytes_]
    shift = " >> 16" if "hi" in name else ""
    return f.store(
        a[0],
        f"dot2<{types[0]}, {types[1]}>({f.value(a[1], 'u32')}, {f.value(a[2], 'u32')}{shift}, {f.value(a[3], 'u32')})",
    )


# ---- comparisons

_ORDERED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_UNORDERED = {"equ": "==", "neu": "!=", "ltu": "<", "leu": "<=", "gtu": ">", "geu": ">="}
_UNSIGNED = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}


def comparison(operator, x, y, ptx_type):
    if operator in _UNSIGNED:
        return f"({x} {_UNSIGNED[operator]} {y})"
    floating = is_float(ptx_type) or half_format(ptx_type)
    if not floating:
        return f"({x} {_ORDERED[operator]} {y})"
    if operator == "num":
        return f"(!isnan({x}) && !isnan({y}))"
    if operator == "nan":
        return f"(isnan({x}) || isnan({y}))"
    if operator == "ne":
        return f"({x} < {y} || {x} > {y})"
    if operator in _ORDERED:
        return f"({x} {_ORDERED[operator]} {y})"
    if operator == "equ":
        return f"!({x} < {y} || {x} > {y})"
    if operator == "neu":
        return f"({x} != {y})"
    opposite = {"ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}[operator]
    return f"!({x} {opposite} {y})"


def compare_operands(f, name, a, which, t):
    """Expressions of the operands, widened for 16-bit floats; half: 0 or 1 of a pair."""
    if half_format(t):
        fmt = half_format(t)
        shift = f" >> {16 * which}" if t.endswith("x2") else ""
        return [f"{fmt}::widen(static_cast<uint16_t>({f.value(v, t)}{shift}))" for v in a]
    return [float_value(f, name, v, t) for v in a]


def combined(f, name, expression, extra):
    """The boolean operation of setp and set with a third operand."""
    if not extra:
        return expression
    operator = {"and": "&&", "or": "||", "xor": "!="}[next(p for p in name if p in ("and", "or", "xor"))]
    return f"({expression} {operator} {f.value(extra[0], 'pred')})"


@instruction("setp")
def setp(f, name, a):
    t = name[-1]
    destinations = a[0].split("|")
    if t.endswith("x2"):
        e = [comparison(name[1], *compare_operands(f, name, a[1:3], i, t), t) for i in range(2)]
        e = [combined(f, name, x, a[3:]) for x in e]
    else:
        first = comparison(name[1], *compare_operands(f, name, a[1:3], 0, t), t)
        e = [combined(f, name, first, a[3:]), combined(f, name, f"!{first}", a[3:])]
    if len(destinations) == 1:
        return f.store(destinations[0], e[0], "pred")
    p, q = f.temporary(), f.temporary()
    return f"{{ const bool {p} = {e[0]}, {q} = {e[1]}; {f.store(destinations[0], p)} {f.store(destinations[1], q)} }}"


@instruction("set")
def set_(f, name, a):
    to, t = last_types(name)[-2:]
    true = {"f32": "1.0f", "f16": "uint16_t(0x3C00)", "bf16": "uint16_t(0x3F80)"}
    if t.endswith("x2"):
        e = [
            combined(f, name, comparison(name[1], *compare_operands(f, name, a[1:3], i, t), t), a[3:]) for i in range(2)
        ]
        one = {"f16x2": "0x3C00u", "bf16x2": "0x3F80u"}.get(to, "0xFFFFu")
        return f.store(a[0], f"({e[0]} ? {one} : 0u) | ({e[1]} ? {one} : 0u) << 16")
    e = combined(f, name, comparison(name[1], *compare_operands(f, name, a[1:3], 0, t), t), a[3:])
    yes = true.get(to, f"static_cast<{c_type(to)}>(-1)")
    return f.store(a[0], f"{e} ? {yes} : static_cast<{c_type(to)}>(0)")


@instruction("selp")
def selp(f, name, a):
    t = name[-1]
    return f.store(a[0], f"{f.value(a[3], 'pred')} ? {f.value(a[1], t)} : {f.value(a[2], t)}", t)


@instruction("slct")
def slct(f, name, a):
    to, t = last_types(name)[-2:]
    return f.store(a[0], f"{f.value(a[3], t)} >= 0 ? {f.value(a[1], to)} : {f.value(a[2], to)}")


# ---- conversions


@instruction("cvt")
def cvt(f, name, a):
    to, source = last_types(name)[-2:]
    if "tf32" in (to, source) or "satfinite" in name:
        return unsupported(name)
    how = f"Round::{rounding(name)}"
    if to in ("f16x2", "bf16x2"):
        if source != "f32" or len(a) != 3:
            return unsupported(name)
        fmt = half_format(to)
        high, low = (f"round_toward<{fmt}>({relu_of(name, f.value(v, 'f32'))}, {how})" for v in a[1:3])
        return f.store(a[0], f"{low} | static_cast<uint32_t>({high}) << 16", "b32")
    return f.store(a[0], converted(f, name, a[1], to, source, how), to)


def relu_of(name, expression):
    return f"relu({expression})" if "relu" in name else expression


def converted(f, name, operand, to, source, how):
    x = f.value(operand, source)
    if half_format(source):
        if half_format(source) == half_format(to) and not any(
            p in name for p in ("rni", "rzi", "rmi", "rpi", "sat", "relu")
        ):
            return x
        x = f"{half_format(source)}::widen({x})"
    elif source == "f32" and "ftz" in name:
        x = f"flush({x})"
    from_float = is_float(source) or half_format(source)
    if half_format(to):
        fmt = half_format(to)
        if not from_float:
            x = f"static_cast<double>({x})"
        elif any(p in TO_INTEGRAL for p in name):
            x = f"to_integral({x}, {how})"
        if "sat" in name:
            x = f"saturate({x})"
        x = relu_of(name, x)
        if source == "f64" or not from_float:
            return f"round_double<{fmt}>({x})" if how == "Round::nearest" else unsupported(name)
        if any(p in TO_INTEGRAL for p in name):
            how = "Round::nearest"
        return f"round_toward<{fmt}>({x}, {how})"
    if is_float(to):
        if not from_float:
            return finish_float(name, f"static_cast<double>({x})" if to == "f64" else f"int_to_float({x}, {how})")
        if any(p in TO_INTEGRAL for p in name):
            return finish_float(name, f"to_integral({x}, {how})")
        if to == "f32" and source == "f64":
            return finish_float(name, f"double_to_float({x}, {how})")
        return finish_float(name, f"static_cast<{c_type(to)}>({x})")
    if from_float:
        return f"float_to_int<{c_type(to)}>({x}, {how})"
    if "sat" in name:
        return f"clamp_int<{c_type(to)}>({x})"
    return f"({c_type(to)}){x}"


@instruction("cvt.pack")
def cvt_pack(f, name, a):
    narrow = next(p for p in name if p in ("s8", "u8", "s16", "u16"))
    bits = 8 * SIZES[narrow]
    mask = (1 << bits) - 1
    high, low = (f"(static_cast<uint32_t>(clamp_int<{c_type(narrow)}>({f.value(v, 's32')})) & {mask}u)" for v in a[1:3])
    rest = f" | {f.value(a[3], 'u32')} << {2 * bits}" if len(a) > 3 else ""
    return f.store(a[0], f"{low} | {high} << {bits}{rest}")
