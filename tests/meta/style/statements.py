"""What stands in a file: docstrings, types, and statements that none has."""

import ast

from torch.utils._device import _device_constructors

from .source import is_device_code, parameters

FACTORIES = {f.__name__ for f in _device_constructors()}
"""What torch makes on the default device, where no other is named."""


def docstrings(source):
    missing = [] if ast.get_docstring(source.tree) else ["the module has no docstring"]
    classes = [n for n in source.tree.body if isinstance(n, ast.ClassDef)]
    public = [c for c in classes if not c.name.startswith("_")]
    public += [f for f, shown, _ in source.functions() if shown]
    return missing + [f"{n.name} has no docstring" for n in public if not ast.get_docstring(n)]


def annotations(source):
    found = []
    for f, public, method in source.functions():
        if not public or is_device_code(f):
            continue
        bare = [p.arg for p in parameters(f, method) if p.annotation is None]
        if bare:
            found.append(f"{f.name} does not annotate {', '.join(bare)}")
        if f.returns is None:
            found.append(f"{f.name} does not annotate what it returns")
    return found


def forbidden_statements(source):
    found = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Assert):
            found.append(f"line {node.lineno}: assert; raise a typed error")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"line {node.lineno}: bare except; name the error")
        called = getattr(node.func, "id", None) if isinstance(node, ast.Call) else None
        if called == "print" and not source.name.startswith("cli/"):
            found.append(f"line {node.lineno}: print; only the command line prints")
    return found


def _named_values(node):
    """Pairs of a name and the expression given for it: arguments, defaults, variables, keys."""
    if isinstance(node, ast.Call):
        yield from ((k.arg, k.value) for k in node.keywords)
    elif isinstance(node, ast.Assign):
        yield from ((getattr(t, "id", None), node.value) for t in node.targets)
    elif isinstance(node, ast.AnnAssign) and node.value:
        yield getattr(node.target, "id", None), node.value
    elif isinstance(node, ast.arguments):
        positional = [*node.posonlyargs, *node.args]
        last = positional[len(positional) - len(node.defaults) :]
        yield from ((a.arg, d) for a, d in zip(last, node.defaults, strict=True))
        yield from ((a.arg, d) for a, d in zip(node.kwonlyargs, node.kw_defaults, strict=True) if d)
    elif isinstance(node, ast.Dict):
        yield from (
            (getattr(k, "value", None), v) for k, v in zip(node.keys, node.values, strict=True)
        )


def literal_tolerances(source):
    """Tolerances come from the shipped assertion; 0, that is equality, is none."""
    found = []
    for node in ast.walk(source.tree):
        for name, value in _named_values(node):
            parts = list(ast.walk(value))
            computed = any(isinstance(p, ast.Name | ast.Attribute) for p in parts)
            typed_in = any(isinstance(p, ast.Constant) and p.value for p in parts)
            if name in ("atol", "rtol") and typed_in and not computed:
                found.append(f"line {value.lineno}: {name}={ast.unparse(value)}")
    return found


def default_devices(source):
    """A new tensor names its device: the default one is the caller's business."""
    found = []
    for node in ast.walk(source.tree):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        owner, _, name = called.rpartition(".")
        if owner != "torch" or name not in FACTORIES:
            continue
        if "device" not in {k.arg for k in node.keywords}:
            found.append(f"line {node.lineno}: {called} without device=")
    return found
