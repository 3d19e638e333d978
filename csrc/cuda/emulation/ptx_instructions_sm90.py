"""Hopper's instructions: mbarrier, TMA, wgmma, clusters. See ptx_instructions.py; the C++ is in hopper.h."""

import re

from ptx_instructions import instruction, last_types, unsupported


def boolean(condition):
    return "true" if condition else "false"


def coordinates(f, text):
    """'[map, {x, y}]' -> the map's address and the coordinates, as C++."""
    inner = f.vector("{" + text.strip()[1:-1] + "}")
    return f.value(inner[0], "u64"), [f.value(c, "s32") for c in f.vector(inner[1])]


def without_hint(name, a):
    """The operands without the cache policy, which changes nothing here."""
    return a[:-1] if "L2::cache_hint" in name else a


# ---- mbarriers


@instruction("mbarrier.init")
def mbarrier_init(f, name, a):
    return f"mbarrier_init({f.site()}, {f.address(a[0], 'u32')}, {f.value(a[1], 'u32')});"


@instruction("mbarrier.inval")
def mbarrier_inval(f, name, a):
    return f"mbarrier_invalidate({f.site()}, {f.address(a[0], 'u32')});"


@instruction("mbarrier.arrive")
def mbarrier_arrive(f, name, a):
    if "shared" not in ".".join(name) or "noComplete" in name or not f.is_sink(a[0]):
        return unsupported(name)
    site, barrier, releases = f.site(), f.address(a[1], "u32"), boolean("relaxed" not in name)
    if "expect_tx" in name:
        expect = f"mbarrier_expect({site}, {barrier}, {f.value(a[2], 'u32')});"
        return f"{expect} mbarrier_arrive({site}, {barrier}, 1, {releases});"
    return f"mbarrier_arrive({site}, {barrier}, {f.value(a[2], 'u32') if len(a) > 2 else '1'}, {releases});"


@instruction("mbarrier.expect_tx")
def mbarrier_expect(f, name, a):
    return f"mbarrier_expect({f.site()}, {f.address(a[0], 'u32')}, {f.value(a[1], 'u32')});"


@instruction("mbarrier.try_wait", "mbarrier.test_wait")
def mbarrier_wait(f, name, a):
    if "parity" not in name:
        return unsupported(name)
    acquires = boolean("relaxed" not in name)
    return f.store(
        a[0], f"mbarrier_{name[1]}({f.site()}, {f.address(a[1], 'u32')}, {f.value(a[2], 'u32')}, {acquires})"
    )


# ---- fences


@instruction("fence.mbarrier_init")
def fence_mbarrier_init(f, name, a):
    return f"mbarrier_init_fence({f.site()});"


@instruction("fence.proxy")
def fence_proxy(f, name, a):
    spaces = {"": (True, True), "global": (False, True), "shared::cta": (True, False), "shared::cluster": (True, False)}
    space = ".".join(name[3:])
    if name[2] != "async" or space not in spaces:
        return unsupported(name)
    return f"fence_proxy_async({f.site()}, {', '.join(map(boolean, spaces[space]))});"


# ---- TMA


@instruction("cp.async.bulk")
def cp_async_bulk(f, name, a):
    a = without_hint(name, a)
    if name[3] == "shared::cluster" and name[4] == "global" and "multicast::cluster" not in name:
        to, barrier = f.address(a[0], "u32"), f.address(a[3], "u32")
        return f"bulk_load({f.site()}, {to}, {f.address(a[1])}, {f.value(a[2], 'u32')}, {barrier});"
    if name[3] == "global" and "bulk_group" in name and "cp_mask" not in name:
        return f"bulk_store({f.site()}, {f.address(a[0])}, {f.address(a[1], 'u32')}, {f.value(a[2], 'u32')});"
    return unsupported(name)


@instruction("cp.async.bulk.prefetch")
def cp_async_bulk_prefetch(f, name, a):
    if "tensor" in name:
        return ";"
    return f"prefetch_global({f.site()}, {f.address(a[0])}, {f.value(a[1], 'u32')});"


@instruction("griddepcontrol")
def griddepcontrol(f, name, a):
    return f"grid_dependency_wait({f.site()});" if name[1] == "wait" else ";"


@instruction("cp.async.bulk.tensor")
def cp_async_bulk_tensor(f, name, a):
    dimensions = int(name[4][0])
    at, form = f.temporary(), ".".join(name[5:])
    a = without_hint(name, a)
    if re.search("im2col|gather4|scatter4", form):
        return unsupported(name)
    if form.startswith("shared::cluster.global") or form.startswith("shared::cta.global"):
        map_, xs = coordinates(f, a[1])
        blocks = f"uint32_t({f.value(a[3], 'u16')})" if "multicast::cluster" in form else "0u"
        to, barrier = f.address(a[0], "u32"), f.address(a[2], "u32")
        call = f"tma_load({f.site()}, {dimensions}, {to}, {map_}, {at}, {barrier}, {blocks});"
    elif form.startswith("global.shared::cta"):
        map_, xs = coordinates(f, a[0])
        call = f"tma_store({f.site()}, {dimensions}, {map_}, {at}, {f.address(a[1], 'u32')});"
    else:
        return unsupported(name)
    return f"{{ const int32_t {at}[] = {{{', '.join(xs)}}}; {call} }}"


@instruction("cp.async.bulk.commit_group")
def cp_async_bulk_commit(f, name, a):
    return f"bulk_commit({f.site()});"


@instruction("cp.async.bulk.wait_group")
def cp_async_bulk_wait(f, name, a):
    return f"bulk_wait({f.site()}, {f.value(a[0], 'u32')}, {boolean('read' in name)});"


# ---- wgmma


@instruction("wgmma.mma_async")
def wgmma(f, name, a):
    shape = next((m for m in (re.fullmatch(r"m64n(\d+)k16", p) for p in name) if m), None)
    types = last_types(name)
    if shape is None or types[0] != "f32" or types[1] != types[2] or types[1] not in ("f16", "bf16") or "sp" in name:
        return unsupported(name)
    d, n = f.vector(a[0]), int(shape[1])
    in_registers = a[1].startswith("{")
    accumulate, sign_a, sign_b, *transposed = a[3:]
    transposed_a, transposed_b = ("0", transposed[0]) if in_registers else transposed
    registers = f.temporary()
    fragment = f.vector(a[1]) if in_registers else []
    code = f"{{ wgmma_registers({f.site()}, {{{', '.join(map(f.touched, d + fragment))}}}, fences); "
    for shaped, n_or_0 in (f.shaped(d), n), (f.shaped(fragment), 0):
        if shaped:
            shapes = ", ".join(f"&{f.shape(r)}" for r in shaped)
            code += f"wgmma_shapes({f.site()}, {{{shapes}}}, {n_or_0}, fences); "
    code += f"float {registers}[{n // 2}] = {{{', '.join(f.untouched(r, 'f32') for r in d)}}}; "
    if in_registers:
        rows = f.temporary()
        code += f"const uint32_t {rows}[4] = {{{', '.join(f.untouched(r, 'b32') for r in fragment)}}}; "
        operands = f"{rows}, 0"
    else:
        operands = f"nullptr, {f.value(a[1], 'u64')}"
    fields = [
        f"Element::{types[1]}",
        n,
        boolean(transposed_a != "0"),
        boolean(transposed_b != "0"),
        sign_a,
        sign_b,
        f.value(accumulate, "pred"),
    ]
    issued, operands = f.temporary(), f"{registers}, {operands}, {f.value(a[2], 'u64')}"
    code += f"const uint32_t {issued} = wgmma({f.site()}, {{{', '.join(map(str, fields))}}}, {operands});"
    code += "".join(f" {f.assigned(r, f'{registers}[{i}]')}" for i, r in enumerate(d))
    return code + "".join(f" {f.touched(r)} = {issued};" for r in d + fragment) + " }"


@instruction("wgmma.fence")
def wgmma_fence(f, name, a):
    return f"{'fences = ' if f.wgmma_registers else ''}wgmma_fence({f.site()});"


@instruction("wgmma.commit_group")
def wgmma_commit(f, name, a):
    return f"wgmma_commit({f.site()});"


@instruction("wgmma.wait_group")
def wgmma_wait(f, name, a):
    return f"{'done = ' if f.wgmma_registers else ''}wgmma_wait({f.site()}, {f.value(a[0], 'u32')});"


@instruction("setmaxnreg")
def setmaxnreg(f, name, a):
    return f"set_registers({f.site()}, {f.value(a[0], 'u32')});"


# ---- warps and clusters


@instruction("stmatrix")
def stmatrix(f, name, a):
    registers = f.vector(a[1])
    if "m8n8" not in name or name[-1] != "b16":
        return unsupported(name)
    values = ", ".join(f.value(r, "b32") for r in registers)
    q = f.temporary()
    operands = f"{len(registers)}, {boolean('trans' in name)}, {q}, {f.address(a[0], 'u32')}"
    return f"{{ const uint32_t {q}[] = {{{values}}}; store_matrix({f.site()}, {operands}); }}"


@instruction("elect")
def elect(f, name, a):
    leader, mine = a[0].split("|")
    p, v = f.temporary(), f.temporary()
    code = f"{{ uint32_t {v}; const bool {p} = elect({f.site()}, {f.value(a[1], 'u32')}, &{v}); {f.store(mine, p)}"
    return code + ("" if f.is_sink(leader) else f" {f.store(leader, v)}") + " }"


@instruction("mapa")
def mapa(f, name, a):
    if name[1] != "shared::cluster" or name[-1] != "u32":
        return unsupported(name)
    return f.store(a[0], f"map_to_rank({f.site()}, {f.value(a[1], 'u32')}, {f.value(a[2], 'u32')})")


@instruction("barrier.cluster")
def barrier_cluster(f, name, a):
    if "relaxed" in name:
        return unsupported(name)
    return f"meet_cluster_{name[2]}({f.site()});"
