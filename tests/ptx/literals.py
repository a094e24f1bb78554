"""PTX literals: integers in four bases, and floats given by their bits."""

from __future__ import annotations

import re
import struct

from .program import Immediate

_INTEGER = re.compile(r"(-?)(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")


def immediate(text: str) -> Immediate | None:
    """A literal, or None if the text is not one."""
    if text == "WARP_SZ":
        return Immediate(32)
    if re.fullmatch(r"-?0[fF][0-9a-fA-F]{8}", text):
        return _real(text, "<I", "<f")
    if re.fullmatch(r"-?0[dD][0-9a-fA-F]{16}", text):
        return _real(text, "<Q", "<d")
    if match := _INTEGER.match(text):
        digits = match[2]
        base = 8 if re.fullmatch(r"0\d+", digits) else 0
        return Immediate(int(match[1] + digits, base))
    if re.fullmatch(r"-?\d+\.\d*(?:[eE][-+]?\d+)?", text):
        return Immediate(0, real=float(text))
    return None


def _real(text: str, integer: str, real: str) -> Immediate:
    sign, digits = (-1, text[3:]) if text[0] == "-" else (1, text[2:])
    bits = int(digits, 16)
    return Immediate(bits, real=sign * struct.unpack(real, struct.pack(integer, bits))[0])
