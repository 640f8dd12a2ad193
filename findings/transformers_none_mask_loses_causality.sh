#!/usr/bin/env bash
# Guess:   a model that cannot use a registered attention function refuses its name, as Bloom
#          refuses "sdpa" and "flash_attention_2"; or it calls the function.
# Seen:    Bloom takes the name, never calls the function, but does use the mask function that is
#          registered with it. Where that answers None ("causal, no padding"), Bloom's own attention
#          has no mask left: a change of the last token changes the logits of those before it.
# Matters: masks answered by None are how attention kernels avoid a tokens x tokens mask.
# transformers 5.17.0, torch 2.13.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.17.0

TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" - <<'EOF'
import torch, transformers
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, BloomConfig

calls = {"attention": 0, "mask": 0}

def attention(module, query, key, value, attention_mask, **kwargs):
    calls["attention"] += 1
    raise NotImplementedError("not reached")

def mask(*args, **kwargs):
    calls["mask"] += 1

AttentionInterface.register("mine", attention)
AttentionMaskInterface.register("mine", mask)
print("transformers", transformers.__version__, "torch", torch.__version__)

def leak(name):
    """The largest change of earlier logits when the last token changes."""
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=99, hidden_size=64, n_layer=2, n_head=4)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=name).eval()
    ids = torch.randint(3, 90, (1, 32))
    other = ids.clone()
    other[0, -1] += 1
    with torch.no_grad():
        return (model(ids).logits - model(other).logits)[:, :-1].abs().max().item()

try:
    refused = f"accepted, earlier logits change by {leak('sdpa')}"
except ValueError as error:
    refused = f"ValueError: {error}"[:90]
eager, mine = leak("eager"), leak("mine")
print(f"sdpa: {refused}\neager: earlier logits change by {eager}\nmine: by {mine}; calls: {calls}")
assert refused.startswith("ValueError") and eager == 0, "the behaviour has changed"
assert mine > 1e-4 and calls["mask"] and not calls["attention"], "the behaviour has changed"
EOF
