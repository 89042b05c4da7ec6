"""Workers end with their launcher, whatever ends it; what is started by hand does not end with its shell. Memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKER = """
import os, sys, time
from pathlib import Path
from tango.processes import end_with_launcher, end_with_parent

end_with_parent() if sys.argv[2:] == ["always"] else end_with_launcher(os.environ)
Path(sys.argv[1], str(os.getpid())).touch()
time.sleep(600)
"""
# Starts a worker as `accelerate launch` does for one process, and waits for it.
PARENT = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a call of Linux'")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], list[int]]]]:
    """Start a command whose workers are `WORKER`; itself, and the workers once they are there."""
    script, ready, started = tmp_path / "worker.py", tmp_path / "ready", []
    script.write_text(WORKER)
    ready.mkdir()

    def run(*command: str, workers: int = 1, more: tuple[str, ...] = (), **variables: str):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "TORCHELASTIC_"))}
        environment = {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
        process = subprocess.Popen(
            [*command, str(script), str(ready), *more], env=environment, stderr=subprocess.DEVNULL
        )
        started.append(process)
        wait_for(lambda: len(list(ready.iterdir())) == workers or process.poll() is not None)
        assert process.poll() is None
        return process, [int(path.name) for path in ready.iterdir()]

    yield run
    for process in started:
        process.kill()
        process.wait()
    for path in ready.iterdir():
        if is_running(int(path.name)):
            os.kill(int(path.name), signal.SIGKILL)


def wait_for(reached: Callable[[], bool]) -> None:
    """Until something has happened; the limit is for what hangs."""
    deadline = time.monotonic() + 300
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(process: int) -> bool:
    """Whether a process is there, and no corpse that nobody has buried."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("variables", [{"ACCELERATE_MIXED_PRECISION": "no"}, {"TORCHELASTIC_RUN_ID": "1"}])
def test_a_worker_ends_with_its_launcher(start, sent: signal.Signals, variables: dict[str, str]) -> None:
    launcher, [worker] = start(sys.executable, "-c", PARENT, **variables)
    assert is_running(worker)
    launcher.send_signal(sent)
    wait_for(lambda: not is_running(worker))


def test_all_workers_of_torchrun_end_with_it(start) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    launcher, workers = start(sys.executable, *torchrun, workers=2)
    launcher.kill()
    wait_for(lambda: not any(map(is_running, workers)))


def test_a_process_that_was_started_by_hand_goes_on(start) -> None:
    shell, [process] = start(sys.executable, "-c", PARENT)
    shell.kill()
    shell.wait()
    time.sleep(0.5)
    assert is_running(process)


def test_a_helper_ends_with_whoever_started_it(start) -> None:
    parent, [helper] = start(sys.executable, "-c", PARENT, more=("always",))
    parent.kill()
    wait_for(lambda: not is_running(helper))


@pytest.mark.parametrize("script", ["VLMEvalKit/run_eval.sh", "lmms-eval/run_profile.sh", "scripts/run_table.sh"])
def test_scripts_tie_what_they_start_to_themselves(start, tmp_path: Path, script: str) -> None:
    """The lines of the script that do so, around a worker that knows nothing of it."""
    text = (ROOT / script).read_text()
    begin = text.index("tied=()")
    tie = text[begin : text.index("\n\n", begin)]
    assert '"${tied[@]}"' in text
    if subprocess.run(["setpriv", "--pdeathsig", "KILL", "true"], stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip("needs setpriv")
    (tmp_path / "run.sh").write_text(f'set -euo pipefail\n{tie}\n"${{tied[@]}}" "{sys.executable}" "$@"\nexit 3\n')
    shell, [worker] = start("bash", str(tmp_path / "run.sh"))
    shell.kill()
    wait_for(lambda: not is_running(worker))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="this system has no /proc")
def test_the_peak_of_a_process_is_its_own():
    child = "from tango.processes import resident_bytes; print(resident_bytes(), resident_bytes(peak=True))"
    parent = f"""
import subprocess, sys
large = bytearray(b"x") * (500 << 20)
del large
print(subprocess.run([sys.executable, "-c", {child!r}], capture_output=True, text=True, check=True).stdout)
{child}
"""
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, cwd=ROOT, check=True)
    (child_now, peak_of_child), (parent_now, peak_of_parent) = (
        map(int, line.split()) for line in done.stdout.split("\n") if line
    )
    assert 0 < child_now < 1.1 * peak_of_child < 330e6  # the kernel counts pages in lots
    assert peak_of_parent > 500e6
    assert parent_now < 300e6
