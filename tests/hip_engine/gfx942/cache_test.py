"""What a cached translation depends on, and what it calls."""

import subprocess
import sys

from hip_engine.gfx942 import jit
from hip_engine.gfx942.code_object import CodeObject
from hip_engine.gfx942.disassembly import disassemble
from hip_engine.gfx942.translate import translate
from tests.hip_engine.gfx942 import objects

LIST = """
import sys, hip_engine.gfx942.jit
print(*(n.removeprefix("hip_engine.gfx942.") for n in sys.modules if n.count(".") > 1
        and n.startswith("hip_engine.gfx942.")))
"""


def test_every_module_that_decides_a_translation_is_in_its_key():
    done = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=True)
    loaded = {name.replace(".", "/") for name in done.stdout.split()} - {"isa"}
    listed = {
        str(path.relative_to(jit.HERE).with_suffix(""))
        for name in jit.TRANSLATOR
        for path in jit.HERE.glob(f"{name}.py")
    }
    assert loaded <= listed
    assert len(listed) >= len(jit.TRANSLATOR), "a name of the list is no module"


def test_only_sanitized_code_calls_the_observer():
    data = objects.hip("KERNEL add(int* x) { x[tid()] += 1; }")
    code = CodeObject.parse(data)
    calls = [
        translate(code, code.kernels["add"], disassemble(data), "piece", observed).ir.count(
            "@observe("
        )
        for observed in (False, True)
    ]
    assert calls[0] == 0 and calls[1] > 3
