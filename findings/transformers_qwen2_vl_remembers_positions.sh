#!/usr/bin/env bash
# Guess:   two calls of a model in eval mode do not depend on each other, but for the cache passed.
# Seen:    Qwen2-VL keeps the shift of positions of the last prompt with an image (`rope_deltas`).
#          A later text prompt given in two chunks has its second chunk placed by that shift: other
#          logits than before, without a word. In one piece it is right.
# Matters: long prompts are prefilled in chunks; a chunked result that depends on what the process
#          served before is blamed on the attention or the cache.
# transformers 5.17.0, torch 2.13.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.17.0

TRANSFORMERS_VERBOSITY=critical "$work/venv/bin/python" - <<'EOF'
import torch, transformers
from transformers import DynamicCache, Qwen2VLConfig, Qwen2VLForConditionalGeneration

IMAGE = 95
text = dict(vocab_size=99, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2, pad_token_id=0,
            rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3]})
torch.manual_seed(0)
model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(
    text_config=text, vision_config=dict(depth=1, embed_dim=32, hidden_size=64, num_heads=2),
    image_token_id=IMAGE, video_token_id=96, vision_start_token_id=97, vision_end_token_id=98,
)).eval()
ids = torch.randint(3, 90, (1, 12))
print("transformers", transformers.__version__, "torch", torch.__version__)

@torch.no_grad()
def in_chunks():
    cache = DynamicCache(config=model.config.text_config)
    return torch.cat([model(x, past_key_values=cache).logits for x in ids.split(6, dim=1)], dim=1)

@torch.no_grad()
def change(logits):
    return (logits - whole).abs().max().item()

with torch.no_grad():
    whole = model(ids).logits
    before = change(in_chunks())
    prompt = torch.tensor([[5, 97] + [IMAGE] * 16 + [98, 7]])
    model(prompt, pixel_values=torch.randn(64, 1176), image_grid_thw=torch.tensor([[1, 8, 8]]),
          mm_token_type_ids=(prompt == IMAGE).int())
    again, after = change(model(ids).logits), change(in_chunks())
print(f"chunks differ from the whole by {before:.1g}; after a prompt with an image by {after:.2g}"
      f" (the whole by {again:.1g}; rope_deltas {model.model.rope_deltas.tolist()})")
assert before < 1e-3 and again < 1e-3 and after > 0.1, "the behaviour has changed"
EOF
