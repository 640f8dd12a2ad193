"""Every language model of transformers, tiny and random, against its own eager attention.

    python benchmarks/zoo.py [--only NAME,NAME] [--append] [--output FILE]

Each model type runs in a process of its own with a limit of time and memory, two at a time; a line
of JSON per type says what became of each case (`zoo_verdicts.py`). `--only` adds its types to the
file, where the last line of a type counts; `--append` leaves out those that the file has.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import resource
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import transformers
from zoo_models import SEED, model_types
from zoo_verdicts import Finding, examine, grouped

from sample_attention.lab.records import append_record, origin

RECORDS = Path(__file__).resolve().parent / "records" / "architectures.jsonl"
PROCESSES, SECONDS, BYTES = 2, 240, 8 << 30

_Running = dict[Connection, tuple[str, Any, float]]


def _work(name: str, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    torch.set_num_threads(1)
    pipe.send(examine(name))


def _collect(running: _Running) -> Iterator[Finding]:
    """What has ended, well or not."""
    ready = wait(list(running), 1)
    for pipe in list(running):
        name, process, start = running[pipe]
        late = time.monotonic() - start > SECONDS
        if pipe not in ready and not late:
            continue
        try:
            if pipe not in ready:
                raise EOFError
            found = pipe.recv()
        except EOFError:
            process.kill()
            process.join()
            reason = f"took over {SECONDS} s" if late else f"process ended: {process.exitcode}"
            found = {"type": name, "verdict": "crash", "reason": reason, "cases": {}}
        process.join()
        del running[pipe]
        yield found | {"seconds": round(time.monotonic() - start, 1)}


def examine_all(names: Iterable[str]) -> Iterator[Finding]:
    """The findings on each type, in the order in which they end."""
    context, running, left = multiprocessing.get_context("fork"), _Running(), list(names)
    while left or running:
        while left and len(running) < PROCESSES:
            name, (here, there) = left.pop(0), context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(name, there))
            process.start()
            there.close()
            running[here] = name, process, time.monotonic()
        yield from _collect(running)


def main() -> int:
    """Write the record; 1 where something is wrong or crashes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="model types, separated by commas")
    parser.add_argument("--append", action="store_true", help="leave out what the file has")
    parser.add_argument("--output", type=Path, default=RECORDS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    names = options.only.split(",") if options.only else model_types()
    facts, counts = origin(torch.device("cpu"), SEED), collections.Counter[str]()
    if not (options.only or options.append):  # from here on the checkout differs from its commit
        options.output.unlink(missing_ok=True)
    if options.append and options.output.exists():
        lines = options.output.read_text("utf-8").split("\n")
        known = {json.loads(line)["type"] for line in lines if line.strip()}
        names = [name for name in names if name not in known]
    for number, found in enumerate(examine_all(names), 1):
        append_record(options.output, grouped(found) | facts)
        counts[found["verdict"]] += 1
        sys.stdout.write(
            f"{number}/{len(names)} {found['type']}: {found['verdict']} ({found['seconds']} s)\n"
        )
        sys.stdout.flush()
    sys.stdout.write(", ".join(f"{n} {verdict}" for verdict, n in counts.most_common()) + "\n")
    return int(bool(counts["wrong"] + counts["crash"]))


if __name__ == "__main__":
    raise SystemExit(main())
