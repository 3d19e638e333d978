"""What each PTX instruction is in C++.

A function here gets the translator's Function, the parts of the instruction's name ('ld', 'global', 'v2', 'f32') and
its operands, and returns C++ statements. What the C++ calls is in ptx.h, memory.h, warp.h, tensor_core.h, async.h and
block.h. Arithmetic is in ptx_arithmetic.py, Hopper in ptx_instructions_sm90.py.
"""

import re

from ptx_types import SIZES, c_type, half_format, is_float, unsigned

HANDLERS = {}


class PtxError(Exception):
    pass


def instruction(*names):
    """Registers a function for all instructions that start with one of these names, of which the longest wins."""

    def register(function):
        for name in names:
            HANDLERS[name] = function
        return function

    return register


def find(name):
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        handler = HANDLERS.get(".".join(parts[:n]))
        if handler:
            return handler
    return None


def unsupported(name):
    raise PtxError(f"this form of the instruction is not emulated: {'.'.join(name)}")


def last_types(name):
    return [p for p in name[1:] if p in SIZES]


_DIMENSIONS = {
    "tid": "current->index",
    "ctaid": "current->block->index",
    "ntid": "launched->block",
    "nctaid": "launched->grid",
    "cluster_nctaid": "launched->cluster",
}
_SPECIAL = {
    "%laneid": "current->lane",
    "%warpid": "current->warp",
    "%nwarpid": "uint32_t((launched->threads + 31) / 32)",
    "%smid": "0u",
    "%nsmid": "uint32_t(config.multiprocessors)",
    "%gridid": "uint64_t(1)",
    "%clock": "uint32_t(clock_now())",
    "%clock_hi": "uint32_t(clock_now() >> 32)",
    "%clock64": "clock_now()",
    "%globaltimer": "clock_now()",
    "%globaltimer_lo": "uint32_t(clock_now())",
    "%lanemask_eq": "(1u << current->lane)",
    "%lanemask_lt": "((1u << current->lane) - 1)",
    "%lanemask_le": "((2u << current->lane) - 1)",
    "%lanemask_gt": "~((2u << current->lane) - 1)",
    "%lanemask_ge": "~((1u << current->lane) - 1)",
    "%dynamic_smem_size": "launched->dynamic_shared",
    "%total_smem_size": "(launched->dynamic_shared + launched->kernel->shared_bytes)",
    "%cluster_ctarank": "current->block->rank",
    "%cluster_nctarank": "launched->cluster_size",
    "%is_explicit_cluster": "(launched->cluster_size > 1)",
}


def special_register(text):
    m = re.fullmatch(r"%(\w+)\.([xyz])", text)
    if m:
        if m[1] == "cluster_ctaid":
            return f"(current->block->index.{m[2]} % launched->cluster.{m[2]})"
        if m[1] == "clusterid":
            return f"(current->block->index.{m[2]} / launched->cluster.{m[2]})"
        if m[1] == "nclusterid":
            return f"(launched->grid.{m[2]} / launched->cluster.{m[2]})"
        return f"{_DIMENSIONS[m[1]]}.{m[2]}" if m[1] in _DIMENSIONS else None
    return _SPECIAL.get(text)


# ---- moves


@instruction("mov")
def mov(f, name, a):
    t = name[-1]
    if a[0].startswith("{"):
        names = f.vector(a[0])
        temporaries = []
        declare = touches = ""
        for n in names:
            if f.is_sink(n):
                bits = SIZES[t] * 8 // len(names)
                temporary = f.temporary()
                declare += f"uint{bits}_t {temporary}; "
                temporaries.append(temporary)
            else:
                temporaries.append(f.register(n))
                touches += f" {f.touch(n)};" if n in f.wgmma_registers else ""
        whole = f.value(a[1], "u64" if t == "f64" else unsigned(t))
        return f"{{ {declare}unpack({whole}, {', '.join(temporaries)});{touches} }}"
    if a[1].startswith("{"):
        parts = f.vector(a[1])
        packed = f"pack({f.values(parts, f'b{SIZES[t] * 8 // len(parts)}')})"
        return f.store(a[0], f"as<{c_type(t)}>(static_cast<uint{SIZES[t] * 8}_t>({packed}))", t)
    return f.store(a[0], f.value(a[1], t), t)


@instruction("cvta")
def cvta(f, name, a):
    v64 = f.value(a[1], name[-1])
    if any(p.startswith("shared") for p in name):
        if "to" in name:
            return f.store(a[0], f"static_cast<{c_type(name[-1])}>(generic_to_shared({v64}))")
        return f.store(a[0], f"static_cast<{c_type(name[-1])}>(shared_to_generic(static_cast<uint32_t>({v64})))")
    return f.store(a[0], v64, name[-1])  # one address space holds all the others


@instruction("isspacep")
def isspacep(f, name, a):
    address = f.value(a[1], "u64")
    if name[1].startswith("shared"):
        return f.store(a[0], f"is_shared({address})")
    if name[1] == "local":
        return f.store(a[0], f"in_stack(current->agent, reinterpret_cast<void*>({address}))")
    if name[1] == "global":
        return f.store(a[0], f"!is_shared({address}) && !in_stack(current->agent, reinterpret_cast<void*>({address}))")
    return unsupported(name)


@instruction("prefetch", "prefetchu", "applypriority", "discard", "pmevent")
def no_effect(f, name, a):
    return ";"


@instruction("createpolicy")
def createpolicy(f, name, a):
    return f.store(a[0], "uint64_t(0)")


# ---- loads and stores


def space_of(name):
    for part in name[1:]:
        if part.startswith("shared"):
            return "shared"
        if part in ("global", "local", "param", "const"):
            return part
        if part.startswith("param"):
            return "param"
    return "generic"


def vector_count(name):
    return 8 if "v8" in name else 4 if "v4" in name else 2 if "v2" in name else 1


ORDERED = ("volatile", "relaxed", "acquire", "release", "mmio")


def generic_address(f, name, operand):
    if space_of(name) == "shared":
        return f"shared_to_generic({f.address(operand, 'u32')})"
    return f.address(operand)


@instruction("ld", "ldu")
def ld(f, name, a):
    t, count, space = name[-1], vector_count(name), space_of(name)
    registers = f.vector(a[0])
    if count == 1 and len(registers) != 1:
        return unsupported(name)
    q = f.temporary()
    code = f"{{ {c_type(t)} {q}[{count}]; "
    size = SIZES[t] * count
    if any(p in ORDERED for p in name) and space in ("shared", "global", "generic"):
        acquires = "true" if "acquire" in name else "false"
        address = generic_address(f, name, a[1])
        place = f"synchronising_bytes({f.site()}, {address}, {size}, true, false, {acquires}, false, true)"
        code += f"memcpy({q}, {place}, {size});"
    elif space in ("param", "local", "const"):
        code += f"memcpy({q}, reinterpret_cast<const void*>({f.address(a[1])}), {size});"
    else:
        if space == "global" and "nc" in name:
            space = "read_only"
        code += f"load_{space}<{size}>({f.site()}, {q}, {f.address(a[1], 'u32' if space == 'shared' else 'u64')});"
    return code + f.store_all(registers, q, t) + " }"


@instruction("st")
def st(f, name, a):
    if name[1] in ("async", "bulk"):
        return unsupported(name)
    t, count, space = name[-1], vector_count(name), space_of(name)
    values = f.vector(a[1])
    q = f.temporary()
    code = f"{{ const {c_type(t)} {q}[{count}] = {{" + ", ".join(f.value(v, t) for v in values) + "}; "
    size = SIZES[t] * count
    if any(p in ORDERED for p in name) and space in ("shared", "global", "generic"):
        releases = "true" if "release" in name else "false"
        address = generic_address(f, name, a[0])
        place = f"synchronising_bytes({f.site()}, {address}, {size}, false, true, false, {releases}, false)"
        code += f"memcpy({place}, {q}, {size});"
    elif space in ("param", "local"):
        code += f"memcpy(reinterpret_cast<void*>({f.address(a[0])}), {q}, {size});"
    else:
        code += f"store_{space}<{size}>({f.site()}, {q}, {f.address(a[0], 'u32' if space == 'shared' else 'u64')});"
    return code + " }"


_ATOMIC = {
    "add": "old + value",
    "min": "minimum(old, value)",
    "max": "maximum(old, value)",
    "and": "old & value",
    "or": "old | value",
    "xor": "old ^ value",
    "exch": "value",
    "inc": "increment_wrapped(old, value)",
    "dec": "decrement_wrapped(old, value)",
    "cas": "old == value ? other : old",
}


@instruction("atom", "red")
def atom(f, name, a):
    if name[1] == "async":
        return unsupported(name)
    returns = name[0] == "atom"
    destination, operand, *values = a if returns else ["_", *a]
    operation = next((p for p in name[1:] if p in _ATOMIC), None)
    t = name[-1]
    if operation is None or t not in SIZES or vector_count(name) > 1:
        return unsupported(name)
    c = c_type(t)
    # A release or acquire is also what the default of an atomic is not: it is relaxed.
    acquires = "true" if "acquire" in name or "acq_rel" in name else "false"
    releases = "true" if "release" in name or "acq_rel" in name else "false"
    new = _ATOMIC[operation]
    if half_format(t):
        fmt = half_format(t)
        if operation != "add":
            return unsupported(name)
        new = f"each_half(old, value, add16<{fmt}>)" if t.endswith("x2") else f"add16<{fmt}>(old, value)"
    elif operation == "add" and not is_float(t):
        u = c_type(unsigned(t))
        new = f"({c})(({u})old + ({u})value)"
    other = f"const {c} other = {f.value(values[1], t)}; " if operation == "cas" else ""
    address, update = generic_address(f, name, operand), f"[&]({c} old) -> {c} {{ return {new}; }}"
    arguments = f"{f.site()}, {address}, {acquires}, {releases}"
    call = f"atomic_update<{c}>({arguments}, {update})"
    if (
        operation == "exch"
    ):  # what it replaces counts only if somebody looks at it: PTX has no exchange without a result
        call = f"{f.is_read(destination)} ? {call} : atomic_exchange<{c}>({arguments}, value)"
    return f"{{ const {c} value = {f.value(values[0], t)}; {other}{f.store(destination, call)} }}"


# ---- control


@instruction("bra")
def bra(f, name, a):
    return f"goto {f.label(a[0])};"


@instruction("brx.idx")
def brx(f, name, a):
    targets = f.branch_targets[a[1]]
    return (
        f"switch ({f.value(a[0], 'u32')}) {{"
        + "".join(f" case {i}: goto {f.label(t)};" for i, t in enumerate(targets))
        + " }"
    )


@instruction("ret")
def ret(f, name, a):
    return "return;"


@instruction("exit")
def exit_(f, name, a):
    return "return;" if f.is_kernel else unsupported(name)


@instruction("trap", "brkpt")
def trap(f, name, a):
    return f'current->site = {f.site()}; fail(FaultKind::other, "the kernel ended itself (trap)");'


@instruction("call")
def call(f, name, a):
    results = f.vector_of_parentheses(a.pop(0)) if a[0].startswith("(") else []
    function, arguments = a[0], f.vector_of_parentheses(a[1]) if len(a) > 1 else []
    if function == "vprintf":
        return f"memset({f.locals[results[0]]}, 0, 4);"
    if function == "__assertfail":
        return f'current->site = {f.site()}; fail(FaultKind::other, "assert() in the kernel failed");'
    if function not in {g.name for g in f.module.functions}:
        return unsupported(["call", function])
    code = f"F_{function.replace('$', '_S_')}(" + ", ".join(f.locals[x] for x in results + arguments) + ");"
    return code + (" fences = wgmma_fences(); done = wgmma_done();" if f.wgmma_registers else "")


@instruction("nanosleep")
def nanosleep(f, name, a):
    return "let_others_run(true);"


# ---- threads together


@instruction("bar", "barrier")
def bar(f, name, a):
    if name[1] == "cta":
        name = name[:1] + name[2:]
    if name[1] == "warp":
        return f"warp_barrier({f.site()}, {f.value(a[0], 'u32')});"
    if name[1] in ("sync", "arrive"):
        count = f.value(a[1], "u32") if len(a) > 1 else "0"
        wait = "" if name[1] == "sync" else ", false"
        return f"barrier({f.site()}, {f.value(a[0], 'u32')}, {count}{wait});"
    if name[1] == "red":
        operations = {"popc": "popc", "and": "all", "or": "any"}
        operation = next(operations[p] for p in name if p in operations)
        count = f.value(a[2], "u32") if len(a) > 3 else "0"
        to = c_type(name[-1])
        barrier, predicate = f.value(a[1], "u32"), f.value(a[-1], "pred")
        e = f"barrier_reduce({f.site()}, {barrier}, {count}, Reduction::{operation}, {predicate})"
        return f.store(a[0], f"static_cast<{to}>({e})")
    return unsupported(name)


@instruction("membar", "fence")
def fence(f, name, a):
    return f"if (config.check) check_fence({'false' if 'cta' in name else 'true'});"


@instruction("shfl")
def shfl(f, name, a):
    mode = {"up": "up", "down": "down", "bfly": "butterfly", "idx": "index"}[name[2]]
    destinations = a[0].split("|")
    p, v = f.temporary(), f.temporary()
    code = f"{{ bool {p}; const uint32_t {v} = shuffle({f.site()}, ShuffleMode::{mode}, "
    code += ", ".join(f.value(x, "b32") for x in a[1:5]) + f", &{p}); {f.store(destinations[0], v, 'b32')}"
    if len(destinations) > 1:
        code += f" {f.store(destinations[1], p, 'pred')}"
    return code + " }"


@instruction("vote")
def vote(f, name, a):
    if name[1] != "sync":
        return unsupported(name)
    function = {"ballot": "vote_ballot", "all": "vote_all", "any": "vote_any", "uni": "vote_uniform"}[name[2]]
    return f.store(a[0], f"{function}({f.site()}, {f.value(a[1], 'pred')}, {f.value(a[2], 'u32')})")


@instruction("match")
def match(f, name, a):
    value, mask = f.value(a[1], name[-1]), f.value(a[2], "u32")
    if name[1] == "any":
        return f.store(a[0], f"match_any({f.site()}, {value}, {mask})")
    destinations = a[0].split("|")
    p, v = f.temporary(), f.temporary()
    code = (
        f"{{ bool {p}; const uint32_t {v} = match_all({f.site()}, {value}, {mask}, &{p}); {f.store(destinations[0], v)}"
    )
    return code + (f" {f.store(destinations[1], p)}" if len(destinations) > 1 else "") + " }"


@instruction("activemask")
def activemask(f, name, a):
    return f.store(a[0], "(1u << current->lane)")  # lanes of a warp need not run together, and here they never do


@instruction("redux")
def redux(f, name, a):
    t = name[-1]
    operation = name[2]
    if t not in ("s32", "u32", "b32"):
        return unsupported(name)
    kinds = {"add": "add", "and": "bit_and", "or": "bit_or", "xor": "bit_xor"}
    kind = kinds.get(operation) or operation + ("_signed" if t == "s32" else "_unsigned")
    return f.store(a[0], f"reduce({f.site()}, Redux::{kind}, {f.value(a[1], 'u32')}, {f.value(a[2], 'u32')})")


# ---- asynchronous copies and tensor cores


@instruction("cp.async.ca", "cp.async.cg")
def cp_async(f, name, a):
    size = a[2]
    extra = [x for x in a[3:]]
    hint = "L2::cache_hint" in ".".join(name)
    if hint:
        extra = extra[:-1]
    if extra and f.registers.get(extra[0].lstrip("!")) == "pred":
        source = f"({f.value(extra[0], 'pred')} ? 0u : {size}u)"
    elif extra:
        source = f.value(extra[0], "u32")
    else:
        source = f"{size}u"
    return f"copy_async({f.site()}, {f.address(a[0], 'u32')}, {f.address(a[1])}, {size}, {source});"


@instruction("cp.async.commit_group")
def cp_async_commit(f, name, a):
    return "copy_async_commit();"


@instruction("cp.async.wait_group")
def cp_async_wait(f, name, a):
    return f"copy_async_wait({f.site()}, {f.value(a[0], 'u32')});"


@instruction("cp.async.wait_all")
def cp_async_wait_all(f, name, a):
    return f"copy_async_wait_all({f.site()});"


@instruction("ldmatrix")
def ldmatrix(f, name, a):
    registers = f.vector(a[0])
    if "m8n8" not in name or name[-1] != "b16":
        return unsupported(name)
    q = f.temporary()
    trans = "true" if "trans" in name else "false"
    code = f"{{ uint32_t {q}[4]; load_matrix({f.site()}, {len(registers)}, {trans}, {q}, {f.address(a[1], 'u32')});"
    return code + f.store_all(registers, q, "b32") + " }"


@instruction("movmatrix")
def movmatrix(f, name, a):
    return f.store(a[0], f"move_matrix({f.site()}, {f.value(a[1], 'u32')})")


@instruction("mma")
def mma(f, name, a):
    shape = next((p for p in name if re.fullmatch(r"m16n8k\d+", p)), None)
    types = last_types(name)
    d, ra, rb, rc = (f.vector(v) for v in a[:4])
    known = shape in ("m16n8k8", "m16n8k16") and types[1] == types[2] and types[1] in ("f16", "bf16")
    if not known or name[1] != "sync" or "row" not in name or "col" not in name:
        return unsupported(name)
    k = int(shape[6:])
    x, y, z, out = (f.temporary() for _ in range(4))
    c, sums = ("float", "f32") if types[0] == "f32" else ("uint32_t", "b32")
    code = f"{{ const uint32_t {x}[] = {{{f.values(ra, 'b32')}}}, {y}[] = {{{f.values(rb, 'b32')}}}; "
    code += f"const {c} {z}[] = {{{f.values(rc, sums)}}}; {c} {out}[{len(d)}]; "
    if c == "float":
        code += f"mma_f32({f.site()}, Element::{types[1]}, {k}, {out}, {x}, {y}, {z});"
    elif types[1] == "f16":
        code += f"mma_f16({f.site()}, {k}, {out}, {x}, {y}, {z});"
    else:
        return unsupported(name)
    return code + f.store_all(d, out, sums) + " }"
