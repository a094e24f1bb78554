"""Functions of a module, inlined at their calls: the machine has no stack, and its kernels do not recurse."""

from __future__ import annotations

import re

_FUNCTION = re.compile(
    r"\.func\s+(?:\(\s*\.param\s+\.(?P<type>\w+)\s+(?P<result>[\w$]+)\s*\)\s*)?"
    r"(?P<name>[\w$]+)\s*\((?P<parameters>[^)]*)\)[^;{]*\{"
)
_PARAMETER = re.compile(r"\.param\s+\.(\w+)\s+([\w$]+)\s*(?:,|$)")
_CALL = re.compile(r"call(?:\.uni)?\s*(?:\(([\w$]+)\)\s*,\s*)?([\w$]+)\s*(?:,\s*\(([^)]*)\))?\s*;")


def closing_brace(text: str, start: int) -> int | None:
    """Position of the brace that closes the one before `start`."""
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return start + brace.start()
    return None


def inlined(body: str, module: str) -> str:
    """The body of a kernel with the bodies of the functions that it calls inlined, each in a scope of its own.

    Arguments and results are scalars, so registers replace parameters.
    """
    functions = {match["name"]: match for match in _FUNCTION.finditer(module)}

    def copy(call: re.Match[str]) -> str:
        result, name, arguments = call.groups()
        if name not in functions:
            return call[0]
        function = functions[name]
        kind, value = function["type"], function["result"]
        given = [argument.strip() for argument in (arguments or "").split(",") if argument.strip()]
        taken = _PARAMETER.findall(" ".join(function["parameters"].split()))
        inside = module[function.end() : closing_brace(module, function.end())]
        moves = zip(taken, given, strict=True)
        return "\n".join(
            [
                "{",
                *(f".reg .{type} {parameter}; mov.{type} {parameter}, {each};" for (type, parameter), each in moves),
                f".reg .{kind} {value};" if result else "",
                re.sub(r"\bret(?:\.uni)?\s*;", "bra $returned;", _CALL.sub(copy, inside)),
                "$returned:",
                f"mov.{kind} {result}, {value};" if result else "",
                "}",
            ]
        )

    return _by_registers(_CALL.sub(copy, body)) if functions else body


def _by_registers(body: str) -> str:
    """A body whose declared parameters are turned into registers."""
    names = set(re.findall(r"\.(?:param|reg)\s+\.\w+\s+([\w$]+)\s*;", body))

    def moved(access: re.Match[str]) -> str:
        kind, *places = access.groups()
        to, value = (place.strip("[] ").removesuffix("+0") for place in places)
        return f"mov.{kind} {to}, {value};" if {to, value} & names else access[0]

    body = re.sub(r"(?:ld|st)\.param\.(\w+)\s+([^,;]+?)\s*,\s*([^,;]+?)\s*;", moved, body)
    return re.sub(r"\.param\s+(\.\w+\s+[\w$]+\s*;)", r".reg \1", body)
