#!/usr/bin/env bash
# Guess:   generate() with a cache that already holds the whole prompt gives what it gives without
#          one, as a second turn does; or an error.
# Seen:    5.24.0 gives other tokens without a word, with plain eager attention. A cache that lacks
#          the last token of the prompt is right.
# Matters: one prefill for many answers is why prompts are kept; the keys look right, answers drift.
# transformers 5.24.0, torch 2.13.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0

TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" -W ignore - <<'EOF'
import sys, torch, transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(vocab_size=99, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, intermediate_size=96, initializer_range=0.2)
model = LlamaForCausalLM(config).eval()
model.set_attn_implementation("eager")
prompt = torch.randint(3, 90, (1, 97))

def answer(held):
    cache = DynamicCache(config=config)
    if held:
        with torch.no_grad():
            model(prompt[:, :held], past_key_values=cache)
    made = model.generate(prompt, past_key_values=cache, max_new_tokens=8, do_sample=False)
    return made[0, 97:].tolist()

fresh, all_but_one, whole = answer(0), answer(96), answer(97)
print("transformers", transformers.__version__, "torch", torch.__version__)
print("fresh", fresh, "\nheld 96", all_but_one, "\nheld 97", whole)
sys.exit(fresh != all_but_one or fresh == whole)
EOF
