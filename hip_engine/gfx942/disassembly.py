"""LLVM's text disassembly as the decoder: one `Instruction` a line, operands parsed once.

`llvm-objdump` names every operand unambiguously and follows the ISA through LLVM's own tests, so
no encoding table is kept here.
"""

import re
import tempfile
from dataclasses import dataclass, field

from hip_engine.errors import CodeObjectError
from hip_engine.toolchain import find_objdump, run

_LINE = re.compile(r"^\t(?P<text>\S.*?)\s*// (?P<address>[0-9A-F]{12}): (?P<words>[0-9A-F ]+)")
_MODIFIER = re.compile(r"^[a-z_0-9]+(:(\[[^\]]*\]|\S+))?$")
_REGISTER = re.compile(r"^(?P<file>[vsa]|ttmp)(?:(?P<one>\d+)|\[(?P<lo>\d+):(?P<hi>\d+)\])$")

# Named scalar registers: (first index in the scalar register file, count of dwords).
SPECIAL = {
    "flat_scratch": (102, 2),
    "flat_scratch_lo": (102, 1),
    "flat_scratch_hi": (103, 1),
    "xnack_mask": (104, 2),
    "xnack_mask_lo": (104, 1),
    "xnack_mask_hi": (105, 1),
    "vcc": (106, 2),
    "vcc_lo": (106, 1),
    "vcc_hi": (107, 1),
    "m0": (124, 1),
    "exec": (126, 2),
    "exec_lo": (126, 1),
    "exec_hi": (127, 1),
}
TTMP0 = 108
# Read-only scalar sources and placeholders, kept by name.
NAMED = {
    "off",
    "scc",
    "vccz",
    "execz",
    "src_scc",
    "src_vccz",
    "src_execz",
    "src_shared_base",
    "src_shared_limit",
    "src_private_base",
    "src_private_limit",
}


@dataclass(frozen=True)
class Operand:
    """`kind` is v, s or a (a register range), int or float (a constant), or name."""

    kind: str
    index: int = 0
    count: int = 1
    value: int | float | str = 0
    negate: bool = False
    absolute: bool = False
    signed: bool = False

    @property
    def is_register(self) -> bool:
        return self.kind in ("v", "s", "a")


@dataclass(frozen=True)
class Instruction:
    """One decoded instruction at byte `address` (virtual address in the code object)."""

    address: int
    size: int
    text: str
    mnemonic: str
    operands: tuple[Operand, ...]
    modifiers: dict[str, str] = field(default_factory=dict)
    target: int | None = None

    @property
    def base(self) -> str:
        """The mnemonic without its encoding suffix."""
        return re.sub(r"(_e32|_e64|_sdwa|_dpp|_e64_dpp)$", "", self.mnemonic)

    def flag(self, name: str) -> bool:
        return name in self.modifiers

    def number(self, name: str, default: int = 0) -> int:
        return int(self.modifiers[name], 0) if name in self.modifiers else default

    def bits(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A modifier like op_sel:[0,1,0] as a tuple."""
        if name not in self.modifiers:
            return default
        return tuple(int(x, 0) for x in self.modifiers[name].strip("[]").split(","))


def disassemble(data: bytes) -> list[Instruction]:
    """Decode the whole .text of a code object, in address order.

    Raises:
      CompilerMissing: there is no llvm-objdump.
      CodeObjectError: llvm-objdump refuses the object.
    """
    with tempfile.NamedTemporaryFile(suffix=".co") as file:
        file.write(data)
        file.flush()
        done = run([find_objdump(), "-d", "--mcpu=gfx942", "--no-print-imm-hex", file.name])
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CodeObjectError(f"llvm-objdump refused the code object: {reason}")
    matches = (_LINE.match(line) for line in done.stdout.splitlines())
    return [_parse(m) for m in matches if m]


def _parse(match: re.Match) -> Instruction:
    text, address = match["text"], int(match["address"], 16)
    size = 4 * len(match["words"].split())
    mnemonic, _, rest = text.partition(" ")
    pieces = _split(rest.strip())
    operands, modifiers = [], {}
    for position, piece in enumerate(pieces):
        words = piece.split()
        if position == len(pieces) - 1 or len(words) > 1:
            first, *tail = words
            if position or not (_MODIFIER.match(first) and ":" in first and "[" not in first[:2]):
                operands.append(first)
            else:
                tail = words
            for word in tail:
                name, _, value = word.partition(":")
                modifiers[name] = value
        else:
            operands.append(piece)
    target = None
    if mnemonic.startswith(("s_branch", "s_cbranch", "s_call_b64")):
        offset = int(match["words"][:8], 16) & 0xFFFF  # the text may name a label instead
        target = address + 4 + 4 * (offset - 0x10000 if offset & 0x8000 else offset)
    if mnemonic in FREE_TEXT:
        return Instruction(address, size, text, mnemonic, (), {"text": rest.strip()})
    parsed = tuple(parse_operand(o) for o in operands)
    return Instruction(address, size, text, mnemonic, parsed, modifiers, target)


# Instructions whose operands are a little language of their own.
FREE_TEXT = {"s_waitcnt", "s_sendmsg", "s_getreg_b32", "s_setreg_b32", "s_setreg_imm32_b32"}


def _split(text: str) -> list[str]:
    """Split at commas outside brackets and bars."""
    pieces, depth, begin = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "[(") - (c in "])")
        if c == "," and depth == 0:
            pieces.append(text[begin:i].strip())
            begin = i + 1
    pieces.append(text[begin:].strip())
    return [p for p in pieces if p]


def parse_operand(text: str) -> Operand:
    """A register, constant or name, with its sign and absolute-value marks."""
    negate = absolute = signed = False
    while True:
        if text.startswith("sext(") and text.endswith(")"):
            signed, text = True, text[5:-1]
        elif text.startswith("neg(") and text.endswith(")"):
            negate, text = True, text[4:-1]
        elif text.startswith("abs(") and text.endswith(")"):
            absolute, text = True, text[4:-1]
        elif text.startswith("lit(") and text.endswith(")"):  # LLVM 22: not an inline constant
            text = text[4:-1]
        elif text.startswith("|") and text.endswith("|"):
            absolute, text = True, text[1:-1]
        elif text.startswith("-") and not re.match(r"^-[\d.]", text):
            negate, text = True, text[1:]
        else:
            break
    marks = {"negate": negate, "absolute": absolute, "signed": signed}
    register = _REGISTER.match(text)
    if register:
        low = int(register["one"] or register["lo"])
        count = 1 if register["one"] else int(register["hi"]) - low + 1
        kind = register["file"]
        if kind == "ttmp":
            return Operand("s", TTMP0 + low, count, **marks)
        return Operand(kind, low, count, **marks)
    if text in SPECIAL:
        return Operand("s", *SPECIAL[text], **marks)
    if text in NAMED:
        return Operand("name", value=text.removeprefix("src_"), **marks)
    if re.fullmatch(r"-?\d+", text) or text.lower().startswith(("0x", "-0x")):
        return Operand("int", value=int(text, 0), **marks)
    if re.fullmatch(r"-?\d*\.\d+(e[-+]?\d+)?", text):
        return Operand("float", value=float(text), **marks)
    return Operand("name", value=text, **marks)
