#!/usr/bin/env bash
# Guess:   an attention function registered as "paged|NAME" serves `generate_batch` in every 5.x,
#          or at least after dropping the prefix, as the FutureWarning of newer releases advises.
# Seen:    5.18 calls it. Later releases take only "paged|eager", "sdpa" and names which contain
#          "flash"; with and without the prefix a registered name is a ValueError.
# Matters: continuous batching is where long prompts are served, and a registered function is the
#          documented way to bring an attention of one's own.
# transformers 5.18.0 and 5.24.0 (the change came with 5.19), torch 2.13.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 psutil==7.1.0

cat > "$work/show.py" <<'EOF'
import sys
import torch, transformers
from transformers import AttentionInterface, ContinuousBatchingConfig, GenerationConfig
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.eager_paged import eager_paged_attention_forward

calls = []

def attention(*args, **kwargs):
    calls.append(1)
    return eager_paged_attention_forward(*args, **kwargs)

AttentionInterface.register("mine", attention)
AttentionInterface.register("paged|mine", attention)
generation = GenerationConfig(max_new_tokens=2, do_sample=False, eos_token_id=-1, pad_token_id=0)
batching = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64, max_requests_per_batch=4,
                                    use_async_batching=False, use_cuda_graph=False)
for name, expected in zip(("paged|eager", "paged|mine", "mine"), sys.argv[1:], strict=True):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=99, hidden_size=64, intermediate_size=96,
                             num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4)).eval()
    calls.clear()
    try:
        model.set_attn_implementation(name)
        model.generate_batch([[5, 6, 7, 8]], generation_config=generation,
                             continuous_batching_config=batching)
        seen = f"runs, {'calls' if calls else 'without'} it"
    except ValueError as error:
        seen = f"ValueError: {error}"
    print("transformers", transformers.__version__, name, "-", seen)
    assert seen.startswith(expected), "the behaviour has changed"
EOF

"$work/venv/bin/pip" install -q transformers==5.18.0
"$work/venv/bin/python" -W ignore "$work/show.py" "runs, without" "runs, calls" "runs, calls"
"$work/venv/bin/pip" install -q transformers==5.24.0
"$work/venv/bin/python" -W ignore "$work/show.py" "runs, without" "ValueError" "ValueError"
