#!/usr/bin/env bash
# Guess:   on a machine that is busy with something else, two threads are at worst as slow as one.
# Seen:    small operators cost many times the processor time and the wall time of one thread. Both
#          threads meet after every operator and wait by spinning, on the processor which the other
#          needs. With GOMP_SPINCOUNT=0 in the environment they sleep instead.
# Matters: choosing keys for sparse attention is many small operators, dense attention is one large
#          one: beside other programs it is the sparse side of a comparison on CPUs that gets slow.
# torch 2.13.0 (Linux, its own OpenMP runtime); two processors, two busy loops of at most 60 s
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.3.5

cat > "$work/show.py" <<'EOF'
import os, statistics, subprocess, sys, time
import torch

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
BUSY = "import time\nend = time.time() + 60\nwhile time.time() < end: pass"
x = torch.ones(256, 256)

def cost(threads):
    torch.set_num_threads(threads)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(400):
        x.mul_(1)
    return time.process_time() - cpu, time.perf_counter() - wall

cost(1), cost(2)
busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2)]
try:
    time.sleep(0.5)
    rounds = [(cost(1), cost(2)) for _ in range(7)]
finally:
    for process in busy:
        process.kill()
        process.wait()
one, two = ([statistics.median(c) for c in zip(*r)] for r in zip(*rounds))
print(f"torch {torch.__version__}, GOMP_SPINCOUNT={os.environ.get('GOMP_SPINCOUNT', '')}: processor "
      f"seconds {one[0]:.3f} and {two[0]:.3f}, wall {one[1]:.3f} and {two[1]:.3f} with 1 and 2 threads")
spins = two[0] > 10 * one[0]
assert spins == (sys.argv[1] == "spins"), "the behaviour has changed"
EOF

unset OMP_NUM_THREADS OMP_WAIT_POLICY GOMP_SPINCOUNT
"$work/venv/bin/python" "$work/show.py" spins
GOMP_SPINCOUNT=0 "$work/venv/bin/python" "$work/show.py" sleeps
