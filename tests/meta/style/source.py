"""A parsed file, and what every check asks about it."""

import ast
from dataclasses import dataclass

KERNEL_FOLDERS = ("attention/triton/", "attention/hopper/", "selection/triton/", "kernels/")
ADAPTERS = {"integrations/transformers.py"}
"""The one file whose parameters are named by somebody else's interface."""


@dataclass(frozen=True)
class Source:
    """A parsed file; `name` is relative to the package (or to the folder of tests)."""

    name: str
    text: str

    @property
    def tree(self):
        return ast.parse(self.text)

    @property
    def is_kernel(self):
        return self.name.startswith(KERNEL_FOLDERS)

    def functions(self):
        """Every function, with whether it is public: no underscore in its name or its owners'."""
        return list(_functions(self.tree, public=True, method=False))


def read(folder):
    """Every Python file of a folder, by name."""
    paths = sorted(folder.rglob("*.py"))
    return [Source(p.relative_to(folder).as_posix(), p.read_text("utf-8")) for p in paths]


def _functions(node, *, public, method):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            shown = public and not child.name.startswith("_")
            yield child, shown, method
            yield from _functions(child, public=False, method=False)
        elif isinstance(child, ast.ClassDef):
            shown = public and not child.name.startswith("_")
            yield from _functions(child, public=shown, method=True)
        else:
            yield from _functions(child, public=public, method=method)


def parameters(function, method):
    a = function.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    static = any(getattr(d, "id", None) == "staticmethod" for d in function.decorator_list)
    return every[1:] if method and not static else every


def is_device_code(function):
    return any("jit" in ast.unparse(d).split("(")[0] for d in function.decorator_list)
