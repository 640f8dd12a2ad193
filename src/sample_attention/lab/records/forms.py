"""The forms of rows: of `bench attention`, `kernels` and `ttft`, and of `eval`."""

from __future__ import annotations

from .rows import Form

NUMBER = (int, float)

BENCH = Form(
    name="a record of `bench attention`, `kernels` or `ttft`",
    kinds={
        ("ms_attend",): {"input": (str,), "seq_len": (int,), "ms_dense": (dict,)},
        ("kernel",): {"kernel": (str,), "seq_len": (int,)},
        ("ttft_ms",): {
            "ttft_ms": NUMBER, **dict.fromkeys(("model", "text", "method"), (str,)),
            "seq_len": (int,), "same_first_token": (bool,),
        },
    },
    optional={
        **dict.fromkeys(
            ("ms_attend", "ms_select", "ms_total", "coverage", "density", "retained_mass_mean",
             "retained_mass_p5", "attend_tflops", "launches", "ms", "ms_p20", "ms_p80", "floor_ms",
             "gap", "share_of_fa3", "host_ms", "sparse_layers", "ttft_ms_p20", "ttft_ms_p80",
             "next_token_kl"), NUMBER,
        ),
        **dict.fromkeys(("preset", "provider", "backend", "floor"), (str,)), "config": (dict,),
    },
    identity=(
        "kernel", "provider", "input", "model", "text", "yarn", "method", "seq_len", "batch",
        "heads", "kv_heads", "head_dim", "dtype", "backend", "preset", "coverage", "config",
        "segment", "window", "routed", "target_density", "device", "threads",
    ),
)  # fmt: skip
"""One kind for each of the three commands, told apart by its first field of time."""

EVALUATED = ("model", "task", "method", "setting", "length", "n", "score")

EVAL = Form(
    name="a row of `eval`",
    kinds={
        EVALUATED: {
            **dict.fromkeys(("model", "task", "method", "setting"), (str,)),
            "length": (int,), "n": (int,),
        },
    },
    optional={
        **dict.fromkeys(("score", "density", "kl", "yarn", "answer_logprob"), NUMBER),
        **dict.fromkeys(("scores", "logprobs", "kls", "depths", "densities", "ci95"), (list,)),
    },
    identity=(
        "model", "yarn", "dtype", "length", "task", "n_wanted", "method", "setting", "config",
        "seed", "routed",
    ),
)  # fmt: skip
"""The machine and the code that measured may differ in rows of the same measurement."""
