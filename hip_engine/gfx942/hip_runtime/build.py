"""Builds the emulated libamdhip64 once a machine, under every name that programs ask for."""

import hashlib
import os
import re
import sys
import sysconfig
import tempfile
from pathlib import Path

from hip_engine.errors import CompilerMissing
from hip_engine.toolchain import cache_dir, find_compiler, run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
SOURCES = ("libamdhip64.c", "calls.h")
SONAME = "libamdhip64.so.6"
NAMES = ("libamdhip64.so", "libamdhip64.so.5", "libamdhip64.so.7")
FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra")
# Version node of each call that is younger than hip_4.2, as in AMD's hip_hcc.map: a program
# compiled against theirs asks for these.
NODES = (
    *("4.2", "4.3", "4.4", "4.5", "5.0", "5.1", "5.2", "5.3", "5.5", "5.6", "6.0", "6.1", "6.2"),
    *("6.4", "6.5", "7.0", "7.1", "7.2"),
)
YOUNGER = {
    "hipGraphDestroy": "4.3",
    "hipGraphInstantiate": "4.3",
    "hipGraphLaunch": "4.3",
    "hipStreamIsCapturing": "4.3",
    "hipStreamBeginCapture": "4.3",
    "hipStreamEndCapture": "4.3",
    "hipGraphExecDestroy": "4.3",
    "hipGraphGetNodes": "4.4",
    "hipGraphInstantiateWithFlags": "4.5",
    "hipStreamGetCaptureInfo": "4.5",
    "hipDeviceGetUuid": "5.1",
    "hipMallocAsync": "5.1",
    "hipFreeAsync": "5.1",
    "hipLaunchHostFunc": "5.3",
    "hipDeviceSetLimit": "5.3",
    "hipGraphUpload": "5.3",
    "hipGetDevicePropertiesR0600": "6.0",
    "hipExtGetLastError": "6.0",
    "hipEventRecordWithFlags": "6.4",
}


def exported() -> set[str]:
    """Every function that the library exports, from its sources."""
    text = "".join((HERE / name).read_text() for name in SOURCES)
    names = re.findall(r"^API\d\((\w+)", text, re.M)
    names += re.findall(r"^EXPORT .*?(_*hip\w+)\(", text, re.M)
    return set(names)


def version_script() -> str:
    nodes, before = [], ""
    for node in NODES:
        names = [n for n in sorted(exported()) if YOUNGER.get(n, "4.2") == node]
        listed = f"global: {'; '.join(names)};" if names else ""
        local = " local: *;" if node == NODES[0] else ""
        nodes.append(f"hip_{node} {{ {listed}{local} }} {before};".replace(" ;", ";"))
        before = f"hip_{node}"
    return "\n".join(nodes) + "\n"


def libpython() -> str:
    """File name of the shared libpython of this interpreter: its full path where that is known."""
    folder, name = sysconfig.get_config_vars("LIBDIR", "INSTSONAME")
    name = name if name and ".so" in name else f"libpython{sysconfig.get_python_version()}.so.1.0"
    path = Path(folder or "/usr/lib", name)
    return str(path) if path.exists() else name


def build() -> Path:
    """Folder with libamdhip64.so and its versioned names, from the cache or from the compiler.

    Raises:
      CompilerMissing: no clang, or it refuses the library.
    """
    compiler, version = find_compiler()
    defines = {"PYTHON": sys.executable, "LIBPYTHON": libpython(), "ROOT": str(ROOT)}
    script = version_script()
    parts = [version, repr(FLAGS), repr(defines), script]
    parts += [(HERE / name).read_text() for name in SOURCES]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    folder = cache_dir("hip-runtime") / key[:24]
    if (folder / SONAME).exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch, "lib")
        made.mkdir()
        Path(scratch, "versions").write_text(script)
        command = [compiler, *FLAGS, *(f'-D{k}="{v}"' for k, v in defines.items())]
        command += [f"-Wl,-soname,{SONAME}", f"-Wl,--version-script={scratch}/versions"]
        command += [str(HERE / SOURCES[0]), "-o", str(made / SONAME), "-ldl", "-lpthread"]
        done = run(command)
        if done.returncode:
            raise CompilerMissing(
                f"{compiler} cannot build the emulated HIP runtime: {done.stderr.strip()[:400]}; "
                "apt-get install clang-19 libc6-dev"
            )
        for name in NAMES:
            (made / name).symlink_to(SONAME)
        try:
            os.replace(made, folder)
        except OSError:  # another process was first
            if not (folder / SONAME).exists():
                raise
    return folder
