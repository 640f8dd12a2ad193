"""Rules by name.

| name      | rule                    | fields that differ from the defaults of the rule         |
|-----------|-------------------------|----------------------------------------------------------|
| `default` | `SampleAttentionConfig` |                                                          |
| `fast`    | `SampleAttentionConfig` | coverage 0.85                                            |
| `pooled`  | `SampleAttentionConfig` | coverage 0.95, window 256, sample_stride 8, layer_ratio  |
|           |                         | 1, tighten_below None, ranked by `PooledQueries`         |
| `paper`   | `PaperConfig`           |                                                          |
| `mlsys`   | `MlsysConfig`           |                                                          |
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from ..errors import InvalidConfig
from .parts import Budget, PooledQueries
from .published import MlsysConfig, PaperConfig
from .rule import Config
from .sample_attention import SampleAttentionConfig
from .schema import content_of
from .written import Written

C = TypeVar("C", bound=Config)

PRESETS: dict[str, Config] = {
    "default": SampleAttentionConfig(),
    "fast": SampleAttentionConfig(coverage=0.85),
    "pooled": SampleAttentionConfig(
        coverage=0.95, window=256, sample_stride=8, ranking=PooledQueries(),
        budget=Budget(layer_ratio=1.0, tighten_below=None),
    ),
    "paper": PaperConfig(),
    "mlsys": MlsysConfig(),
}  # fmt: skip
"""The named rules; the table above says what each is."""

_RULES = {kind.NAME: kind for kind in (SampleAttentionConfig, PaperConfig, MlsysConfig)}


def preset(name: str, **values: object) -> Config:
    """The rule of that name, one of those in the table above, with fields replaced.

    Args:
        name: of the preset.
        values: fields of the rule, and those of its parts, by name, as
            `preset("default", coverage=0.9, sampled_keys=1024)`.

    Raises:
        InvalidConfig: there is no such preset or no such field, or a value is out of range.
    """
    if not isinstance(name, str) or name not in PRESETS:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidConfig(f"unknown preset {name!r}; accepted: {', '.join(sorted(PRESETS))}")
    return with_fields(PRESETS[name], **values) if values else PRESETS[name]


def with_fields(config: C, **values: object) -> C:
    """The rule with fields replaced, its own and those of its parts, by name.

    Raises:
        InvalidConfig: there is no such field, or a value is out of range.
    """
    if not values:
        return config
    changed = {name: values.pop(name) for name in config.FIELDS if name in values}
    for name in config.FIELDS:
        part = changed.get(name, getattr(config, name))
        if isinstance(part, Written):
            inner = {field: values.pop(field) for field in part.FIELDS if field in values}
            if inner:
                changed[name] = replace(part, **inner)  # pyright: ignore[reportArgumentType]
    if values:
        raise InvalidConfig(
            f"unknown fields {', '.join(sorted(values))}; accepted: {', '.join(fields_of(config))}"
        )
    return replace(config, **changed)  # pyright: ignore[reportArgumentType]


def fields_of(config: Config) -> tuple[str, ...]:
    """Names of the fields of a rule, each part followed by its own fields."""
    names: list[str] = []
    for name in config.FIELDS:
        value = getattr(config, name)
        names += [name, *(value.FIELDS if isinstance(value, Written) else ())]
    return tuple(names)


def as_config(config: object) -> Config:
    """The configuration itself, or the preset of that name.

    Raises:
        InvalidConfig: neither a configuration nor the name of a preset.
    """
    if isinstance(config, Config):
        return config
    if not isinstance(config, str):
        kinds = ", ".join([kind.__name__ for kind in _RULES.values()])
        raise InvalidConfig(
            f"config must be one of {kinds}, the name of a preset "
            f"({', '.join(sorted(PRESETS))}) or, outside of torch.compile, a tuned configuration, "
            f"its path, or a selector; got {type(config)!r}"
        )
    return preset(config)


def config_from_json(text: str) -> Config:
    """The rule that `to_json` wrote, of whatever kind, or that version 0.1 wrote.

    Raises:
        InvalidConfig: as `Config.from_json`.
    """
    name, content = content_of(text)
    return _RULES[name].from_content(content)
