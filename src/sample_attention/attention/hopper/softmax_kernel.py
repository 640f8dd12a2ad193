"""The softmax of one tile of scores in registers, by the warp group that attends.

A running maximum need not be that of the row: any number near it keeps the weights within their
range, and sums and weights refer to the same one. So a maximum stays where it is until a score
passes it by ROOM octaves; then lanes exchange theirs and what was summed is rescaled. Both happen
behind a branch of the warp, for which Gluon has no words: they are written in PTX.

A warp group holds `[64, columns]` as its products leave it: four lanes, a quad, share a row, each
with two neighbouring columns of every eight.
"""

from __future__ import annotations

import math
import struct

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

LN2 = gl.constexpr(math.log(2))
"""Turns the log2 of a sum into its natural logarithm."""

ROOM = gl.constexpr(8.0)
"""Octaves by which scores may pass the running maximum of their row before it is moved."""

ALL = "0xffffffff"
"""Lanes of a warp."""


def _literal(x: float) -> str:
    """A number as PTX writes it."""
    return f"0f{struct.pack('>f', x).hex()}"


ONE = _literal(1.0)


def _move_maxima() -> str:
    """PTX of one thread: two rows' maxima and factors (out), tops and maxima (in)."""
    lines = [".reg .pred a, b; .reg .f32 x, y;"]
    for row, flag in enumerate("ab"):
        lines.append(f"add.f32 x, ${6 + row}, {_literal(ROOM.value)};")
        lines.append(f"setp.gt.f32 {flag}, ${4 + row}, x;")
    lines.append(f"or.pred a, a, b; vote.sync.any.pred a, a, {ALL};")
    for row in range(2):
        lines.append(f"mov.f32 ${row}, ${6 + row}; mov.f32 ${2 + row}, {ONE};")
    lines.append("@!a bra DONE;")
    for row in range(2):
        lines.append(f"mov.f32 x, ${4 + row};")
        for lanes in (1, 2):
            lines.append(f"shfl.sync.bfly.b32 y, x, {lanes}, 0x1f, {ALL}; max.f32 x, x, y;")
        lines.append(f"max.f32 ${row}, x, ${6 + row}; sub.f32 x, ${6 + row}, ${row};")
        lines.append(f"ex2.approx.ftz.f32 ${2 + row}, x;")
    return " ".join(["{", *lines, "DONE: }"])


def _rescale(count: int) -> str:
    """PTX of one thread: `count` sums (out and in) times their factors (in), unless all are 1.

    A thread holds two rows, whose pairs of columns take turns: the first factors tell them all.
    """
    first = 2 * count
    lines = [f".reg .pred a, b; setp.neu.f32 a, ${first}, {ONE};"]
    lines.append(f"setp.neu.f32 b, ${first + 2}, {ONE}; or.pred a, a, b;")
    lines.append(f"vote.sync.any.pred a, a, {ALL}; @!a bra DONE;")
    lines += [f"mul.f32 ${i}, ${i}, ${first + i};" for i in range(count)]
    return " ".join(["{", *lines, "DONE: }"])


def _operands(count: int) -> str:
    return ",".join(["=f"] * count + [str(i) for i in range(count)] + ["f"] * count)


MOVE_MAXIMA = gl.constexpr(_move_maxima())
MAXIMA = gl.constexpr("=&f,=&f,=&f,=&f,f,f,f,f")
RESCALE_64 = gl.constexpr(_rescale(32))
SUMS_64 = gl.constexpr(_operands(32))
RESCALE_128 = gl.constexpr(_rescale(64))
SUMS_128 = gl.constexpr(_operands(64))

QUAD = gl.constexpr(
    gl.DistributedLinearLayout(
        [[8, 0]], [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]], [[16, 0], [32, 0]], [], [64, 4]
    )
)
"""`[64, 4]`: one number of each row in each of the four lanes that hold the row of a product."""


@gluon.jit
def by_lane(x):
    """A product by what its lanes hold of a row: `[64, columns / 8, 4, 2]`."""
    return gl.reshape(x, [x.shape[0], x.shape[1] // 8, 4, 2])


@gluon.jit
def over(x, parts):
    """`[64, 4]` for each column of `by_lane`."""
    layout: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(3, parts.type.layout))
    return gl.convert_layout(x, layout, assert_trivial=True)[:, None, :, None]


@gluon.jit
def columns(parts):
    """Column of every number from the first of its lane: constants of a thread."""
    layout: gl.constexpr = parts.type.layout
    of_block: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, layout)))
    of_pair: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, layout)))
    # [columns / 8]
    block = gl.arange(0, parts.shape[1], of_block) * 8
    # [1, columns / 8, 1, 2]
    return block[None, :, None, None] + gl.arange(0, 2, of_pair)[None, None, None, :]


@gluon.jit
def largest(parts, HALVINGS: gl.constexpr):
    """Maximum of what each lane holds of a row, in pairs: as a chain each would wait."""
    # [64, columns / 8, 4]
    x = gl.max(parts, 3)
    for _ in gl.static_range(HALVINGS):
        x = gl.max(gl.reshape(x, [x.shape[0], 2, x.shape[1] // 2, 4]), 1)
    return gl.convert_layout(gl.reshape(x, [x.shape[0], 4]), QUAD, assert_trivial=True)


@gluon.jit
def softmax(s, m, reach, scale, BLOCK_N: gl.constexpr, MASKED: gl.constexpr):
    """Weights `[HALF, BLOCK_N]` fp32, their sums by lane, new maxima, factors for what was before.

    `reach`: the last column that a row sees, counted from the first of the lane.
    """
    # [HALF, BLOCK_N / 8, 4, 2]
    parts = by_lane(s)
    if MASKED:
        parts = gl.where(columns(parts) <= over(reach, parts), parts, float("-inf"))
    HALVINGS: gl.constexpr = 3 if BLOCK_N == 64 else 4
    # [HALF, 4]
    m, shrink = gl.inline_asm_elementwise(
        MOVE_MAXIMA, MAXIMA, [largest(parts, HALVINGS) * scale, m], (gl.float32, gl.float32),
        is_pure=False, pack=2,
    )  # fmt: skip
    # [HALF, BLOCK_N / 8, 4, 2]
    p = gl.exp2(parts * scale - over(m, parts))
    # [HALF, 4]
    sums = gl.convert_layout(gl.sum(gl.sum(p, 3), 1), QUAD, assert_trivial=True)
    # [HALF, BLOCK_N]
    weights = gl.convert_layout(
        gl.reshape(p, [s.shape[0], BLOCK_N]), s.type.layout, assert_trivial=True
    )
    return weights, sums, m, shrink


@gluon.jit
def rescaled(acc, shrink):
    """Sums `[HALF, HEAD_DIM]` times the factors of their rows."""
    # [HALF, HEAD_DIM / 8, 4, 2]
    parts = by_lane(acc)
    factors = gl.zeros_like(parts) + over(shrink, parts)
    if acc.shape[1] == 64:
        x = gl.inline_asm_elementwise(
            RESCALE_64, SUMS_64, [parts, factors], gl.float32, is_pure=False, pack=32
        )
    else:
        x = gl.inline_asm_elementwise(
            RESCALE_128, SUMS_128, [parts, factors], gl.float32, is_pure=False, pack=64
        )
    return gl.convert_layout(gl.reshape(x, acc.shape), acc.type.layout, assert_trivial=True)
