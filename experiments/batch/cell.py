"""One cell of a suite: a command line, what it may use, and what became of it."""

import hashlib
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

PASS, FAIL, REFUSED, INCONCLUSIVE, ORACLE = "pass", "fail", "refused", "inconclusive", "oracle"
TIMEOUT, MEMORY, CRASH = "timeout", "memory", "crash"
STATUS_OF_CODE = {0: PASS, 1: FAIL, 2: REFUSED, 3: INCONCLUSIVE, 4: ORACLE}
EXIT_CODES = {PASS: 0, FAIL: 1, REFUSED: 2, ORACLE: 4}
"""Of a whole run whose worst cell ended so; every other status shows nothing, which is 3."""


@dataclass(frozen=True)
class Cell:
    """An experiment at one point of a suite's matrix; the matrix fields are empty for `once`."""

    experiment: str
    label: str
    model: str = ""
    model_path: str = ""
    prompt: str = ""
    route: str = ""
    kv_dtype: str = ""
    flags: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 600.0
    memory_mb: float = 8192.0

    @property
    def name(self) -> str:
        """The cell in words: `b3_20 tiny p4_sys manual/valu float16`."""
        parts = (self.label, self.model, Path(self.prompt).stem, self.route, self.kv_dtype)
        return " ".join(part for part in parts if part)

    @property
    def key(self) -> str:
        """Names what is run, not where or within which limits: the same in every run."""
        elsewhere = ("model_path", "timeout_s", "memory_mb")
        what = {k: v for k, v in asdict(self).items() if k not in elsewhere}
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        slug = "".join(c if c.isalnum() or c in "._-" else "-" for c in self.name.replace(" ", "_"))
        return f"{slug[:80]}-{digest[:8]}"

    def arguments(self) -> list[str]:
        """What the experiment is asked, without where it writes."""
        matrix = {
            "model": self.model_path,
            "prompt": self.prompt,
            "route": self.route,
            "kv_dtype": self.kv_dtype,
        }
        asked = [f"--{name}={value}" for name, value in matrix.items() if value]
        return asked + [f"--{name}={value}" for name, value in self.flags]

    def command(self, out_dir: Path) -> list[str]:
        module = f"experiments.{self.experiment}"
        return [sys.executable, "-m", module, *self.arguments(), f"--out_dir={out_dir}", "--quiet"]

    def shown_command(self) -> str:
        """The command for a person."""
        return " ".join(["python", "-m", f"experiments.{self.experiment}", *self.arguments()])


@dataclass(frozen=True)
class Result:
    """What became of a cell. margins: (layer, site, worst local error over floor)."""

    cell: Cell
    status: str
    exit_code: int | None
    seconds: float
    peak_rss_mb: float
    reasons: tuple[str, ...] = ()
    margins: tuple[tuple[int, str, float], ...] = ()
    commit: str = ""
    at: str = ""
    folder: str = ""
    more: dict = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.at} {self.cell.key}"

    def as_record(self) -> dict:
        return {"event": "cell", "key": self.cell.key, **asdict(self)}

    @classmethod
    def from_record(cls, record: dict) -> "Result":
        """Raises KeyError or TypeError for a record of something else."""
        fields = {name: record[name] for name in cls.__dataclass_fields__}
        cell = dict(fields["cell"], flags=tuple(map(tuple, fields["cell"]["flags"])))
        fields |= {"cell": Cell(**cell), "reasons": tuple(fields["reasons"])}
        return cls(**fields | {"margins": tuple(map(tuple, fields["margins"]))})


def exit_code(results: list[Result], cells: int) -> int:
    """Of a run: the oracle's failure first, then a failure, a refusal, and doubt."""
    codes = {EXIT_CODES.get(result.status, 3) for result in results}
    if len(results) < cells or not cells:
        codes.add(3)
    return next((code for code in (4, 1, 2, 3) if code in codes), 0)
