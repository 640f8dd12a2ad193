"""Options that several commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

# typer evaluates these annotations at run time, on Python 3.10 too, hence Optional.

AUTO = "auto"
"""The device that a command chooses: a GPU where there is one."""

Model = Annotated[
    str, typer.Argument(help="hub id, folder, GGUF file, or a pinned key such as smollm2-135m")
]
PromptFile = Annotated[Path, typer.Argument(help="text file (UTF-8) that holds the prompt")]
Preset = Annotated[str, typer.Option(help="default, fast, pooled, paper (v1) or mlsys (v3)")]
PresetOrTuned = Annotated[
    str,
    typer.Option(
        "--preset",
        help="default, fast, pooled, paper (v1), mlsys (v3), tuned:NAME or a file of tune",
    ),
]
Coverage = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="share of the attention to keep, in (0, 1]; overrides the preset"),
]
Assignments = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--config", metavar="KEY=VALUE", help="any other field; may be repeated"),
]
Dtype = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="float32, bfloat16 or float16; by default what suits model and device"),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda; auto is a GPU where there is one")]
Threads = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="CPU threads; by default as torch chooses"),
]
Chat = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option(
        "--chat/--no-chat", help="wrap the prompt in the model's chat template, if it has one"
    ),
]
Records = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--output", help="file of JSON lines that records are appended to"),
]
ReportFolder = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--output", help="folder for report.json and pictures; none are written without it"
    ),
]
InspectFolder = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--output", help="folder for inspect.json and pictures; none are written without it"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON on stdout and nothing else")]
NewTokens = Annotated[int, typer.Option(min=1, help="longest answer, in tokens")]
HeldOut = Annotated[
    int, typer.Option(min=0, help="rows per segment on which the kept attention is measured")
]
Lengths = Annotated[str, typer.Option(help="tokens of the prompts, such as 8192,32768")]
Yarn = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="stretch the model's context by this factor, as in 4"),
]
RecordFiles = Annotated[list[Path], typer.Argument(help="files of JSON lines")]
Markdown = Annotated[bool, typer.Option("--markdown", help="print tables in Markdown")]
Routed = Annotated[
    bool, typer.Option("--routed", help="dense where the policy says so; else always sparse")
]
Repeats = Annotated[int, typer.Option(min=1, help="timed runs of each kind; the median counts")]
