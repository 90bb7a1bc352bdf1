"""An MI300X (gfx942) on a CPU: the machine code that ships, run with the chip's arithmetic.

    from hip_engine import gfx942
    gfx942.load(Path("k.co").read_bytes())["saxpy"].launch(4, 256, [2.0, x, y, 1000])

From a shell: `python -m hip_engine.gfx942 --help`.
"""


def load(data: bytes, device=None):
    """Kernels of a code object, bundle or host program, by symbol (program.Program).

    Raises:
      CodeObjectError: none of these, damaged, or for another chip, which is named.
    """
    from hip_engine.gfx942.program import Program

    return Program(data, device)
