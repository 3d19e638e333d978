"""torch.nn.Transformer and its stacks: what goes in, options and names; the numbers are test_models.py's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN, checkpoint


def recorded(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        return {key.removeprefix("right/"): arrays[key] for key in arrays.files}


def inputs(exact: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: exact[name] for name in exact if name.endswith(("input_ids", "attention_mask"))}


X = np.ones((2, 4, 16), np.float32)
STACKS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input_ids": [[1, 2]]}, TypeError, "input_ids: expected floats, as there are no embeddings .*; got int64"),
    ({"input_ids": X[0]}, ValueError, r"input_ids: expected shape \(batch, tokens, 16\); got \(4, 16\)"),
    ({"input_ids": X[..., :8]}, ValueError, r"got \(2, 4, 8\)"),
    ({"input_ids": [X[0].tolist(), X[0, :2].tolist()]}, ValueError, "the rows have different lengths; pad them"),
    ({"input_ids": X, "attention_mask": np.ones((2, 5), int)}, ValueError, r"attention_mask: expected shape \(2, 4\)"),
    ({"input_ids": X, "attention_mask": [[1, 1, 1, 1], [0, 0, 0, 0]]}, ValueError, "row 1 has no real token"),
    ({"input_ids": X, "token_type_ids": X}, ValueError, "token_type_ids: a stack without embeddings has no such input"),
    ({"input_ids": X, "decoder_input_ids": X[:1]}, ValueError, "decoder_input_ids: 1 rows for 2 of input_ids"),
    ({"input_ids": X}, ValueError, "decoder_input_ids: a Transformer needs them"),
]


@pytest.mark.parametrize("call", range(len(STACKS)))
def test_wrong_calls(call: int) -> None:
    arguments, error, message = STACKS[call]
    with pytest.raises(error, match=message):
        qkv.load(GOLDEN / "transformer_stacks")(**arguments)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("stacks", {"nhead": 3}, "d_model must be a multiple of nhead, 3"),
        ("stacks", {"activation": "sine"}, "activation must be one of"),
        ("stacks", {"memory_is_causal": True}, "memory_is_causal True is not supported"),
        ("stacks", {"bias": False}, "unexpected: .*in_proj_bias"),
        ("stacks", {"vocab_size": 40}, "missing: src_embed.weight"),
        ("encoder", {"num_layers": None}, "num_layers must be given"),
        ("encoder_lm", {"vocab_size": None}, "vocab_size must be given, as there is a generator"),
        ("tied", {"tie_word_embeddings": False}, "missing: .*tgt_embed.weight"),
    ],
)
def test_wrong_configs(name: str, values: dict[str, Any], message: str) -> None:
    config, weights = checkpoint("transformer_" + name)
    with pytest.raises(ValueError, match=message):
        qkv.from_weights(config | values, weights)


def test_tied_matrices_are_one() -> None:
    parameters = qkv.load(GOLDEN / "transformer_tied").parameters
    assert parameters["source.word.weight"] is parameters["head.decoder.weight"]
    assert parameters["target.word.weight"] is parameters["head.decoder.weight"]


def test_a_stack_of_a_transformer() -> None:
    """The weights of both stacks under the class of one: the other is left, and together they are the whole."""
    config, weights = checkpoint("transformer_stacks")
    exact = recorded("transformer_stacks")
    one = {name: config[name] for name in ("d_model", "nhead", "dim_feedforward")}
    for prefix in ("", "transformer."):
        named = {prefix + name: value for name, value in weights.items()}
        encoder = qkv.from_weights(one | {"architectures": ["TransformerEncoder"], "num_layers": 2}, named)
        decoder = qkv.from_weights(one | {"architectures": ["TransformerDecoder"], "num_layers": 1}, named)
        memory = encoder(exact["input_ids"], exact["attention_mask"]).last_hidden_state
        out = decoder(**(inputs(exact) | {"input_ids": memory}))
        real = exact["decoder_attention_mask"] == 1
        want = exact["last_hidden_state"][real]
        np.testing.assert_allclose(out.last_hidden_state[real], want, rtol=0, atol=1e-5 * np.abs(want).max())
        np.testing.assert_array_equal(out.encoder_last_hidden_state, memory)


def test_the_target_may_see_what_follows() -> None:
    """With tgt_is_causal false the order of the target's vectors means nothing, there being no positions."""
    config, weights = checkpoint("transformer_decoder")
    exact = recorded("transformer_decoder")
    target = exact["decoder_input_ids"][:1]
    model = qkv.from_weights(config | {"tgt_is_causal": False}, weights)
    first = model(exact["input_ids"][:1], decoder_input_ids=target).last_hidden_state
    turned = model(exact["input_ids"][:1], decoder_input_ids=target[:, ::-1]).last_hidden_state
    np.testing.assert_allclose(turned[:, ::-1], first, rtol=0, atol=1e-5 * np.abs(first).max())
    causal = qkv.from_weights(config, weights)
    turned = causal(exact["input_ids"][:1], decoder_input_ids=target[:, ::-1]).last_hidden_state
    assert np.abs(turned[:, ::-1] - first).max() > 0.1


def test_vectors_in_ids_out() -> None:
    """A decoder of token ids that looks at another model's vectors: that of the whole model, without its encoder."""
    config, weights = checkpoint("transformer_tied")
    exact = recorded("transformer_tied")
    decoder = config | {"architectures": ["TransformerDecoder"], "num_layers": 1}
    weights = {name.replace("src_embed", "tgt_embed"): value for name, value in weights.items()}
    case = inputs(exact) | {"input_ids": exact["encoder_last_hidden_state"]}
    logits = qkv.from_weights(decoder, weights)(**case).logits
    real = exact["decoder_attention_mask"] == 1
    want = exact["logits"][real]
    np.testing.assert_allclose(logits[real], want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_longer_than_the_table_of_positions() -> None:
    config, weights = checkpoint("transformer_encoder_lm")
    with pytest.raises(ValueError, match="row 0 has 4 tokens; the model has 3 positions"):
        qkv.from_weights(config | {"max_len": 3}, weights)([[1, 2, 3, 4]])


def test_keys_that_mean_nothing_are_refused() -> None:
    """Nobody but the user writes the config: a typo would be a wrong number."""
    config, weights = checkpoint("transformer_encoder")
    qkv.from_weights(config, weights)
    for key, near in (("norm_frist", "norm_first"), ("activaton", "activation"), ("num_encoder_layer", "num_encoder")):
        with pytest.raises(ValueError, match=rf"{key} must be absent.*{near}"):
            qkv.from_weights(config | {key: True}, weights)


def test_a_linear_layer_called_decoder_is_not_lost() -> None:
    """What PyTorch's own language-model tutorial calls its output."""
    config, weights = checkpoint("transformer_encoder")
    with pytest.raises(ValueError, match=r"unexpected: decoder\.weight"):
        qkv.from_weights(config, weights | {"decoder.weight": np.ones((5, 16), np.float32)})
