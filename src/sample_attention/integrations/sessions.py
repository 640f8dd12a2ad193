"""A model inside a block of `sample_attention_prefill`: what is switched, and given back."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import nn

from .._extras import require
from ..errors import UnsupportedAttention
from ..routing.policy import Policy
from ..selection.rule import Rule
from .recording import Recorder
from .support import BATCHED, NAME

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Session:
    """An open block of `sample_attention_prefill`.

    Attributes:
        config: how keys are selected.
        policy: as for `sample_attention`.
        recorder: collects statistics.
        before: the configurations of the model, by identity, with what they named before any block.
        thread: that opened the block.
        task: of asyncio that opened it, or None.
    """

    config: Rule
    policy: Policy
    recorder: Recorder
    before: dict[int, tuple[Any, str | None]]
    thread: int
    task: asyncio.Task[Any] | None

    def hinders(self, other: Session) -> bool:
        """Whether the other block would run beside this one rather than inside it."""
        beside = self.task is not None and self.task is not other.task
        return self.thread != other.thread or beside


_sessions: WeakKeyDictionary[nn.Module, list[Session]] = WeakKeyDictionary()
"""The open blocks of every module, the innermost last."""

_switching = threading.Lock()


def session_of(module: nn.Module) -> Session | None:
    """The innermost open block of a module."""
    sessions = _sessions.get(module)
    return sessions[-1] if sessions else None


def open_session(
    model: PreTrainedModel, config: Rule, policy: Policy, recorder: Recorder
) -> Session:
    """Switch a model, and remember what it named before the first of its blocks that are open.

    Raises:
        UnsupportedAttention: another thread or task has a block open, or the model cannot be
            switched.
    """
    if not hasattr(model, "set_attn_implementation"):
        raise UnsupportedAttention(
            f"got a {type(model).__name__}; accepted: a model of transformers. Where it is inside "
            "a wrapper, such as DataParallel, pass what the wrapper holds"
        )
    with _switching:
        before = {id(c): (c, c._attn_implementation) for c in _configs(model)}
        session = Session(config, policy, recorder, before, threading.get_ident(), _current_task())
        for other in _open_sessions():
            shared = other.before.keys() & before.keys()
            if shared and other.hinders(session):
                raise UnsupportedAttention(
                    f"{type(model).__name__} is inside a sample_attention_prefill block of another "
                    "thread or task, and a block changes the model for all; open one around them"
                )
            before |= {key: other.before[key] for key in shared}
        for module in model.modules():
            _sessions.setdefault(module, []).append(session)
    try:
        _switch(model)
    except BaseException:
        close_session(session)
        raise
    return session


def close_session(session: Session) -> None:
    """Forget a block; the last one of a model to end gives back what the model named before."""
    with _switching:
        for module, sessions in list(_sessions.items()):
            left = [other for other in sessions if other is not session]
            if left:
                _sessions[module] = left
            else:
                del _sessions[module]
        still = {key for other in _open_sessions() for key in other.before}
        for key, (config, implementation) in session.before.items():
            if key not in still:  # parents first: they also set their parts
                config._attn_implementation = implementation


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None


def _open_sessions() -> set[Session]:
    return {session for sessions in _sessions.values() for session in sessions}


def _configs(model: PreTrainedModel) -> list[Any]:
    """The configurations of a model and its parts, each once, those that contain others first."""
    found: dict[int, Any] = {}

    def visit(config: Any) -> None:  # noqa: ANN401
        if config is not None and id(config) not in found:
            found[id(config)] = config
            for key in config.sub_configs:
                visit(getattr(config, key, None))

    for module in model.modules():
        if hasattr(module, "set_attn_implementation"):
            visit(module.config)
    return list(found.values())


def _switch(model: PreTrainedModel) -> None:
    """Choose the implementation for the text decoder; other towers are not causal."""
    config: Any = model.config
    text = config.get_text_config(decoder=True)
    previous = text._attn_implementation or ""
    keys = [key for key in config.sub_configs if getattr(config, key, None) is text]
    if text is config or keys:
        model.set_attn_implementation({keys[0]: NAME} if keys else NAME)
    if text._attn_implementation != NAME:
        raise UnsupportedAttention(
            f"the attention implementation of {type(model).__name__} cannot be chosen; accepted: "
            "models of transformers that use AttentionInterface"
        )
    if "paged|" in previous or previous == BATCHED:
        # Set here: set_attn_implementation would look for a kernel of the name in the hub.
        text._attn_implementation = _batched_name()


def _batched_name() -> str:
    interface: Any = require("transformers", "transformers").AttentionInterface()
    return f"paged|{NAME}" if "paged|sdpa" in interface.valid_keys() else BATCHED
