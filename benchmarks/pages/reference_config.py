"""Every field of every rule: type, default, range and meaning, from the dataclasses themselves.

A range is asked for: a field is given values that no rule takes, and the error says which it does.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing

from sample_attention.config import PRESETS, MlsysConfig, PaperConfig, SampleAttentionConfig
from sample_attention.config.parts import RANKINGS, Budget, Check
from sample_attention.errors import InvalidConfig

RULES = (SampleAttentionConfig, *RANKINGS, Budget, Check, PaperConfig, MlsysConfig)
STRANGE = (-1, 1e-9, 129, (1.0,))
"""Below every range; a share too small for some; a count that fits no segment; a head's share."""

ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.M)
MUST = re.compile(r"(?:\w+(?:=\S+)? )?must (?:be |divide )?(.*?)(?:[,;] got .*|; .*|, since .*)?$")


def fields() -> str:
    """A table for each rule and each part, and one of the presets."""
    return "\n\n".join((*map(_section, RULES), _presets()))


def _section(rule: type) -> str:
    doc = inspect.getdoc(rule) or ""
    lines = [f"### {rule.__name__}", "", doc.partition("\n")[0]]
    if dataclasses.fields(rule):
        lines += ["", "| field | type | default | accepted | meaning |", "|---|---|---|---|---|"]
    meanings = {name: " ".join(text.split()) for name, text in ATTRIBUTE.findall(doc)}
    types = typing.get_type_hints(rule)
    for field in dataclasses.fields(rule):
        kind = _shown_type(types[field.name])
        accepted = _accepted(rule, field.name)
        cells = f"`{field.name}`", f"`{kind}`", f"`{_default(field)}`", accepted
        lines.append(f"| {' | '.join(cells)} | {meanings[field.name]} |".replace("||", "|"))
    return "\n".join(lines)


def _shown_type(hint: object) -> str:
    text = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    text = re.sub(r"[\w.]+\.(?=\w)", "", text)
    return text.replace(" | ", " or ").replace("NoneType", "None")


def _default(field: dataclasses.Field[object]) -> str:
    """A default, of a part its name alone: its own defaults stand in its table."""
    made = field.default_factory is not dataclasses.MISSING
    default = field.default_factory() if made else field.default
    return f"{type(default).__name__}()" if dataclasses.is_dataclass(default) else str(default)


def _accepted(rule: type, name: str) -> str:
    """The ranges that the errors of a field name, the widest first."""
    said: list[str] = []
    for value in STRANGE:
        try:
            rule(**{name: value})
        except InvalidConfig as error:
            found = MUST.search(str(error))
            if found and name in str(error):
                said.append(_short(found[1]))
    return "; ".join(dict.fromkeys(said))


def _short(text: str) -> str:
    text = re.sub(r"^an integer from (\d+) to 1073741824$", r"\1 and more", text)
    text = re.sub(r"^an integer from (\d+) to (\d+)$", r"\1 to \2", text)
    text = re.sub(r"^segment=\d+$", "a divisor of `segment`", text)
    return text.removeprefix("a number ").removeprefix("from ").removeprefix("of ")


def _presets() -> str:
    """How the presets of our own rule differ from its defaults."""
    ours = {n: c for n, c in PRESETS.items() if isinstance(c, SampleAttentionConfig)}
    names = [f.name for f in dataclasses.fields(SampleAttentionConfig)]
    rows = [
        f"| `{name}` | {' | '.join(f'`{getattr(c, name)!r}`' for c in ours.values())} |"
        for name in names
        if len({repr(getattr(c, name)) for c in ours.values()}) > 1
    ]
    others = [f"`{n}` is `{type(c).__name__}()`" for n, c in PRESETS.items() if n not in ours]
    head = f"| field | {' | '.join(f'`{name}`' for name in ours)} |"
    return "\n".join((
        "### Presets", "", f"Where they differ. {', '.join(others)}.", "",
        head, "|---" * (len(ours) + 1) + "|", *rows,
    ))  # fmt: skip
