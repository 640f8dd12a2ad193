"""A stretched model is the one that transformers builds from a YaRN configuration."""

import pytest
import torch
import transformers

from sample_attention.errors import InvalidInput
from sample_attention.lab.models import extend_context, load_model


def test_positions_are_those_of_the_yarn_configuration(tiny):
    loaded = load_model(tiny.path)
    ids = torch.arange(40)[None] % 20
    with torch.inference_mode():
        plain = loaded.model(ids).logits
        stretched = extend_context(loaded, 4)
        assert stretched.context_length == 4 * 512
        values = stretched.model.config.to_dict()
        expected = transformers.AutoModelForCausalLM.from_config(
            type(loaded.model.config)(**values)
        )
        expected.load_state_dict(stretched.model.state_dict())
        logits = stretched.model(ids).logits
        torch.testing.assert_close(logits, expected.eval()(ids).logits)
        assert not torch.allclose(logits, plain)
    assert stretched.model.config.rope_parameters["rope_type"] == "yarn"


def test_what_cannot_be_stretched_is_refused(tiny):
    loaded = load_model(tiny.path)
    with pytest.raises(InvalidInput, match="must be above 1"):
        extend_context(loaded, 1)
    with pytest.raises(InvalidInput, match="are yarn; YaRN is accepted for plain"):
        extend_context(extend_context(loaded, 2), 2)
