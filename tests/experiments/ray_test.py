"""A suite on a real Ray cluster of two nodes on this machine, with a worker killed under a cell."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.batch import store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent
RAY = Path(sys.executable).with_name("ray")
MODEL = ROOT / "models" / "greta-tiny-32l" / "greta-tiny-32l-Q4_K_M.gguf"
SUITE = f"""
models: {{tiny: {MODEL}}}
prompts: [p0_short, p5_ba]
routes: [manual/valu]
kv_dtypes: [float16, float32]
experiments: [{{name: b3_20, flags: {{layers: '0', max_tokens: 1}}}}]
"""
NODE = ("--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats", "--block")
DEADLINE_S = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def descends_from(pid: int, ancestors: set[int]) -> bool:
    try:
        while pid > 1:
            if pid in ancestors:
                return True
            pid = parent(pid)
    except (OSError, ValueError):
        pass
    return False


def processes(ancestors: set[int], word: str) -> list[int]:
    """Processes of our own nodes whose command line holds `word`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if word in line and descends_from(int(entry.name), ancestors):
            found.append(int(entry.name))
    return found


def until(condition, what: str):
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """(address, process ids) of two nodes with one CPU each."""
    if not RAY.exists():
        pytest.fail("no ray: run `make test-all`, or pip install -e '.[ray]'")
    port, folder = free_port(), tmp_path_factory.mktemp("ray")
    # Sockets of Ray live under this folder, and their names must be short.
    short = Path("/tmp") / f"ray-{os.getpid()}"
    environment = os.environ | {"RAY_TMPDIR": str(short), "PYTHONPATH": str(ROOT)}
    address = f"127.0.0.1:{port}"
    ip = "--node-ip-address=127.0.0.1"
    head = ("--head", ip, f"--port={port}", "--include-dashboard=false", f"--temp-dir={short}")
    nodes = []
    try:
        for arguments in (head, (f"--address={address}", ip)):
            path = folder / f"node{len(nodes)}.log"
            with path.open("w") as log:
                command = [RAY, "start", *arguments, *NODE]
                nodes.append(
                    subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
                )
            until(lambda path=path: "block forever" in path.read_text(), "a node of the cluster")
        yield address, {node.pid for node in nodes}
    finally:
        for node in reversed(nodes):
            node.send_signal(signal.SIGTERM)
            node.wait(60)
        shutil.rmtree(short, ignore_errors=True)


def test_a_worker_killed_under_a_cell_loses_nothing(cluster, tmp_path):
    address, nodes = cluster
    (tmp_path / "suite.yaml").write_text(SUITE)
    command = [sys.executable, "-m", "experiments.nightly", "--suite=suite.yaml", "--out_dir=out"]
    command += ["--executor=ray", f"--ray_address={address}", "--output_format=json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    workers = until(lambda: processes(nodes, "ray::on_worker"), "a worker with a cell")
    until(lambda: processes(nodes, "experiments.b3_20"), "a cell's process")
    os.kill(workers[0], signal.SIGKILL)
    out, err = run.communicate(timeout=500)
    record = json.loads(out)
    assert run.returncode == 0, (record["lines"], err)
    assert [cell["status"] for cell in record["more"]["cells"]] == ["pass"] * 4
    for result in store.read(tmp_path / "out"):
        assert result.margins and (Path(result.folder) / "b3_20.html").is_file()
    assert processes(nodes, "experiments.b3_20") == []
