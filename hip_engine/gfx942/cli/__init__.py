"""The command line: one module a subcommand, each with add_arguments and main."""

import argparse
import importlib
import importlib.util
import os
import sys

from hip_engine.errors import DeviceFault, EngineError

# Subcommand -> its module, with add_arguments(parser) and main(options) -> exit code; and its line.
COMMANDS = {
    "info": (
        "hip_engine.gfx942.cli.info",
        "what is in a code object: kernels, registers, occupancy, opcodes",
    ),
    "run": ("hip_engine.gfx942.cli.run", "run a kernel on arrays"),
    "hip": ("hip_engine.gfx942.cli.hip", "run a compiled HIP program on this CPU"),
    "isa": ("hip_engine.gfx942.cli.isa", "which instructions are implemented and tested"),
    "bench": ("hip_engine.gfx942.cli.bench", "how fast this CPU runs gfx942 code, beside torch"),
}
EXIT_FAULT, EXIT_USAGE = 1, 2
EPILOG = """\
examples:
  python -m hip_engine.gfx942 info kernels.co
  python -m hip_engine.gfx942 run saxpy.co --kernel=saxpy --grid=4 --block=256 --args=args.json
  python -m hip_engine.gfx942 hip ./my_hip_program

A file may be a gfx942 code object, a bundle that hipcc made (--offload-compress too), or a host
program or object with kernels in it. Exit codes: 0 done; 1 the kernel faulted; 2 bad input.
"""


def parser(chosen: str | None) -> argparse.ArgumentParser:
    """All subcommands that are there; only the chosen one is imported and knows its options."""
    made = argparse.ArgumentParser(
        prog="python -m hip_engine.gfx942",
        description="gfx942 (MI300X) machine code on this CPU, without a GPU.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(required=True, metavar="command")
    for name, (place, line) in COMMANDS.items():
        if importlib.util.find_spec(place) is None:
            continue
        module = importlib.import_module(place) if name == chosen else None
        command = commands.add_parser(
            name,
            help=line,
            description=module.__doc__ if module else line,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if module:
            module.add_arguments(command)
            command.set_defaults(main=module.main)
    return made


def main(argv: list[str] | None = None) -> int:
    """Parse and run one subcommand; an error raised on purpose is one line on stderr."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser(argv[0] if argv else None).parse_args(argv)
    try:
        return options.main(options)
    except (EngineError, OSError) as error:
        print(f"gfx942: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_FAULT if isinstance(error, DeviceFault) else EXIT_USAGE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
