"""The public names and signatures are those of the committed list.

Run this file as a script to write the list anew.
"""

import dataclasses
import difflib
import enum
import inspect
import re
import sys
from importlib.metadata import version
from pathlib import Path

import sample_attention

LIST = Path(__file__).with_name("public_api.txt")


def _text(annotation):
    """An annotation as it is written, the same on every version of Python."""
    annotation = getattr(annotation, "__forward_arg__", annotation)
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:torch|typing|collections\.abc|pathlib)\.", "", text.replace("'", ""))


def _signature(function):
    signature = inspect.signature(function)
    empty = inspect.Parameter.empty
    parameters = [
        p if p.annotation is empty else p.replace(annotation="§" + _text(p.annotation) + "§")
        for p in signature.parameters.values()
    ]
    returns = signature.return_annotation
    shown = str(signature.replace(parameters=parameters, return_annotation=empty))
    shown = re.sub("'§|§'", "", shown)
    return shown if returns is empty else f"{shown} -> {_text(returns)}"


def _members(cls):
    for name, member in sorted(vars(cls).items()):
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            yield f"{name}: {_text(inspect.signature(member.fget).return_annotation)}"
        elif isinstance(member, classmethod | staticmethod):
            kind = type(member).__name__
            yield f"{kind} {name}{_signature(member.__func__)}"
        elif inspect.isfunction(member):
            yield f"{name}{_signature(member)}"
        elif isinstance(member, enum.Enum):
            yield f"{name} = {member.value!r}"


def describe():
    """One line per public name, and one per public member of a class."""
    lines = []
    for name in sorted(sample_attention.__all__):
        value = getattr(sample_attention, name)
        if inspect.isclass(value):
            bases = ", ".join(b.__name__ for b in value.__bases__ if b is not object)
            is_record = dataclasses.is_dataclass(value) or hasattr(value, "_fields")
            made = _signature(value) if is_record else ""
            lines.append(f"class {name}{f' [{bases}]' if bases else ''}{made}")
            lines += [f"    {member}" for member in _members(value)]
        elif callable(value):
            lines.append(f"{name}{_signature(value)}")
        else:
            lines.append(f"{name}: {type(value).__name__}")
    return "\n".join(lines) + "\n"


def test_public_api_is_the_committed_one():
    assert sample_attention.__all__, "sample_attention names nothing in __all__"
    committed = LIST.read_text("utf-8").splitlines()
    change = list(difflib.unified_diff(committed, describe().splitlines(), "committed", "now", n=0))
    assert not change, "\n".join(
        [
            "the public API changed; if that is meant, run",
            "  python tests/meta/test_public_api.py",
            "and add a line to CHANGELOG.md:",
            *change,
        ]
    )


def test_every_public_name_is_documented():
    missing = [
        name
        for name in sample_attention.__all__
        if callable(getattr(sample_attention, name))
        and not inspect.getdoc(getattr(sample_attention, name))
    ]
    assert not missing


def test_the_installed_version_is_that_of_the_source():
    assert version("sample-attention") == sample_attention.__version__ != "0.0.0"


def test_the_changelog_and_the_citation_know_the_version():
    root = LIST.parents[2]
    number = sample_attention.__version__
    assert f"## [{number}]" in (root / "CHANGELOG.md").read_text("utf-8")
    assert f"\nversion: {number}\n" in (root / "CITATION.cff").read_text("utf-8")


if __name__ == "__main__":
    LIST.write_text(describe(), "utf-8")
    sys.stdout.write(f"wrote {LIST.name}; what changed goes into CHANGELOG.md\n")
