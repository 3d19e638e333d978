#!/usr/bin/env python3
"""Translates nvcc's PTX to C++ for the emulator: every kernel becomes a C++ function, every instruction one statement.

    ptx_to_cpp.py kernels.ptx kernels.ptx.cpp

An instruction that nobody has described is an error that names its line. The functions that describe them are in
ptx_instructions.py, ptx_arithmetic.py and ptx_instructions_sm90.py; this file reads PTX, declares registers, lays out
parameters and shared memory, and writes the tables of registry.h.
"""

import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # not there with PYTHONSAFEPATH

import ptx_arithmetic  # noqa: F401  (adds to the table of instructions, as the next)
import ptx_instructions
import ptx_instructions_sm90  # noqa: F401
from ptx_instructions import PtxError
from ptx_types import SIZES, c_type, kind

SHARED_START = 1024  # memory.h: kSharedStart
GAP = 32  # bytes between static arrays and between variables, so that running over the end of one is seen


def split_operands(text):
    """'a, {b, c}, [d, {e, f}]' -> ['a', '{b, c}', '[d, {e, f}]']"""
    parts, depth, start = [], 0, 0
    for i, ch in enumerate(text):
        if ch in "{[(":
            depth += 1
        elif ch in "}])":
            depth -= 1
        elif ch == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    if text[start:].strip():
        parts.append(text[start:].strip())
    return parts


def align_up(value, alignment):
    return (value + alignment - 1) // alignment * alignment


def c_name(name):
    return name.lstrip("%").replace("$", "_S_").replace(".", "_")


def c_string(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class Statement:
    """One of: an instruction or directive (text), a label, '{' or '}'."""

    def __init__(self, text, line):
        self.text, self.line = text, line


def statements(text, first_line):
    """Cuts PTX into statements; braces that are operands stay inside theirs."""
    out, current, depth, line, start_line = [], "", 0, first_line, first_line
    i, n = 0, len(text)
    while i < n:
        ch = text[i]
        if ch == "\n":
            # .loc and .file have no semicolon
            if re.match(r"\s*\.(loc|file)\b", current):
                out.append(Statement(current.strip(), start_line))
                current = ""
            line += 1
        if not current.strip():
            start_line = line
            if ch in "{}" and depth == 0:
                out.append(Statement(ch, line))
                current = ""
                i += 1
                continue
        if ch == '"':  # a string, of .pragma or .file
            end = text.index('"', i + 1)
            current += text[i : end + 1]
            i = end + 1
            continue
        if ch in "{[(":
            depth += 1
        elif ch in "}])":
            depth -= 1
        if ch == ";" and depth == 0:
            if current.strip():
                out.append(Statement(" ".join(current.split()), start_line))
            current = ""
        elif ch == ":" and depth == 0 and re.fullmatch(r"\s*[\w$%]+", current) and text[i + 1 : i + 2] != ":":
            out.append(Statement(current.strip() + ":", start_line))
            current = ""
        else:
            current += ch
        i += 1
    if current.strip():
        out.append(Statement(" ".join(current.split()), start_line))
    return out


def parse_variable(text):
    """'.align 4 .b8 name[64] = {...}' -> (alignment, type, name, bytes, initialiser or None)"""
    m = re.match(
        r"(?:\.(?:attribute\([^)]*\))\s*)?(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$%]+)\s*((?:\[\d*\])*)\s*(?:=\s*(.*))?$",
        text,
        re.S,
    )
    if not m:
        raise PtxError(f"cannot read the variable '{text}'")
    size = SIZES[m[2]]
    count = 1
    for dimension in re.findall(r"\[(\d*)\]", m[4]):
        count *= int(dimension or 0)
    return int(m[1] or size), m[2], m[3], size * count, m[5]


class Function:
    """A kernel or device function on its way to C++."""

    def __init__(self, module, name, is_kernel, parameters, results, body, first_line):
        self.module, self.name, self.is_kernel = module, name, is_kernel
        self.parameters, self.results, self.body = parameters, results, body
        self.statements = statements(body, first_line)
        self.registers = {}  # name -> PTX type
        # Sums and fragments of a, beside which stands when they were last touched -> n of their products, 0: those of a
        self.wgmma_registers = {}
        self.locals = {}  # .local and .param variables -> C++ expression of their address
        self.shared = {}  # name -> offset
        self.shared_arrays, self.shared_end, self.dynamic_alignment = [], SHARED_START, 0  # of a kernel: all it uses
        self.out = []
        self.temporaries = 0
        self.reads, self.asked = set(), set()  # registers that instructions read; those for which is_read was asked
        self.branch_targets = {}
        self.location = ("", 0)
        self.callers = {}  # place that was inlined -> place of the call, as .loc says
        self.line = first_line

    # ---- operands

    def register(self, name):
        return "R_" + c_name(name)

    def is_sink(self, name):
        return name == "_"

    def is_read(self, name):
        """Whether any instruction reads a register, as C++: known when all have been translated."""
        if self.is_sink(name):
            return "false"
        self.asked.add(name)
        return f"{self.register(name)}_is_read"

    def immediate(self, text, ptx_type):
        c = c_type(ptx_type)
        m = re.fullmatch(r"(-?)0[fF]([0-9a-fA-F]{8})", text)
        if m:
            bits = int(m[2], 16) ^ (0x80000000 if m[1] else 0)
            return f"as<{c}>(bits_as<float>(0x{bits:08X}u))" if c != "float" else f"bits_as<float>(0x{bits:08X}u)"
        m = re.fullmatch(r"(-?)0[dD]([0-9a-fA-F]{16})", text)
        if m:
            bits = int(m[2], 16) ^ (1 << 63 if m[1] else 0)
            return f"as<{c}>(bits_as<double>(uint64_t{{0x{bits:016X}u}}))"
        m = re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?", text)
        if not m:
            return None
        value = int(text.rstrip("U"), 0) & 0xFFFFFFFFFFFFFFFF
        if ptx_type == "pred":
            return "true" if value else "false"
        if c in ("float", "double"):
            return f"as<{c}>(uint{8 * SIZES[ptx_type]}_t({value & (1 << 8 * SIZES[ptx_type]) - 1}u))"
        bits = 8 * SIZES[ptx_type]
        value &= (1 << bits) - 1
        if c.startswith("int") and value >> (bits - 1):
            value -= 1 << bits
        if bits == 32 and value != -(1 << 31):
            return f"{value}u" if c.startswith("u") else f"({value})"
        return f"static_cast<{c}>({value}{'ll' if c.startswith('int') and value != -(1 << 63) else 'ull'})"

    def value(self, text, ptx_type):
        """A C++ expression for an operand, as the PTX type says."""
        c = c_type(ptx_type)
        text = text.strip()
        if text.startswith("!"):
            return f"!{self.value(text[1:], 'pred')}"
        constant = self.immediate(text, ptx_type)
        if constant is not None:
            return constant
        if text in self.registers:
            self.reads.add(text)
            register = self.register(text)
            if text in self.wgmma_registers:
                register = f"({self.touch(text)}, {register})"
            return self.converted(register, self.registers[text], ptx_type)
        special = ptx_instructions.special_register(text)
        if special:
            return f"as<{c}>({special})"
        m = re.fullmatch(r"([\w$%]+)\s*\+\s*(-?\d+)", text)
        if m:
            return f"static_cast<{c}>({self.symbol(m[1])} + ({m[2]}))"
        return f"static_cast<{c}>({self.symbol(text)})"

    def symbol(self, name):
        """The address of a variable or function as an integer."""
        m = re.fullmatch(r"generic\(([\w$]+)\)", name)
        if m:
            if self.is_shared_symbol(m[1]):
                return f"shared_to_generic({self.symbol(m[1])})"
            name = m[1]
        if name in self.shared:
            return f"{self.shared[name]}u"
        if name in self.module.shared:
            return f"{self.module.shared[name]}u"
        if name in self.module.dynamic:
            return "dynamic_shared_address()"
        if name in self.locals:
            return f"reinterpret_cast<uint64_t>({self.locals[name]})"
        if name in self.module.variables:
            return f"reinterpret_cast<uint64_t>(V_{c_name(name)})"
        raise PtxError(f"nothing is called '{name}'")

    def is_shared_symbol(self, name):
        return name in self.shared or name in self.module.shared or name in self.module.dynamic

    def address(self, text, ptx_type="u64"):
        """'[base+offset]' as an integer expression."""
        inner = text.strip()
        if inner.startswith("["):
            inner = inner[1:-1].strip()
        m = re.fullmatch(r"(.+?)\s*\+\s*(-?\d+)", inner)
        base, offset = (m[1].strip(), int(m[2])) if m else (inner, 0)
        e = self.value(base, self.address_type(base))
        if offset:
            e = f"({e} + {offset})" if offset > 0 else f"({e} - {-offset})"
        return f"static_cast<{c_type(ptx_type)}>({e})"

    def address_type(self, base):
        return "u64" if SIZES.get(self.registers.get(base, "b64")) == 8 else "u32"

    def vector(self, text):
        text = text.strip()
        return split_operands(text[1:-1]) if text.startswith("{") else [text]

    def values(self, operands, ptx_type):
        return ", ".join(self.value(o, ptx_type) for o in operands)

    def store_all(self, registers, array, ptx_type):
        """Assigns the elements of a C++ array to registers."""
        return "".join(
            f" {self.store(r, f'{array}[{i}]', ptx_type)}" for i, r in enumerate(registers) if not self.is_sink(r)
        )

    def vector_of_parentheses(self, text):
        return split_operands(text.strip()[1:-1])

    def converted(self, register, from_type, to_type):
        """A register, read as another type; spelled so that the compiler has little to do, for there are very many."""
        have, want = c_type(from_type), c_type(to_type)
        if have == want:
            return register
        if kind(from_type) == kind(to_type) == "int" and SIZES[from_type] >= SIZES[to_type]:
            return f"({want}){register}"
        if kind(from_type) == kind(to_type) == "int":
            return f"({want})(u{have.lstrip('u')}){register}"
        simple = {("float", "uint32_t"): "bits_of_float", ("uint32_t", "float"): "float_of_bits"}.get((have, want))
        return f"{simple}({register})" if simple else f"as<{want}>({register})"

    def store(self, destination, expression, ptx_type=None):
        """Assigns to a register, or drops the value. ptx_type: the expression's type, where it is known."""
        if self.is_sink(destination):
            return f"(void)({expression});"
        if destination in self.wgmma_registers:
            return f"{self.assigned(destination, expression, ptx_type)} {self.touch(destination)};"
        return self.assigned(destination, expression, ptx_type)

    def assigned(self, destination, expression, ptx_type=None):
        if ptx_type and kind(self.registers[destination]) == kind(ptx_type):
            return f"{self.register(destination)} = {expression};"
        if ptx_type == "b32" and self.registers[destination] == "f32":
            return f"{self.register(destination)} = float_of_bits({expression});"
        return f"set({self.register(destination)}, {expression});"

    def touched(self, register):
        """The variable that says behind how many wgmma.fence another instruction last read or wrote a register, or the
        number of the wgmma that did."""
        return f"W_{c_name(register)}"

    def touch(self, register):
        """An expression: another instruction than wgmma reads or writes the register."""
        touched = self.touched(register)
        return f"({touched} > done ? wgmma_touched({self.site()}) : ({touched} = fences))"

    def shape(self, register):
        """The variable that says of what shape the last wgmma was, where it may be one of several."""
        return f"N_{c_name(register)}"

    def shaped(self, registers):
        return [r for r in registers if len(self.wgmma_registers[r]) > 1]

    def untouched(self, register, ptx_type):
        """A register's value, for wgmma itself."""
        self.reads.add(register)
        return self.converted(self.register(register), self.registers[register], ptx_type)

    def temporary(self):
        self.temporaries += 1
        return f"t{self.temporaries}"

    def site(self):
        """A number for the instruction that is being translated."""
        return self.module.add_site(self.line, self.location, self.current_text)

    def label(self, name):
        for scope in reversed(self.scope_path):
            if name in self.labels[scope]:
                return f"L{scope}_{c_name(name)}"
        raise PtxError(f"no label '{name}'")

    # ---- the body

    def find_labels(self):
        self.labels, self.scopes = {0: set()}, []
        path, count = [0], 0
        for s in self.statements:
            if s.text == "{":
                count += 1
                path.append(count)
                self.labels[count] = set()
            elif s.text.endswith(":"):
                self.labels[path[-1]].add(s.text[:-1])
            self.scopes.append(list(path))
            if s.text == "}":
                path.pop()

    def declare_registers(self, text):
        m = re.match(r"\.reg\s*\.(\w+)\s+(.*)$", text, re.S)
        names = []
        for name in split_operands(m[2]):
            many = re.fullmatch(r"(%?[\w$]+)<(\d+)>", name)
            names += [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name]
        for name in names:
            self.registers[name] = m[1]
        if names:
            self.out.append(f"{c_type(m[1])} " + ", ".join(self.register(n) for n in names) + ";")
        used = [n for n in names if n in self.wgmma_registers]
        self.out += [f"uint32_t {self.touched(n)} = 0;" for n in used]
        self.out += [f"uint64_t {self.shape(n)} = 0;" for n in self.shaped(used)]

    def declare_shared(self, text):
        alignment, _, name, size, _ = parse_variable(text)
        offset = align_up(self.shared_end + (GAP if self.shared_arrays else 0), max(alignment, 16))
        self.shared[name] = offset
        self.shared_arrays.append((offset, size))
        self.shared_end = offset + size

    def directive(self, text):
        if text.startswith(".reg"):
            self.declare_registers(text)
        elif text.startswith(".shared"):
            if not self.is_kernel:
                raise PtxError("a shared array in a device function")
            self.declare_shared(text[len(".shared") :].strip())
        elif text.startswith(".local") or text.startswith(".param"):
            alignment, _, name, size, _ = parse_variable(text[len(".local") :].strip())
            c = f"M{self.temporary()}_{c_name(name)}"
            self.locals[name] = c
            self.out.append(f"alignas({max(alignment, 8)}) unsigned char {c}[{max(size, 1)}];")
            if text.startswith(".local"):
                self.out.append(f"memset({c}, 0xFF, sizeof {c});")
        elif text.startswith(".loc"):
            # Of what was inlined from CUDA's headers or intrinsics.cuh, the place that called it says more.
            # A .loc names its caller; the caller's own .loc stands right before it.
            m = re.match(r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)(?:.*inlined_at\s+(\d+)\s+(\d+)\s+(\d+))?", text)
            place = m.group(1, 2, 3)
            if m[4]:
                self.callers[place] = m.group(4, 5, 6)
            else:
                self.callers.pop(place, None)
            inlined = r"/include/|/intrinsics\w*\.cuh$"
            while place in self.callers and re.search(inlined, self.module.files.get(place[0], "")):
                place = self.callers[place]
            self.location = (place[0], int(place[1]))
        elif re.match(r"\.(pragma|file|maxn|reqn|minn|callprototype|branchtargets|noreturn)", text):
            pass
        else:
            raise PtxError(f"unknown directive '{text}'")

    def instruction(self, text):
        guard = ""
        m = re.match(r"@(!?)(%?[\w$]+)\s+(.*)$", text, re.S)
        if m:
            guard = f"if ({m[1]}{self.register(m[2])}) "
            text = m[3]
        m = re.match(r"([\w.:]+)\s*(.*)$", text, re.S)
        name, operands = m[1], split_operands(m[2])
        self.current_text = text
        handler = ptx_instructions.find(name)
        if handler is None:
            raise PtxError(f"unknown instruction '{text}'")
        code = handler(self, name.split("."), operands)
        self.out.append(guard + ("{ " + code + " }" if guard else code))

    def translate(self):
        self.find_labels()
        if self.is_kernel:
            offset, self.parameter_table = 0, []
            for parameter in self.parameters:
                alignment, _, name, size, _ = parse_variable(parameter)
                offset = align_up(offset, alignment)
                self.locals[name] = f"(parameters + {offset})"
                self.parameter_table.append((offset, size))
                offset += size
            self.parameter_bytes = offset
        else:
            for i, parameter in enumerate(self.parameters):
                self.locals[parse_variable(parameter)[2]] = f"p{i}"
            for i, result in enumerate(self.results):
                self.locals[parse_variable(result)[2]] = f"r{i}"
        self.out.append("bool carry = false;")
        for s in self.statements:
            if "wgmma.mma_async" in s.text:
                d, a = (self.vector(x) for x in split_operands(s.text[s.text.index("{") :])[:2])
                for registers, n in (d, 2 * len(d)), (a if len(a) > 1 else [], 0):
                    for r in registers:
                        self.wgmma_registers.setdefault(r, set()).add(n)
        if self.wgmma_registers:
            self.out.append("uint32_t fences = wgmma_fences(), done = wgmma_done();")
        for i, s in enumerate(self.statements):  # branch targets may stand behind their use
            m = re.match(r"\.branchtargets\s+(.*)$", s.text, re.S)
            if m:
                self.branch_targets[self.statements[i - 1].text[:-1]] = split_operands(m[1])
        for s, path in zip(self.statements, self.scopes, strict=True):
            self.line, self.scope_path = s.line, path
            try:
                if s.text in "{}":
                    self.out.append(s.text)
                elif s.text.endswith(":"):
                    self.out.append(f"{self.label(s.text[:-1])}:;")
                elif s.text.startswith("."):
                    self.directive(s.text)
                else:
                    self.instruction(s.text)
            except PtxError as error:
                self.module.errors.append(f"{self.module.path}:{s.line}: {error} (in {self.name})")
            except (KeyError, IndexError, ValueError, TypeError) as error:
                self.module.errors.append(
                    f"{self.module.path}:{s.line}: cannot translate '{s.text}': {error!r} (in {self.name})"
                )
        for name in self.asked:
            self.out.insert(0, f"constexpr bool {self.is_read(name)} = {str(name in self.reads).lower()};")

    def signature(self):
        if self.is_kernel:
            return f"static void F_{c_name(self.name)}(const unsigned char* parameters)"
        arguments = [f"unsigned char* r{i}" for i in range(len(self.results))]
        arguments += [f"unsigned char* p{i}" for i in range(len(self.parameters))]
        return f"static void F_{c_name(self.name)}({', '.join(arguments)})"

    def code(self):
        return [self.signature() + " {", *self.out, "}"]


class Module:
    def __init__(self, path):
        self.path = os.path.basename(path)
        with open(path) as file:
            text = file.read()
        # Comments out, lines kept.
        text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
        text = re.sub(r"//[^\n]*", "", text)
        self.text = text
        self.errors, self.sites, self.site_keys = [], [], {}
        self.files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.M))
        self.shared_variables = {}  # name -> alignment, size
        self.shared = {}  # name -> offset
        self.dynamic = {}  # extern shared arrays -> alignment
        self.variables = {}
        self.functions = []
        self.parse()

    def add_site(self, line, location, text):
        key = (line, text)
        if key in self.site_keys:
            return self.site_keys[key]
        name = self.files.get(location[0])
        self.sites.append((line, os.path.basename(name) if name else None, location[1], text[:100]))
        self.site_keys[key] = len(self.sites) - 1
        return len(self.sites) - 1

    def line_of(self, position):
        return self.text.count("\n", 0, position) + 1

    def parse(self):
        text, at = self.text, 0
        function = re.compile(r"(?:\.(?:visible|weak|extern|common)\s+)*\.(entry|func)\b")
        variable = re.compile(
            r"((?:\.(?:visible|weak|extern|common|global|const|shared)\s+)+)(\.[^;{]*(?:\{[^}]*\})?[^;{]*);", re.S
        )
        skip = re.compile(
            r"\s+|\.(?:version|target|address_size|file|loc)\b[^\n]*|\.alias[^;]*;|\.section[^{]*\{[^}]*\}", re.S
        )
        kernels = []
        while at < len(text):
            m = skip.match(text, at)
            if m:
                at = m.end()
                continue
            m = function.match(text, at)
            if m:
                at = self.parse_function(m[0], m[1] == "entry", m.end(), kernels)
                continue
            m = variable.match(text, at)
            if not m:
                raise PtxError(f"{self.path}:{self.line_of(at)}: cannot read '{text[at : at + 60]}'")
            self.declare_variable(m[1].split(), m[2])
            at = m.end()
        self.lay_out_shared(kernels)
        for f in self.functions:  # device functions first: their sites come before all kernels'
            f.translate()
        self.function_sites = len(self.sites)
        self.kernels = kernels
        for k in kernels:
            k.first_site = len(self.sites)
            k.translate()
            k.end_site = len(self.sites)

    def parse_function(self, prefix, is_kernel, at, kernels):
        text = self.text

        def parenthesised(position):
            depth, end = 0, position
            while True:
                depth += (text[end] == "(") - (text[end] == ")")
                end += 1
                if depth == 0:
                    return text[position + 1 : end - 1], end

        results = []
        m = re.compile(r"\s*(?=\()").match(text, at)
        if m and not is_kernel:
            inner, at = parenthesised(m.end())
            results = [p[len(".param") :].strip() for p in split_operands(inner)]
        m = re.compile(r"\s*([\w$]+)\s*").match(text, at)
        name, at = m[1], m.end()
        parameters = []
        if text[at] == "(":
            inner, at = parenthesised(at)
            pointer = r"\.ptr\b(\s*\.(global|shared|const|local))?(\s*\.align\s+\d+)?"
            parameters = [re.sub(pointer, "", p[len(".param") :]).strip() for p in split_operands(inner)]
            parameters = [" ".join(p.split()) for p in parameters]
        m = re.compile(r"([^;{]*)([;{])").match(text, at)
        bounds = m[1]
        if m[2] == ";":
            return m.end()
        start, depth, end = m.end(), 1, m.end()
        while depth:
            depth += (text[end] == "{") - (text[end] == "}")
            end += 1
        f = Function(self, name, is_kernel, parameters, results, text[start : end - 1], self.line_of(start))
        if is_kernel:
            numbers = re.search(r"\.maxntid\s+([\d,\s]+)", bounds)
            f.internal = not re.search(r"\.(visible|weak)\b", prefix)
            f.max_threads = 1
            for n in re.findall(r"\d+", numbers[1]) if numbers else ["0"]:
                f.max_threads *= int(n)
            numbers = re.search(r"\.reqntid\s+([\d,\s]+)", bounds)
            required = [int(n) for n in re.findall(r"\d+", numbers[1])] if numbers else [0, 0, 0]
            f.required = [*required, 1, 1, 1][:3]
            numbers = re.search(r"\.reqnctapercluster\s+([\d,\s]+)", bounds)
            cluster = [int(n) for n in re.findall(r"\d+", numbers[1])] if numbers else [0, 0, 0]
            f.cluster = [*cluster, 1, 1][:3]
            kernels.append(f)
        else:
            self.functions.append(f)
        return end

    def declare_variable(self, kinds, text):
        alignment, ptx_type, name, size, initial = parse_variable(text.strip())
        if ".shared" in kinds:
            if size == 0:
                self.dynamic[name] = alignment
            else:
                self.shared_variables[name] = alignment, size
            return
        self.variables[name] = (alignment, ptx_type, size, initial)

    def lay_out_shared(self, kernels):
        """Gives the shared variables of the file offsets, and to each kernel those that it names, or that a function
        or variable names which it names: nvcc puts what is in a device function before all kernels."""
        text = {name: initial or "" for name, (*_, initial) in self.variables.items()}
        text |= {f.name: f.body for f in self.functions}
        names = {name: set(re.findall(r"[\w$]+", t)) for name, t in text.items()}
        users = {name: [] for name in self.shared_variables}
        for k in kernels:
            found, new = set(), set(re.findall(r"[\w$]+", k.body))
            while new:
                found |= new
                new = set().union(*(names[n] for n in new if n in names)) - found
            k.dynamic_alignment = max((a for name, a in self.dynamic.items() if name in found), default=0)
            for name in found & users.keys():
                users[name].append(k)
        for name, (alignment, size) in self.shared_variables.items():
            offset = align_up(max((k.shared_end for k in users[name]), default=SHARED_START) + GAP, max(alignment, 16))
            self.shared[name] = offset
            for k in users[name]:
                k.shared_arrays.append((offset, size))
                k.shared_end = offset + size

    def bytes_of(self, ptx_type, size, initial):
        element = SIZES[ptx_type]
        data = bytearray()
        for item in re.findall(r"[\w.+()-]+", initial or ""):
            m = re.fullmatch(r"0[fFdD]([0-9a-fA-F]+)", item)
            value = int(m[1], 16) if m else int(item.rstrip("U"), 0)
            data += (value & (1 << 8 * element) - 1).to_bytes(element, "little")
        return bytes(data) + bytes(size - len(data))

    def write(self, path):
        out = [
            f"// Made from {self.path} by ptx_to_cpp.py.",
            '#include "cuda/emulation/ptx.h"',
            '#include "cuda/emulation/hopper.h"',
            "namespace qkv::emulation {",
            "namespace {",
            "extern const Module module;",
        ]
        for name, (alignment, ptx_type, size, initial) in self.variables.items():
            data = self.bytes_of(ptx_type, size, initial)
            values = "" if not any(data) else ",".join(map(str, data))
            out.append(f"alignas({max(alignment, 16)}) unsigned char V_{c_name(name)}[{size + GAP}] = {{{values}}};")
        for f in self.functions:
            out.append(f.signature() + ";")
        for f in self.functions + self.kernels:
            out += f.code()
        out.append("const Site sites[] = {")
        for line, name, source_line, text in self.sites:
            out.append(f"{{{line}, {c_string(name) if name else 'nullptr'}, {source_line}, {c_string(text)}}},")
        out.append("{0, nullptr, 0, nullptr}};")
        for i, k in enumerate(self.kernels):
            out.append(
                f"const Parameter parameters_{i}[] = {{"
                + "".join(f"{{{o}, {s}}}, " for o, s in k.parameter_table)
                + "{0, 0}};"
            )
            out.append(
                f"const SharedArray shared_{i}[] = {{"
                + "".join(f"{{{o}, {s}}}, " for o, s in k.shared_arrays)
                + "{0, 0}};"
            )
        out.append("const Kernel kernels[] = {")
        for i, k in enumerate(self.kernels):
            fields = [
                c_string(k.name),
                f"&F_{c_name(k.name)}",
                "&module",
                f"parameters_{i}",
                len(k.parameter_table),
                k.parameter_bytes,
                f"shared_{i}",
                len(k.shared_arrays),
                sum(s for _, s in k.shared_arrays),
                k.shared_end,
                k.dynamic_alignment,
                k.max_threads,
                "{" + ", ".join(map(str, k.required)) + "}",
                "{" + ", ".join(map(str, k.cluster)) + "}",
                k.first_site,
                k.end_site,
                "true" if k.internal else "false",
            ]
            out.append("{" + ", ".join(map(str, fields)) + "},")
        out.append("{}};")
        out.append("const Variable variables[] = {")
        for name, (_, _, size, _) in self.variables.items():
            out.append(f"{{{c_string(name)}, V_{c_name(name)}, {size}}},")
        out.append("{}};")
        out.append(
            f"const Module module = {{{c_string(self.path)}, sites, {self.function_sites}, "
            f"kernels, {len(self.kernels)}, variables, {len(self.variables)}}};"
        )
        out += ["const Registration registration(module);", "}  // namespace", "}  // namespace qkv::emulation", ""]
        with open(path, "w") as file:
            file.write("\n".join(out))


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        module = Module(sys.argv[1])
    except PtxError as error:
        sys.exit(str(error))
    if module.errors:
        sys.exit(
            "\n".join(
                module.errors[:50] + ([f"... and {len(module.errors) - 50} more"] if len(module.errors) > 50 else [])
            )
        )
    module.write(sys.argv[2])


if __name__ == "__main__":
    main()
