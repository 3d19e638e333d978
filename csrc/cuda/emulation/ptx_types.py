"""PTX's types: their sizes, and the C++ types that registers of them have."""

SIZES = {
    **dict.fromkeys(("pred", "b8", "u8", "s8"), 1),
    **dict.fromkeys(("b16", "u16", "s16", "f16", "bf16"), 2),
    **dict.fromkeys(("b32", "u32", "s32", "f32", "f16x2", "bf16x2", "tf32"), 4),
    **dict.fromkeys(("b64", "u64", "s64", "f64"), 8),
    "b128": 16,
}
_C = {
    "pred": "bool",
    "f32": "float",
    "f64": "double",
    "s8": "int8_t",
    "s16": "int16_t",
    "s32": "int32_t",
    "s64": "int64_t",
    "b128": "unsigned __int128",
}


def c_type(ptx_type):
    return _C.get(ptx_type) or f"uint{8 * SIZES[ptx_type]}_t"


def kind(ptx_type):
    """Between types of one kind C++ converts as PTX moves bits: integers widen and narrow, and a float is itself."""
    return ptx_type if ptx_type in ("pred", "f32", "f64", "b128") else "int"


def unsigned(ptx_type):
    """Arithmetic that wraps is done on unsigned integers."""
    return "u" + ptx_type[1:] if ptx_type[0] in "sb" and ptx_type[1:].isdigit() else ptx_type


def is_float(ptx_type):
    return ptx_type in ("f32", "f64")


def half_format(ptx_type):
    """The format of a 16-bit float type, alone or as a pair, or None."""
    return {"f16": "F16", "f16x2": "F16", "bf16": "BF16", "bf16x2": "BF16"}.get(ptx_type)
