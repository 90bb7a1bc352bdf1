"""The walls of the architecture, each with a source that violates it and must be reported."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OWN = ("greta_jax", "hip_engine", "experiments", "tests", "models", "benchmarks")


def imported(path: Path) -> set[str]:
    """Every module imported anywhere in the file, inside functions too, as dotted names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            argument = node.args[0] if node.args else None
            if called in ("import_module", "__import__") and isinstance(argument, ast.Constant):
                names.add(str(argument.value))
    return names


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def sources(root: Path, folder: str, suffix: str = ".py") -> Iterator[Path]:
    if (root / folder).is_dir():
        yield from sorted((root / folder).rglob(f"*{suffix}"))


def never_imports(folder: str, *forbidden: str) -> Callable[[Path], list[str]]:
    """A wall: no file under `folder` imports one of these packages."""

    def wall(root: Path) -> list[str]:
        return [
            f"{path.relative_to(root)} imports {name}"
            for path in sources(root, folder)
            for name in sorted(packages(path) & set(forbidden))
        ]

    return wall


def both_sides_meet_only_in_experiments_and_tests(root: Path) -> list[str]:
    found = []
    for folder in OWN:
        for path in sources(root, folder):
            place = path.relative_to(root)
            allowed = place.parts[0] == "tests" or place.parent == Path("experiments")
            if not allowed and {"greta_jax", "hip_engine"} <= packages(path):
                found.append(f"{place} imports both sides")
    return found


SECOND_OPINION = Path("experiments/torch_voice.py")
"""The self-check's forward in torch, which is optional: the oracle never needs torch."""


def torch_only_in_tests_benchmarks_and_the_recipe(root: Path) -> list[str]:
    allowed = ("tests", "models")
    return [
        f"{path.relative_to(root)} imports torch"
        for folder in OWN
        if folder not in allowed
        for path in sources(root, folder)
        if "torch" in packages(path) and not path.stem.startswith("bench")
        if path.relative_to(root) != SECOND_OPINION
    ]


def jax_is_configured_in_two_files(root: Path) -> list[str]:
    allowed = {Path("experiments/flags.py"), Path("tests/conftest.py")}
    return [
        f"{path.relative_to(root)} configures jax"
        for folder in OWN
        for path in sources(root, folder)
        if path.relative_to(root) not in allowed
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("config.update")
        if "jax" in ast.unparse(node.func)
    ]


def kernels_include_only_kernels(root: Path) -> list[str]:
    """Device code includes its own headers and, in device.h alone, the HIP runtime's."""
    found = []
    own = {path.name for path in (root / "kernels").glob("*")}
    for path in (*sources(root, "kernels", ".h"), *sources(root, "kernels", ".hip")):
        for header in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', path.read_text(), re.M):
            runtime = path.name == "device.h" and header.startswith("hip/")
            if header not in own and header.removeprefix("kernels/") not in own and not runtime:
                found.append(f"{path.relative_to(root)} includes {header}")
    return found


BENCH_ONLY = "import torch\n"
WALLS = {
    "the_oracle_never_imports_the_engine": (
        never_imports("greta_jax", "hip_engine", "experiments"),
        "greta_jax/replay.py",
        "def f():\n    from hip_engine import engine\n    return engine\n",
    ),
    "the_engine_never_imports_the_oracle_or_jax": (
        never_imports("hip_engine", "greta_jax", "experiments", "jax", "jaxlib", "chex"),
        "hip_engine/weights.py",
        "def f():\n    import jax.numpy as jnp\n    return jnp\n",
    ),
    "the_judge_imports_neither_side": (
        never_imports(
            "experiments/align", "greta_jax", "hip_engine", "jax", "chex", "torch", "gguf"
        ),
        "experiments/align/floors.py",
        "import importlib\nbounds = importlib.import_module('greta_jax.bounds')\n",
    ),
    "both_sides_meet_only_in_experiments_and_tests": (
        both_sides_meet_only_in_experiments_and_tests,
        "experiments/align/session.py",
        "import greta_jax.model\nfrom hip_engine.engine import Engine\n",
    ),
    "torch_only_in_tests_benchmarks_and_the_recipe": (
        torch_only_in_tests_benchmarks_and_the_recipe,
        "greta_jax/check.py",
        BENCH_ONLY,
    ),
    "jax_is_configured_in_two_files": (
        jax_is_configured_in_two_files,
        "greta_jax/model.py",
        "import jax\n\ndef f():\n    jax.config.update('jax_enable_x64', True)\n",
    ),
    "kernels_include_only_kernels": (
        kernels_include_only_kernels,
        "kernels/rope.hip",
        '#include "../hip_engine/config.h"\n',
    ),
}


@pytest.mark.parametrize("wall", WALLS)
def test_the_wall_stands(wall):
    find, _, _ = WALLS[wall]
    assert find(ROOT) == []


@pytest.mark.parametrize("wall", WALLS)
def test_the_wall_can_fail(wall, tmp_path):
    find, place, violation = WALLS[wall]
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(violation)
    found = find(tmp_path)
    assert len(found) == 1 and found[0].startswith(place)


@pytest.mark.parametrize("module", ["hip_engine", "hip_engine.engine", "hip_engine.device"])
def test_importing_the_engine_leaves_jax_unloaded(module):
    code = f"import sys, {module}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_import_of_jax_would_be_seen():
    code = "import sys, jax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 1


def test_the_judge_leaves_jax_unloaded():
    names = [path.stem for path in (ROOT / "experiments/align").glob("*.py")]
    imports = "; ".join(f"import experiments.align.{name}" for name in names)
    code = f"import sys; {imports}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_no_experiment_main_is_longer_than_sixty_lines():
    mains = [path for path in (ROOT / "experiments").glob("b3_*.py")]
    assert mains
    for path in mains:
        assert len(path.read_text().splitlines()) <= 60, path.name
