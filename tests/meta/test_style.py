"""The budgets and the vocabulary of the project, checked on every source file.

The checks are in `style/`. Each also has a snippet that it must object to, so that none of them can
pass by looking at nothing.
"""

import ast
import re
from pathlib import Path

import pytest

from .style import CHECKS, Source
from .style.budgets import (
    MAX_FUNCTION_LINES,
    MAX_LINES,
    MAX_PARAMETERS,
    file_length,
    function_length,
    parameter_count,
    swallowing_parameters,
)
from .style.names import (
    doubled_values,
    homes_of_operations,
    module_name,
    vague_names,
    vocabulary,
)
from .style.source import read
from .style.statements import (
    annotations,
    default_devices,
    docstrings,
    forbidden_statements,
    literal_tolerances,
)

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "sample_attention"
SELF = Path(__file__).resolve()
MAX_README_LINES = 120
MAX_ENVIRONMENT_VARIABLES = 3
SHARED_BY_ENGINES = {"engine"}
"""What every engine's folder has, under one name."""

SOURCES = read(PACKAGE)
TESTS = [s for s in read(ROOT / "tests") if ROOT / "tests" / s.name != SELF]


def test_there_is_something_to_check():
    assert {"__init__.py", "api.py", "reference/default.py"} <= {s.name for s in SOURCES}
    assert any(s.name.startswith("unit/") for s in TESTS)


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.name)
def test_source_keeps_every_rule(source):
    found = [f"{check.__name__}: {text}" for check in CHECKS for text in check(source)]
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


@pytest.mark.parametrize("text", ["found = f(x)", "def f(kept): ...", "for run in x: ..."])
def test_vague_names_object(text):
    assert vague_names(Source("kernels/made_up.py", text))
    assert not vague_names(Source("kernels/made_up.py", "def run(self): ...\nself.kept = 1"))


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


def test_operations_have_one_home():
    homes = homes_of_operations(SOURCES)
    # The public function, its specification and the engines' own are one operation.
    shared, folders = (
        {"api.py", "reference/__init__.py", "reference/attend.py"},
        ("selection/", "attention/"),
    )
    protocol = _protocol_methods()
    assert protocol, "routing/engines.py defines no protocol"
    for name in protocol:
        homes[name] = {m for m in homes[name] if m not in shared and not m.startswith(folders)}
    twice = {name: sorted(modules) for name, modules in homes.items() if len(modules) > 1}
    assert not twice, f"defined in more than one module: {twice}"


def test_constants_have_one_home():
    twice = doubled_values(SOURCES)
    for name in SHARED_BY_ENGINES:
        twice.pop(name, None)
    assert not twice, f"give them one home, or names of their own: {twice}"


@pytest.mark.parametrize(
    ("files", "doubled"),
    [
        ({"a/x.py": "ROWS = 1", "a/y.py": "ROWS = 2"}, True),
        ({"a/x.py": "ROWS: int = 1", "b/y.py": "ROWS = 1"}, True),
        ({"a/x.py": "Row = tuple[int, int]", "a/y.py": "Row = list[int]"}, True),
        ({"a/x.py": "ROWS = gl.constexpr(1)", "b/y.py": "ROWS = tl.constexpr(1)"}, True),
        ({"a/x.py": "ROWS = 1", "b/y.py": "ROWS = 2"}, False),
        ({"a/x.py": "ROWS = 1", "a/y.py": "from .x import ROWS"}, False),
        ({"a/x.py": "_ROWS = 1", "a/y.py": "_ROWS = 1"}, False),
        ({"lab/a/x.py": "ROWS = 1", "lab/b/y.py": "ROWS = 2"}, False),
        ({"a/x.py": "ROWS = 1", "reference/y.py": "ROWS = 1"}, False),
        ({"a/x.py": "R = TypeVar('R')", "b/y.py": "R = TypeVar('R')"}, False),
    ],
)
def test_doubles_are_seen(files, doubled):
    assert bool(doubled_values([Source(*file) for file in files.items()])) == doubled


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
