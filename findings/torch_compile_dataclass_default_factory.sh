#!/usr/bin/env bash
# Guess:   torch.compile(fullgraph=True) makes a frozen dataclass inside a graph whatever fills its
#          fields: a default object, a class as default_factory, or a function that calls the class.
# Seen:    2.13.0 takes the function alone. A class as default_factory is "Unsupported function
#          call", though 2.7.1 took it; a default object is refused by both (they have no source to
#          build it from).
# Matters: a configuration of an attention that is made of small parts can be made in a compiled
#          model only if its defaults come from functions, on all of these versions.
# torch 2.13.0 and 2.7.1 (Linux, CPU, backend "eager")
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/show.py" <<'PY'
import dataclasses, sys
import torch

@dataclasses.dataclass(frozen=True)
class Part:
    times: int = 3

def part():
    return Part()

def whole(default):
    return dataclasses.make_dataclass("Whole", [("part", Part, default)], frozen=True)

kinds = {
    "object": whole(Part()),
    "class": whole(dataclasses.field(default_factory=Part)),
    "function": whole(dataclasses.field(default_factory=part)),
}
taken = []
for name, kind in kinds.items():
    torch.compiler.reset()
    try:
        torch.compile(lambda x: x * kind().part.times, fullgraph=True, backend="eager")(torch.ones(1))
        taken.append(name)
    except torch._dynamo.exc.Unsupported as error:
        print(f"torch {torch.__version__}, {name}: {str(error).strip().splitlines()[0]}")
print(f"torch {torch.__version__} takes: {', '.join(taken)}")
assert taken == sys.argv[1].split(","), "the behaviour has changed"
PY
for pair in 2.13.0:function 2.7.1:class,function; do
  python3 -m venv --clear "$work/venv"
  "$work/venv/bin/pip" install -q "torch==${pair%%:*}" numpy==2.2.6
  "$work/venv/bin/python" "$work/show.py" "${pair#*:}"
done
