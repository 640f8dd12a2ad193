#!/usr/bin/env bash
# Guess:   after `DynamicCache.reset()` the cache is empty and serves the next prompt, as a
#          `StaticCache` does after its `reset()`.
# Seen:    keys and values become zeros and stay: the length is what it was. The next prompt is
#          attended behind that many zero keys, each of which takes weight, and gets other logits.
# Matters: caches of long prompts are large, so one reuses them; only the logits tell.
# transformers 5.17.0, torch 2.13.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.17.0

"$work/venv/bin/python" - <<'EOF'
import torch, transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

torch.manual_seed(0)
config = LlamaConfig(vocab_size=99, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1)
model = LlamaForCausalLM(config).eval()
ids = torch.randint(3, 99, (1, 20))
print("transformers", transformers.__version__, "torch", torch.__version__)

@torch.no_grad()
def twice(cache):
    """How far the logits of one prompt move when the cache is reset and the prompt is run again."""
    first = model(ids, past_key_values=cache).logits
    cache.reset()
    length = int(cache.get_seq_length())
    change = (model(ids, past_key_values=cache).logits - first).abs().max().item()
    print(f"{type(cache).__name__}: length after reset {length}, logits change by {change:.2g}")
    return length, change

length, change = twice(StaticCache(config=config, max_cache_len=64))
assert length == 0 and change == 0, "the behaviour has changed"
length, change = twice(DynamicCache(config=config))
assert length == 20 and change > 0.1, "the behaviour has changed"
EOF
