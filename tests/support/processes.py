"""Processes that need no start: copies of the test's own, which has imported everything that they need.

Where this process may not be copied, because it has used a GPU or the system has no such thing, they are started.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn

import torch

START = (
    "import pickle, sys; source = sys.stdin.buffer; sys.path[:] = pickle.load(source); sys.exit(pickle.load(source)())"
)


class Process:
    """A process that works by itself, in the manner of `subprocess.Popen`; its two outputs are one.

    Args:
        work: the work, which returns the exit status or None, or leaves through SystemExit. It can be pickled.
        environment: variables that it has beside those of this process.
    """

    def __init__(self, work: Callable[[], int | None], environment: Mapping[str, str] | None = None):
        self.returncode: int | None = None
        self.output, self.started = tempfile.TemporaryFile(), None
        if sys.platform != "linux" or torch.cuda.is_available():
            streams = {"stdin": subprocess.PIPE, "stdout": self.output, "stderr": subprocess.STDOUT}
            variables = {**os.environ, **(environment or {})}
            self.started = subprocess.Popen([sys.executable, "-c", START], env=variables, **streams)
            self.pid = self.started.pid
            with self.started.stdin as pipe:
                pipe.write(pickle.dumps(sys.path) + pickle.dumps(work))
            return
        self.pid = os.fork()
        if not self.pid:
            _work(work, environment or {}, self.output.fileno())

    def poll(self) -> int | None:
        """Returns the exit status; None if it is still at work."""
        if self.started is not None:
            self.returncode = self.started.poll()
        elif self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """Waits for its end, and returns its exit status; one that takes too long is killed."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.send_signal(signal.SIGKILL)
                raise TimeoutError(self.communicate()[0])
            time.sleep(0.005)
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, None]:
        """Waits for its end, and returns what it said."""
        self.wait(timeout)
        self.output.seek(0)
        return self.output.read().decode(errors="replace"), None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def two_processes(work: Callable[[], int | None]) -> list[Process]:
    """Two processes that find each other as those of `torchrun` do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [Process(work, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]


def finish(*processes: Process) -> str:
    """Waits for processes that must succeed, and returns what they said."""
    said = [process.communicate()[0] for process in processes]
    assert not any(process.returncode for process in processes), "\n".join(said)
    return "".join(said)


def _work(work: Callable[[], int | None], environment: Mapping[str, str], output: int) -> NoReturn:
    status: object = 1
    try:
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
        os.environ.update(environment)
        status = work() or 0
    except SystemExit as error:
        status = 0 if error.code is None else error.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(str(status)))
