"""Parses PTX text into a Program: one kernel, with operands decoded and labels resolved."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field, replace

from .declarations import Layout, file_names, module_layout, parameters
from .formats import bits_of
from .functions import closing_brace, inlined
from .program import (
    Address,
    Immediate,
    Instruction,
    Name,
    Operand,
    Pair,
    Program,
    Register,
    Source,
    Special,
    Vector,
)

_STATEMENT = re.compile(
    r"\s*(?:(?P<open>\{)|(?P<close>\})|(?P<loc>\.loc\b[^\n]*)|(?P<label>[\w$]+)\s*:(?!:)|(?P<text>[^;]+);)"
)
_INSTRUCTION = re.compile(r"(?:@(?P<negated>!?)(?P<guard>%?[\w$]+)\s+)?(?P<opcode>[\w.:]+)\s*(?P<operands>.*)", re.S)
_OPERAND = re.compile(r"\s*(\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*)")
_LOC = re.compile(r"\.loc\s+(\d+ \d+ \d+)(?:.*inlined_at\s+(\d+ \d+ \d+))?")
_REGISTERS = re.compile(r"([%\w$]+)(?:<(\d+)>)?")
_LITERAL = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|0|[1-9]\d*)")
_THREADS = re.compile(r"\.(?:maxntid|reqntid)\s+(\d+)")


def parse(ptx: str, entry: str | None = None) -> Program:
    """The kernel `entry` of a PTX module; without a name, its only kernel."""
    files = file_names(ptx)
    text = re.sub(r"//[^\n]*|/\*.*?\*/|^\s*\.file\b[^\n]*", "", ptx, flags=re.S | re.M)
    name = entry or _only_entry(text)
    head, directives, body = _split_entry(text, name)
    outside = text.replace(body, "")
    layout = module_layout(outside, body)
    param_bytes = parameters(head, layout)
    reader = _Body(layout, files)
    reader.read(inlined(body, outside))
    threads = _THREADS.search(directives)
    return Program(
        entry=name,
        param_bytes=param_bytes,
        shared_static=layout.shared_static,
        shared_dynamic=layout.shared_dynamic,
        max_threads=int(threads[1]) if threads else None,
        instructions=reader.resolved(),
        register_bits=tuple(reader.register_bits),
    )


def _only_entry(text: str) -> str:
    names = re.findall(r"\.entry\s+([\w$]+)", text)
    if len(names) != 1:
        raise ValueError(f"name the kernel to run: this module has {names}")
    return str(names[0])


def _split_entry(text: str, name: str) -> tuple[str, str, str]:
    """(parameter list, directives, text between the braces) of a kernel."""
    match = re.search(rf"\.entry\s+{re.escape(name)}\s*(?:\((.*?)\))?([^{{;]*)\{{", text, re.S)
    if not match:
        raise ValueError(f"no kernel {name!r} in this module: it has {re.findall(r'[.]entry +([^(]+)', text)}")
    end = closing_brace(text, match.end())
    if end is None:
        raise ValueError(f"the body of {name!r} is not closed")
    return match[1] or "", match[2], text[match.end() : end]


@dataclass
class _Scope:
    """Names declared between one pair of braces; inline assembly opens scopes of its own."""

    parent: _Scope | None
    registers: dict[str, Register] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)

    def register(self, name: str) -> Register | None:
        return self.registers.get(name) or (self.parent.register(name) if self.parent else None)

    def label(self, name: str) -> int:
        """Program counter of a label."""
        if name in self.labels:
            return self.labels[name]
        if self.parent is None:
            raise ValueError(f"no label {name!r}")
        return self.parent.label(name)


class _Body:
    """Reads the statements of a kernel in order."""

    def __init__(self, layout: Layout, files: dict[str, str]) -> None:
        self.layout = layout
        self.files = files
        self.scope = _Scope(None)
        self.register_bits: list[int] = []
        self.instructions: list[Instruction] = []
        self.scopes: list[_Scope] = []  # of each instruction
        self.call_sites: dict[str, str] = {}  # position -> position it was inlined at
        self.source: Source | None = None

    def read(self, body: str) -> None:
        position = 0
        while match := _STATEMENT.match(body, position):
            position = match.end()
            if match["open"]:
                self.scope = _Scope(self.scope)
            elif match["close"]:
                self.scope = self.scope.parent or self.scope
            elif match["loc"]:
                self.locate(match["loc"])
            elif match["label"]:
                self.scope.labels[match["label"]] = len(self.instructions)
            else:
                self.statement(match["text"].strip())
        if body[position:].strip():
            raise ValueError(f"cannot read PTX at {body[position:].strip()[:60]!r}")

    def locate(self, directive: str) -> None:
        """.loc file line column[, function_name ..., inlined_at file line column]"""
        match = _LOC.match(directive)
        if not match or match[1].split()[1] == "0":
            return
        if match[2]:
            self.call_sites[match[1]] = match[2]
        else:
            self.call_sites.pop(match[1], None)
        chain = [match[1]]
        while (site := self.call_sites.get(chain[-1])) and site not in chain:
            chain.append(site)
        place, *inlined = [self.place(position) for position in chain]
        self.source = Source(place, tuple(inlined))

    def place(self, position: str) -> str:
        file, line, _ = position.split()
        return f"{self.files.get(file, '?')}:{line}"

    def statement(self, text: str) -> None:
        if text.startswith(".reg"):
            self.declare(text)
        elif not text.startswith("."):  # .shared is in the layout, .pragma has no meaning here
            self.instruction(text)

    def declare(self, text: str) -> None:
        """.reg .b32 %r<10>; or .reg .pred p, q;"""
        kind, names = text.removeprefix(".reg").strip().split(None, 1)
        for name, count in _REGISTERS.findall(names):
            for each in [f"{name}{i}" for i in range(int(count))] if count else [name]:
                self.scope.registers[each] = Register(each, len(self.register_bits), bits_of(kind[1:]))
                self.register_bits.append(bits_of(kind[1:]))

    def instruction(self, text: str) -> None:
        match = _INSTRUCTION.match(text)
        if not match:
            raise ValueError(f"cannot read PTX instruction {text!r}")
        guard = self.scope.register(match["guard"]) if match["guard"] else None
        if match["guard"] and guard is None:
            raise ValueError(f"undeclared predicate in {text!r}")
        self.instructions.append(
            Instruction(
                opcode=match["opcode"],
                parts=tuple(match["opcode"].split(".")),
                operands=tuple(self.operand(each.strip()) for each in _OPERAND.findall(match["operands"])),
                guard=replace(guard, negated=True) if guard and match["negated"] else guard,
                text=" ".join(text.split()),
                source=self.source,
            )
        )
        self.scopes.append(self.scope)

    def operand(self, text: str) -> Operand:
        if text[0] == "{":
            return Vector(tuple(self.operand(part.strip()) for part in text[1:-1].split(",")))
        if text[0] == "[":
            return self.address(text[1:-1].strip())
        if "|" in text:
            first, second = text.split("|")
            return Pair(self.operand(first.strip()), self.operand(second.strip()))
        if text[0] == "!":
            register = self.operand(text[1:].strip())
            assert isinstance(register, Register)
            return replace(register, negated=True)
        return self.simple(text)

    def simple(self, text: str) -> Operand:
        """A register, variable, literal, machine register or other identifier."""
        if register := self.scope.register(text):
            return register
        if symbol := self.layout.symbols.get(text):
            return symbol
        if text[0] == "%":
            return Special(text)
        return immediate(text) or Name(text)

    def address(self, text: str) -> Address:
        base, _, offset = text.partition("+")
        number = immediate(offset.strip()) if offset else Immediate(0)
        if number is None:
            raise ValueError(f"cannot read address [{text}]")
        return Address(self.simple(base.strip()), number.value)

    def resolved(self) -> tuple[Instruction, ...]:
        """The instructions, each branch with the program counter of its target."""
        return tuple(self.branch(each, scope) for each, scope in zip(self.instructions, self.scopes, strict=True))

    @staticmethod
    def branch(instruction: Instruction, scope: _Scope) -> Instruction:
        if instruction.parts[0] != "bra":
            return instruction
        label = instruction.operands[-1]
        assert isinstance(label, Name)
        return replace(instruction, target=scope.label(label.name))


def immediate(text: str) -> Immediate | None:
    """A literal, an integer or a float given by its bits, or None if the text is not one."""
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
        return _real(text, "<I", "<f")
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
        return _real(text, "<Q", "<d")
    return Immediate(int(text, 0)) if _LITERAL.fullmatch(text) else None


def _real(text: str, integer: str, real: str) -> Immediate:
    bits = int(text[2:], 16)
    return Immediate(bits, real=struct.unpack(real, struct.pack(integer, bits))[0])
