"""The budgets and the vocabulary of the project, checked on every source file.

A check is a function from a file to the violations in it. Each check also has a snippet that it
must object to, so that none of them can pass by looking at nothing.
"""

import ast
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch.utils._device import _device_constructors

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "sample_attention"
SELF = Path(__file__).resolve()

MAX_LINES, MAX_KERNEL_LINES = 400, 500
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
MAX_README_LINES = 120
MAX_ENVIRONMENT_VARIABLES = 3
KERNEL_FOLDERS = ("attention/triton/", "attention/hopper/", "selection/triton/", "kernels/")
DRAWERS = {"utils", "util", "common", "helpers", "helper", "misc"}

# docs/reference/glossary.md: the words on the right are ours, those on the left are not used.
SYNONYMS = {
    **dict.fromkeys(("query", "query_states", "queries_states"), "q"),
    **dict.fromkeys(("key_states", "value_states"), "k, v"),
    **dict.fromkeys(("o", "attn_output"), "out"),
    **dict.fromkeys(("softmax_lse", "logsumexp"), "lse"),
    **dict.fromkeys(("sm_scale", "softmax_scale", "qk_scale"), "scale"),
    **dict.fromkeys(("nheads", "n_heads", "qo_heads", "num_qo_heads", "num_q_heads"), "num_heads"),
    **dict.fromkeys(
        ("num_heads_kv", "n_kv_heads", "num_key_value_heads", "kv_nheads"), "num_kv_heads"
    ),
    **dict.fromkeys(("num_groups", "n_rep", "num_key_value_groups"), "group_size"),
    **dict.fromkeys(("block_table", "block_tables", "indptr"), "page_table"),
    **dict.fromkeys(("cache_position",), "offset"),
    **dict.fromkeys(("window_size", "sliding_window", "window_left"), "window"),
    **dict.fromkeys(("vertical", "verticals", "vertical_idx", "stripe_index"), "columns"),
    **dict.fromkeys(("diagonal", "diagonals"), "slashes"),
    **dict.fromkeys(("importance",), "mass"),
    **dict.fromkeys(("alpha", "gamma", "tau"), "coverage"),
    **dict.fromkeys(("sparsity_ratio",), "density"),
    **dict.fromkeys(("recall",), "retained_mass or cra"),
    **dict.fromkeys(("tile_m", "tile_n", "BLK"), "BLOCK_M, BLOCK_N"),
    **dict.fromkeys(("impl", "kernel_options"), "backend"),
}
# The one file whose parameters are named by somebody else's interface.
ADAPTERS = {"integrations/transformers.py"}
# What torch makes on the default device, where no other is named.
FACTORIES = {f.__name__ for f in _device_constructors()}
# Functions whose open keywords end in a dataclass, which rejects those it does not have.
CHECKED_KEYWORDS = {"config/default.py:preset"}


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


def _parameters(function, method):
    a = function.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    static = any(getattr(d, "id", None) == "staticmethod" for d in function.decorator_list)
    return every[1:] if method and not static else every


def _is_device_code(function):
    return any("jit" in ast.unparse(d).split("(")[0] for d in function.decorator_list)


def file_length(source):
    limit = MAX_KERNEL_LINES if source.is_kernel else MAX_LINES
    lines = len(source.text.splitlines())
    return [f"{lines} lines; the limit is {limit}"] if lines > limit else []


def function_length(source):
    return [
        f"{f.name} has {f.end_lineno - f.lineno + 1} lines; the limit is {MAX_FUNCTION_LINES}"
        for f, _, _ in source.functions()
        if f.end_lineno - f.lineno + 1 > MAX_FUNCTION_LINES and not _is_device_code(f)
    ]


def parameter_count(source):
    return [
        f"{f.name} has {len(_parameters(f, method))} parameters; the limit is {MAX_PARAMETERS}"
        for f, public, method in source.functions()
        if public and len(_parameters(f, method)) > MAX_PARAMETERS
        if not _is_device_code(f)
    ]


def swallowing_parameters(source):
    return [
        f"{f.name} takes **{f.args.kwarg.arg}: name the parameters, so that a typing error shows"
        for f, public, _ in source.functions()
        if public and f.args.kwarg and f"{source.name}:{f.name}" not in CHECKED_KEYWORDS
        if source.name not in ADAPTERS
    ]


def docstrings(source):
    missing = [] if ast.get_docstring(source.tree) else ["the module has no docstring"]
    classes = [n for n in source.tree.body if isinstance(n, ast.ClassDef)]
    public = [c for c in classes if not c.name.startswith("_")]
    public += [f for f, shown, _ in source.functions() if shown]
    return missing + [f"{n.name} has no docstring" for n in public if not ast.get_docstring(n)]


def annotations(source):
    found = []
    for f, public, method in source.functions():
        if not public or _is_device_code(f):
            continue
        bare = [p.arg for p in _parameters(f, method) if p.annotation is None]
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


def module_name(source):
    words = set(Path(source.name).with_suffix("").parts)
    return [f"'{w.strip('_')}' says nothing" for w in words if w.strip("_") in DRAWERS]


def _bound_names(tree):
    """Names that a file gives to something of its own, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def vocabulary(source):
    if source.name in ADAPTERS:
        return []
    return [
        f"line {line}: '{name}' is called {SYNONYMS[name]} here"
        for name, line in _bound_names(source.tree)
        if name in SYNONYMS
    ]


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


SOURCE_CHECKS = [
    file_length, function_length, parameter_count, swallowing_parameters, docstrings, annotations,
    forbidden_statements, module_name, vocabulary, literal_tolerances, default_devices,
]  # fmt: skip


def _read(folder):
    paths = sorted(folder.rglob("*.py"))
    return [Source(p.relative_to(folder).as_posix(), p.read_text("utf-8")) for p in paths]


SOURCES = _read(PACKAGE)
TESTS = [s for s in _read(ROOT / "tests") if ROOT / "tests" / s.name != SELF]


def test_there_is_something_to_check():
    assert {"__init__.py", "api.py", "reference/oracle.py"} <= {s.name for s in SOURCES}
    assert any(s.name.startswith("unit/") for s in TESTS)


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.name)
def test_source_keeps_every_rule(source):
    found = [f"{check.__name__}: {text}" for check in SOURCE_CHECKS for text in check(source)]
    assert not found, "\n".join([source.name, *found])


@pytest.mark.parametrize("source", TESTS, ids=lambda s: s.name)
def test_tests_hold_no_literal_tolerance(source):
    found = literal_tolerances(source)
    assert not found, f"{source.name}: let the shipped assertion compute the bound: {found}"


LONG_BODY = "\n".join(["    x = 1"] * MAX_FUNCTION_LINES)
MANY = ", ".join(f"p{i}: int" for i in range(MAX_PARAMETERS + 1))
OBJECTIONABLE = [
    (file_length, "x = 1\n" * (MAX_LINES + 1)),
    (function_length, f"def _f():\n{LONG_BODY}\n"),
    (parameter_count, f"def f({MANY}): ..."),
    (parameter_count, f"class A:\n    def f(self, {MANY}): ..."),
    (swallowing_parameters, "def f(**options: Any): ..."),
    (docstrings, "x = 1"),
    (docstrings, '"""M."""\ndef f(): ...'),
    (docstrings, '"""M."""\nclass A:\n    """A."""\n    def f(self): ...'),
    (docstrings, '"""M."""\nclass A: ...'),
    (annotations, "def f(x) -> int: ..."),
    (annotations, "class A:\n    def f(self): ..."),
    (forbidden_statements, "assert True"),
    (forbidden_statements, "try:\n    x = 1\nexcept:\n    pass"),
    (forbidden_statements, "print(1)"),
    (vocabulary, "def f(softmax_scale): ..."),
    (vocabulary, "block_table = 1"),
    (vocabulary, "self.window_size = 1"),
    (literal_tolerances, "f(a, b, atol=1e-3)"),
    (literal_tolerances, "f(a, b, rtol=-2 * 1e-3)"),
    (literal_tolerances, "atol = 1e-3"),
    (literal_tolerances, "def f(a, *, atol=1e-3): ..."),
    (literal_tolerances, "def f(a, rtol=1e-3): ..."),
    (literal_tolerances, "f(a, b, **{'atol': 0.5})"),
    (default_devices, "x = torch.arange(3)"),
    (default_devices, "x = y + torch.zeros(shape, dtype=torch.bool)"),
    (default_devices, "x = torch.tensor([1]).to(y.device)"),
]


@pytest.mark.parametrize(
    ("check", "text"),
    OBJECTIONABLE,
    ids=[f"{check.__name__}-{i}" for i, (check, _) in enumerate(OBJECTIONABLE)],
)
def test_check_objects(check, text):
    assert check(Source("made_up.py", text))


def test_module_name_objects():
    assert module_name(Source("plan/_utils.py", ""))


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (default_devices, "x = torch.arange(3, device=q.device) + torch.zeros_like(q)"),
        (default_devices, "x = torch.full((3,), 0, device='cpu').new_ones(3)"),
        (literal_tolerances, "f(a, b, atol=0, rtol=0.0)"),
        (literal_tolerances, "f(a, b, atol=bound, rtol=2 * bound)"),
        (vocabulary, "lse = torch.logsumexp(x, -1)\nplot(alpha=0.5)"),
        (parameter_count, f"def _f({MANY}): ..."),
    ],
)
def test_check_accepts(check, text):
    assert not check(Source("made_up.py", text))


def _protocol_methods():
    """The operations that every engine must offer, under the same names."""
    engines = next(s for s in SOURCES if s.name == "routing/engines.py")
    classes = [n for n in engines.tree.body if isinstance(n, ast.ClassDef)]
    return {n.name for c in classes for n in c.body if isinstance(n, ast.FunctionDef)}


def test_public_names_have_one_home():
    homes = defaultdict(set)
    for source in SOURCES:
        for node in source.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(source.name)
    # The public function, its specification and the engines' own are one operation.
    shared, folders = {"api.py", "reference/oracle.py"}, ("selection/", "attention/")
    protocol = _protocol_methods()
    assert protocol, "routing/engines.py defines no protocol"
    for name in protocol:
        homes[name] = {m for m in homes[name] if m not in shared and not m.startswith(folders)}
    twice = {name: sorted(modules) for name, modules in homes.items() if len(modules) > 1}
    assert not twice, f"defined in more than one module: {twice}"


def test_few_environment_variables():
    read = re.compile(r"""(?:getenv\(|environ(?:\.get\(|\.pop\(|\.setdefault\(|\[))\s*([^),\]]+)""")
    names = {m.strip() for s in SOURCES for m in read.findall(s.text)}
    assert len(names) <= MAX_ENVIRONMENT_VARIABLES, f"environment variables read: {sorted(names)}"
    mentions = [s.name for s in SOURCES if re.search(r"\benviron\b(?!\s*(\.|\[))", s.text)]
    assert not mentions, f"os.environ is passed on whole in {mentions}"


def test_readme_is_short():
    lines = len((ROOT / "README.md").read_text("utf-8").splitlines())
    assert lines <= MAX_README_LINES, f"README.md has {lines} lines"


def test_pyright_is_not_asked_to_look_away():
    vague = re.compile(r"#\s*(type:\s*ignore|pyright:\s*(basic|standard|ignore))(?!\[)")
    found = [
        f"{s.name}:{i}"
        for s in SOURCES
        for i, line in enumerate(s.text.splitlines(), 1)
        if vague.search(line)
    ]
    assert not found, f"name the rule, as in `# pyright: ignore[rule]  # reason`: {found}"
