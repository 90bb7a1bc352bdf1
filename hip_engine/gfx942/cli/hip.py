"""Runs a HIP program that was compiled for an MI300X on this CPU: builds the emulated libamdhip64,
puts it on LD_LIBRARY_PATH and starts the program. Alone, prints the line that sets the path.

  python -m hip_engine.gfx942 hip ./my_program its arguments
  python -m hip_engine.gfx942 hip python my_script.py
  eval "$(python -m hip_engine.gfx942 hip)"
  GFX942_SANITIZE=memory,init,race,waitcnt python -m hip_engine.gfx942 hip ./my_program

What works, and what does not, is in hip_engine/gfx942/hip_runtime/__init__.py. GFX942_PYTHON and
GFX942_LIBPYTHON choose another interpreter than this one for programs that are not Python.
"""

import argparse
import os
import shlex

from hip_engine.gfx942.hip_runtime import build

VARIABLE = "LD_LIBRARY_PATH"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", nargs=argparse.REMAINDER, help="command to run")


def main(options: argparse.Namespace) -> int:
    path = ":".join(filter(None, (str(build.build()), os.environ.get(VARIABLE))))
    if not options.program:
        print(f"export {VARIABLE}={shlex.quote(path)}")
        return 0
    program = options.program[1:] if options.program[0] == "--" else options.program
    os.execvpe(program[0], program, {**os.environ, VARIABLE: path})
