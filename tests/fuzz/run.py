"""Damages what the package reads, and counts what comes of it: `python tests/fuzz/run.py [--seconds 60] [--seed 0]`.

Each target runs in a process of its own. What is neither refused in words nor right fails, and so does an attempt that
takes more than `SECONDS` of processor time, more than `MEGABYTES` of memory, or ends its process. A failure names its
seed; `--only TARGET --seed N --attempts 1` repeats it.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

# Bounds of one attempt: processor time, memory, and the time after which it is taken to hang.
SECONDS, MEGABYTES, HANGS = 20, 512, 180
LINKS = "links"
LINKS_PER_SECOND = 1000  # about as many as a core tries
VOICE = Path(__file__).resolve().parents[2] / "hub_cards" / "web" / "voice.js"


class Slow(BaseException):
    """An attempt that takes too long; no `except Exception` catches it."""


@dataclass
class Counts:
    """What came of the attempts on one target.

    Args:
        tried: the number of attempts.
        outcomes: the number of each outcome.
        failures: a line for each failure, with its seed.
        slowest: processor time of the slowest attempt, in seconds.
        megabytes: growth of the process's memory over all attempts.
    """

    tried: int = 0
    outcomes: dict[str, int] = field(default_factory=lambda: {"refused": 0, "right": 0, "other": 0})
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    megabytes: float = 0.0


def memory() -> float:
    """Returns the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def attack_target(name: str, seed: int, seconds: float, attempts: int, results: Connection) -> None:
    """Attacks a target and sends the seed of each attempt before it and, at the end, the counts."""
    import logging

    from fuzz.targets import TARGETS, outcomes

    logging.disable(logging.CRITICAL)

    def interrupt(*_: object) -> None:
        raise Slow

    signal.signal(signal.SIGPROF, interrupt)
    for output in (sys.stdout, sys.stderr):  # decoders in C talk about what they are given
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
    counts = Counts()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        attack = TARGETS[name](Path(folder))
        before, end = memory(), time.monotonic() + seconds
        for number, attempt in outcomes(attack, seed):
            if counts.tried >= attempts or time.monotonic() > end:
                break
            results.send(number)
            peak, begun = memory(), time.process_time()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                counts.outcomes[attempt()] += 1
            except Slow:
                counts.failures.append(f"seed {number}: takes more than {SECONDS} s")
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(place.filename).name}:{place.lineno}"
                counts.failures.append(f"seed {number}: {type(error).__name__} at {where}: {str(error)[:200]}")
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            counts.tried += 1
            counts.slowest = max(counts.slowest, time.process_time() - begun)
            if memory() - peak > MEGABYTES:
                counts.failures.append(f"seed {number}: takes {memory() - peak:.0f} MB")
        counts.megabytes = memory() - before
    results.send(counts)


def run_target(name: str, seed: int, seconds: float, attempts: int) -> Counts:
    """Runs a target's attack in a process of its own, and returns the counts, even if that process dies."""
    context = multiprocessing.get_context("spawn")
    results, sender = context.Pipe(duplex=False)
    process = context.Process(target=attack_target, args=(name, seed, seconds, attempts, sender))
    process.start()
    sender.close()
    last: int | Counts = seed
    try:
        while not isinstance(last, Counts):
            if not results.poll(HANGS):
                process.kill()
            last = results.recv()
    except EOFError:
        process.join()
        return Counts(last - seed + 1, failures=[f"seed {last}: the process ended with {process.exitcode}"])
    process.join()
    return last


def run_links(seed: int, seconds: float, attempts: int) -> Counts:
    """Attacks the links of the page, in node."""
    number = int(min(attempts, seconds * LINKS_PER_SECOND))
    command = ["node", Path(__file__).with_name("links.mjs"), VOICE, str(seed), str(number)]
    begun = time.monotonic()
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    content = json.loads(run.stdout)
    failures = [f"seed {failure}" for failure in content.pop("failed")]
    return Counts(number, content, failures, (time.monotonic() - begun) / max(number, 1))


def fuzz(names: list[str], seed: int, seconds: float, attempts: int) -> dict[str, Counts]:
    """Attacks targets one after the other, and prints a row for each.

    Args:
        names: the targets.
        seed: the seed of the first attempt on each.
        seconds: the time for all of them; each gets its share.
        attempts: the most attempts on each.

    Returns:
        The counts by target.
    """
    print("| target | tried | refused | right | other | failed | slowest, s | memory, MB |", flush=True)
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    results = {}
    for name in names:
        share = seconds / len(names)
        counts = run_links(seed, share, attempts) if name == LINKS else run_target(name, seed, share, attempts)
        results[name] = counts
        row = [name, counts.tried, *counts.outcomes.values(), len(counts.failures)]
        print("|", " | ".join(map(str, [*row, f"{counts.slowest:.2f}", f"{counts.megabytes:.0f}"])), "|", flush=True)
    return results


def main() -> int:
    """Runs the attacks and returns the exit status: 1 if anything failed."""
    from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="run.py", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120, help="for all targets together (default: 120)")
    parser.add_argument("--seed", type=int, default=0, help="of the first attempt (default: 0)")
    parser.add_argument("--attempts", type=int, default=10**9, help="at most so many on each target")
    parser.add_argument("--only", nargs="+", choices=[*TARGETS, LINKS], help="targets (default: all that can run)")
    options = parser.parse_args()
    names = options.only or [*TARGETS, *([LINKS] if shutil.which("node") and VOICE.is_file() else [])]
    results = fuzz(names, options.seed, options.seconds, options.attempts)
    for name, counts in results.items():
        for failure in counts.failures[:20]:
            print(f"{name}: {failure}", file=sys.stderr)
    return 1 if any(counts.failures for counts in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
