#!/usr/bin/env bash
# Guess:   `model.bfloat16()` and `dtype=torch.bfloat16` make the same model.
# Seen:    the method also rounds the frequencies of the rotary embedding, a buffer that the
#          argument leaves in float32. The angle at a position is the position times the frequency,
#          so the error grows with the length: 13 radians, two whole turns, at position 30,000.
# Matters: a model loaded in float32 and cast sees positions of long prompts wrong, and its sparse
#          attention patterns with them, while short prompts look fine.
# transformers 5.17.0, torch 2.13.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.17.0

"$work/venv/bin/python" - <<'EOF'
import torch, transformers
from transformers import AutoModelForCausalLM, LlamaConfig

config = LlamaConfig(vocab_size=99, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
                     num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=32768)
exact = 10000.0 ** -(torch.arange(0, 64, 2).double() / 64)
models = {
    "model.bfloat16()": AutoModelForCausalLM.from_config(config).bfloat16(),
    "dtype=torch.bfloat16": AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16),
}
print("transformers", transformers.__version__, "torch", torch.__version__)
errors = {}
for way, model in models.items():
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    frequencies = model.model.rotary_emb.inv_freq
    off = (frequencies.double() - exact).abs().max().item()
    errors[way] = off * 30_000
    print(f"{way:21} frequencies in {frequencies.dtype}; radians off at position 100: "
          f"{off * 100:.2g}, at 30,000: {errors[way]:.2g}")
assert errors["model.bfloat16()"] > 3, "the behaviour has changed"
assert errors["dtype=torch.bfloat16"] < 0.01, "the behaviour has changed"
EOF
