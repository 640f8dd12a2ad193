"""One word for each idea, and one home for each name."""

import ast
from collections import defaultdict
from pathlib import Path

from .source import ADAPTERS

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
VAGUE = {"found", "facts", "there", "kept", "run"}
"""Words that a variable is not called: they hold whatever the function made."""

CLEAR_ROOMS = ("attention/", "kernels/", "routing/")
"""Where that holds; a room that gets there is added."""


def module_name(source):
    words = set(Path(source.name).with_suffix("").parts)
    return [f"'{w.strip('_')}' says nothing" for w in words if w.strip("_") in DRAWERS]


def vocabulary(source):
    if source.name in ADAPTERS:
        return []
    return [
        f"line {line}: '{name}' is called {SYNONYMS[name]} here"
        for name, line in _bound_names(source.tree)
        if name in SYNONYMS
    ]


def vague_names(source):
    if not source.name.startswith(CLEAR_ROOMS):
        return []
    return [
        f"line {line}: '{name}' could be anything; call it what it holds"
        for name, line in _variables(source.tree)
        if name in VAGUE
    ]


def _bound_names(tree):
    """Names that a file gives to something of its own, with their lines."""
    yield from _variables(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def _variables(tree):
    """Parameters and variables of a file, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno


def homes_of_operations(sources):
    """The files that define each public function and class."""
    homes = defaultdict(set)
    for source in sources:
        for node in source.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(source.name)
    return homes


def doubled_values(sources):
    """Public constants and aliases with two homes: in one room, or of one value in any two.

    A room is a folder of the package, or of `lab`, which has rooms of its own.
    Rooms far apart may each have an `OTHERS` of their own; a value that stands twice is a copy. The
    reference has its own on purpose: what it shared with the engines it could not object to.
    """
    homes = defaultdict(list)
    for source in sources:
        if source.name.startswith("reference/"):
            continue
        for name, value in _module_values(source.tree):
            homes[name].append((source.name, value))
    doubled = {}
    for name, places in homes.items():
        files = sorted({file for file, _ in places})
        rooms, values = {_room(file) for file in files}, {value for _, value in places}
        if len(files) > 1 and min(len(rooms), len(values)) < len(files):
            doubled[name] = files
    return doubled


def _room(file):
    folders = Path(file).parts[:-1]
    return folders[: 2 if folders[:1] == ("lab",) else 1]


def _module_values(tree):
    """Public names that a module assigns, with the text of their values."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if value is None or ast.unparse(value).startswith(("TypeVar(", "ParamSpec(")):
            continue
        text = ast.unparse(value).replace("gl.constexpr", "tl.constexpr")
        for target in targets:
            if isinstance(target, ast.Name) and not target.id.startswith("_"):
                yield target.id, text
