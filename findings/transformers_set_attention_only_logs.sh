#!/usr/bin/env bash
# Guess:   `set_attn_implementation` either switches the attention or raises, as it does for an
#          unknown name on Llama.
# Seen:    on GPT-J, GPT-Neo and Falcon it logs a line, returns and changes nothing, whatever the
#          name, even one that does not exist; the models go on with their own eager or sdpa.
# Matters: who compares attention implementations measures the old one twice and finds the new one
#          exact. `model.config._attn_implementation` has to be read back.
# transformers 5.17.0, torch 2.13.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.17.0

TRANSFORMERS_VERBOSITY=critical "$work/venv/bin/python" - <<'EOF'
import torch, transformers
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers import FalconConfig, GPTJConfig, GPTNeoConfig, LlamaConfig

def attention(*args, **kwargs):
    raise NotImplementedError("called")

AttentionInterface.register("mine", attention)
sizes = dict(vocab_size=99, bos_token_id=1, eos_token_id=2)
configs = [
    LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, **sizes),
    GPTJConfig(n_embd=64, n_layer=1, n_head=4, rotary_dim=8, **sizes),
    GPTNeoConfig(hidden_size=64, num_layers=1, num_heads=4, attention_types=[[["global"], 1]], **sizes),
    FalconConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, **sizes),
]
print("transformers", transformers.__version__, "torch", torch.__version__)
for config in configs:
    for name in ("mine", "does-not-exist"):
        model = AutoModelForCausalLM.from_config(config).eval()
        try:
            model.set_attn_implementation(name)
            model(torch.arange(3, 9)[None])
            seen = f"runs with {model.config._attn_implementation}"
        except (ValueError, NotImplementedError) as error:
            seen = type(error).__name__
        print(f"{type(model).__name__:18} {name:15} {seen}")
        kept = "runs with sdpa" if "Falcon" in type(model).__name__ else "runs with eager"
        right = {"mine": "NotImplementedError", "does-not-exist": "ValueError"}[name]
        assert seen == (right if "Llama" in type(model).__name__ else kept), "the behaviour has changed"
EOF
