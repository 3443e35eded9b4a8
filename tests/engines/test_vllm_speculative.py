"""Speculative decoding in vLLM: what a draft adds to weights, cache and the profiling run."""

from __future__ import annotations

import json
import shlex

import pytest
from test_contract import value_of

from calculator.catalog import load_model
from calculator.engines.eagle import load_head, published_heads
from calculator.errors import BadValue, CalculatorError, NotModelled, Unsupported
from calculator.estimate import estimate
from calculator.units import align_up

DRAFT = {"speculative_model": "llama-3.2-1b", "num_speculative_tokens": 5}
MTP = {"speculative_method": "mtp"}


def run(model, settings=None, **options):
    options = {"engine_version": "0.19.0", "quant": "bf16", "gpu": "H100 SXM", "context": 8192} | options
    return estimate(model, engine="vllm", settings=settings or {}, **options)


def size(found, name, device=0):
    return sum(line.nbytes for line in found.ledger.on(device).lines if line.name == name)


def drafted(found, component, device=0):
    return sum(line.nbytes for line in found.ledger.on(device).lines if line.component == component and line.name.endswith(", draft"))


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_draft_model_is_the_weights_that_it_has_alone(tp):
    options = {"gpus": tp}
    with_it = run("llama-3.1-8b", {"tensor_parallel_size": tp, **DRAFT}, **options)
    plain = run("llama-3.1-8b", {"tensor_parallel_size": tp}, **options)
    alone = run("llama-3.2-1b", {"tensor_parallel_size": tp}, **options)
    for device in range(tp):
        assert drafted(with_it, "weights", device) == alone.ledger.on(device).component_bytes("weights")
        rest = with_it.ledger.on(device).component_bytes("weights") - drafted(with_it, "weights", device)
        assert rest == plain.ledger.on(device).component_bytes("weights")


def test_every_token_of_the_pool_has_the_layers_of_target_and_draft():
    found = run("llama-3.1-8b", DRAFT)
    row = 2 * 2 * (32 * 8 * 128 + 16 * 8 * 64)  # 2 bytes, keys and values of 32 layers of 8 x 128 and of 16 of 8 x 64
    assert found.kv_bytes_per_token == row
    assert found.pool is not None
    assert 0 <= found.pool.nbytes - found.pool.tokens * row < 16 * row
    assert size(found, "KV blocks") + size(found, "KV blocks, draft") == 8192 * row


@pytest.mark.parametrize(("settings", "ahead"), [({}, 0), (DRAFT, 5), ({"speculative_method": "ngram", "num_speculative_tokens": 5}, 0)])
def test_a_sequence_takes_slots_ahead_for_the_draft_up_to_max_model_len(settings, ahead):
    for context, length in ((8188, 16384), (8189, 8189)):
        found = run("llama-3.1-8b", {"max_model_len": length, **settings}, context=context)
        assert size(found, "KV blocks") == align_up(min(context + ahead, length), 16) * 131072


@pytest.mark.parametrize(("version", "head"), [("0.14.0", 1), ("0.16.0", 0), ("0.19.0", 0)])
def test_an_mtp_layer_shares_the_embedding_and_since_0_16_the_head(version, head):
    spec = load_model("deepseek-v3").spec
    settings = {"tensor_parallel_size": 8, **MTP}
    found = run("deepseek-v3", settings, engine_version=version, gpu="H200 SXM", gpus=8, quant="fp8-block")
    assert not size(found, "embedding, draft")
    assert size(found, "output head, draft") == head * 2 * spec.vocab_size // 8 * spec.hidden_size
    # 256 experts of three matrices in 8 bits, over 8 ranks, and the whole projection in 16 are nearly all of it
    experts = 256 * 3 * spec.hidden_size * spec.expert_intermediate_size // 8 + 2 * 2 * spec.hidden_size**2
    assert experts < size(found, "linear layers, draft") < 1.1 * experts
    assert size(found, "KV blocks, draft") * spec.num_hidden_layers == size(found, "KV blocks") * spec.mtp_layers


def test_an_mtp_layer_of_latent_attention_and_experts_comes_with_its_release():
    with pytest.raises(NotModelled, match=r"allowed: 0\.16\.0 or later"):
        run("glm-4.7-flash", MTP, gpu="H200 SXM", engine_version="0.14.1")
    found = run("glm-4.7-flash", MTP, gpu="H200 SXM")
    assert size(found, "KV blocks, draft") * load_model("glm-4.7-flash").spec.num_hidden_layers == size(found, "KV blocks")


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_the_ranks_parts_of_an_mtp_layer_sum_to_the_layer_and_what_each_keeps_whole(tp):
    whole, split = (run("glm-4.5-air", {"tensor_parallel_size": n, **MTP}, gpu="H200 SXM", gpus=n) for n in (1, tp))
    h = load_model("glm-4.5-air").spec.hidden_size
    projection, router = 2 * 2 * h * h, size(whole, "routers, draft")
    assert size(split, "routers, draft") == router
    lines = ("linear layers, draft", "other matrices, draft", "other tensors, draft")
    sums = [sum(size(found, name) for name in lines) for found in (whole, split)]
    assert (sums[1] - projection) * tp == sums[0] - projection


@pytest.mark.parametrize("settings", [DRAFT, {"speculative_method": "ngram", "num_speculative_tokens": 2}])
@pytest.mark.parametrize("version", ["0.16.0", "0.19.0", "0.33.0"])
def test_lines_evaluate_and_the_peak_is_never_below_the_one_without_a_draft(settings, version):
    plain, found = run("llama-3.1-8b", engine_version=version), run("llama-3.1-8b", settings, engine_version=version)
    for line in found.ledger.lines:
        assert abs(value_of(str(line.formula)) - line.nbytes) <= 1, line.name
        assert line.low_bytes <= line.nbytes <= line.high_bytes
    assert found.ledger.component_bytes("activations") > plain.ledger.component_bytes("activations")
    assert found.pool.tokens < plain.pool.tokens


def test_the_sampler_sees_two_rows_a_sequence():
    b, v, t, h = 1024, 128256, 8192, 4096
    found = run("llama-3.1-8b", {"speculative_method": "ngram", "num_speculative_tokens": 3}, engine_version="0.16.0")
    line = next(line for line in found.ledger.lines if line.component == "activations")
    workspace = line.nbytes - (b * v * (3 * 2 + 44) + 2 * t * h + 2 * 2 * b * h)
    assert 0 <= workspace <= 64 * 2**20


def test_buffers_made_before_the_weights_are_not_taken_off_the_pool():
    found = run("llama-3.1-8b", DRAFT)
    inside = sum(line.nbytes for line in found.ledger.lines if line.component != "kv_cache" and line.name not in ("CUDA graphs", "draft buffers"))
    assert size(found, "draft buffers") == 2 * 2 * 8192 * 2048
    assert found.pool.nbytes == found.pool.usable.value - inside


HEAD = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 128256, "draft_vocab_size": 32000, "tie_word_embeddings": False, "torch_dtype": "float16", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5}  # fmt: skip


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("method", ["eagle", "eagle3"])
@pytest.mark.parametrize("version", ["0.14.0", "0.19.0", "0.25.0"])
def test_a_head_is_its_layer_and_what_feeds_it_and_a_layer_more_of_the_cache(method, tp, version, tmp_path):
    """Tensors of yuhuili/EAGLE-LLaMA3-Instruct-8B and EAGLE3-LLaMA3.1-Instruct-8B; embedding, and EAGLE's head, are the target's."""
    (tmp_path / "config.json").write_text(json.dumps(HEAD))
    settings = {"speculative_method": method, "speculative_model": str(tmp_path / "config.json"), "num_speculative_tokens": 3, "tensor_parallel_size": tp}
    found, plain = (run("llama-3.1-8b", s, gpus=tp, engine_version=version) for s in (settings, {"tensor_parallel_size": tp}))
    h, kv, f, wide = 4096, 1024, 14336, 2 if method == "eagle3" else 1
    layer = (wide * h * (h + 2 * kv) + h * h + 3 * h * f) // tp
    assert size(found, "linear layers, draft") == 2 * (layer + (3 if method == "eagle3" else 2) * h * h)  # fc is whole on each rank
    assert size(found, "output head, draft") == (2 * 32000 * h // tp if method == "eagle3" else 0)
    assert size(found, "tokens of the target, draft") == (8 * 32000 if method == "eagle3" else 0)
    assert size(found, "KV blocks, draft") == 8192 * 2 * 2 * 1024 // tp
    assert found.kv_bytes_per_token * 32 == plain.kv_bytes_per_token * 33
    assert found.pool.tokens < plain.pool.tokens
    for line in found.ledger.lines:
        assert abs(value_of(str(line.formula)) - line.nbytes) <= 1, line.name
        assert line.low_bytes <= line.nbytes <= line.high_bytes
        assert line.nbytes or line.note, line.name
    words = shlex.split(found.start_command)
    config = json.loads(words[words.index("--speculative-config") + 1])
    assert config["method"] == method
    assert config["model"] == str(tmp_path)


@pytest.mark.parametrize("tp", [1, 2])
def test_medusas_heads_are_blocks_and_heads_for_each_token_ahead_and_no_cache(tp, tmp_path):
    """vllm v0.19.0 model_executor/models/medusa.py: num_heads is num_speculative_tokens."""
    config = {"model_type": "medusa", "hidden_size": 4096, "vocab_size": 128256, "medusa_num_heads": 5, "medusa_num_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = {"speculative_method": "medusa", "speculative_model": str(tmp_path), "num_speculative_tokens": 3, "tensor_parallel_size": tp}
    found, plain = (run("llama-3.1-8b", s, gpus=tp) for s in (settings, {"tensor_parallel_size": tp}))
    assert size(found, "linear layers, draft") == 2 * 3 * 2 * 4096**2
    assert size(found, "output head, draft") == 2 * 3 * 128256 // tp * 4096
    assert found.kv_bytes_per_token == plain.kv_bytes_per_token
    assert found.ledger.component_bytes("kv_cache") == plain.ledger.component_bytes("kv_cache")
    for line in found.ledger.lines:
        assert abs(value_of(str(line.formula)) - line.nbytes) <= 1, line.name
        assert line.nbytes or line.note


@pytest.mark.parametrize("wrapped", ["by name", "transformer_layer_config", "model"])
def test_a_head_is_the_same_by_name_and_in_the_configs_that_wrap_it(wrapped, tmp_path):
    outer = {"transformer_layer_config": HEAD | {"draft_vocab_size": None}, "draft_vocab_size": 32000, "target_hidden_size": None, "architectures": ["Eagle3Speculator"]}
    (tmp_path / "config.json").write_text(json.dumps(outer if wrapped.startswith("t") else {"model_type": "eagle", "model": HEAD}))
    name = "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B" if wrapped == "by name" else str(tmp_path)
    found = run("llama-3.1-8b", {"speculative_method": "eagle3", "speculative_model": name, "num_speculative_tokens": 3})
    assert size(found, "linear layers, draft") == 2 * (2 * 4096 * 6144 + 4096**2 + 3 * 4096 * 14336 + 3 * 4096**2)
    assert size(found, "output head, draft") == 2 * 32000 * 4096
    assert name in found.start_command


@pytest.mark.parametrize(
    ("target", "changed", "said"),
    [
        ("llama-3.1-8b", {"draft_vocab_size": "x"}, "draft_vocab_size 'x' is not a whole number"),
        ("llama-3.1-8b", {"draft_vocab_size": [1]}, "is not a whole number"),
        ("llama-3.1-8b", {"draft_vocab_size": -1}, "is not a whole number"),
        ("llama-3.1-8b", {"draft_vocab_size": True}, "is not a whole number"),
        ("llama-3.1-8b", {"draft_vocab_size": 200_000}, "draft_vocab_size 200,000 of 128,256 tokens"),
        ("llama-3.1-8b", {"target_hidden_size": 1.5}, "target_hidden_size '1.5' is not a whole number"),
        ("qwen3-8b", {}, "a head for 128,256 tokens beside a target of 151,936"),
    ],
)
def test_a_head_of_another_target_or_with_a_typo_is_refused_in_one_line(target, changed, said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(HEAD | changed))
    with pytest.raises(BadValue) as error:
        run(target, {"speculative_method": "eagle3", "speculative_model": str(tmp_path), "num_speculative_tokens": 3})
    assert said in str(error.value)


def test_medusa_of_ten_million_layers_is_no_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "medusa", "hidden_size": 4096, "vocab_size": 128256, "num_hidden_layers": 10**7}))
    with pytest.raises(BadValue, match="no config of Medusa's heads"):
        run("llama-3.1-8b", {"speculative_method": "medusa", "speculative_model": str(tmp_path), "num_speculative_tokens": 3})


@pytest.mark.parametrize("record", published_heads().values(), ids=lambda r: r["id"])
def test_a_published_head_has_a_source_and_a_layer(record):
    head = load_head(record["id"])
    assert record["source"]
    assert head.spec.num_hidden_layers == 1
    assert head.shares_embedding


def test_the_command_has_the_draft():
    words = shlex.split(run("llama-3.1-8b", DRAFT).start_command)
    config = json.loads(words[words.index("--speculative-config") + 1])
    assert config == {"method": "draft_model", "model": "meta-llama/Llama-3.2-1B", "num_speculative_tokens": 5, "draft_tensor_parallel_size": 1}
    assert "--speculative-config" not in run("llama-3.1-8b").start_command


@pytest.mark.parametrize(("settings", "options", "error", "said"), [
    ({"num_speculative_tokens": 3}, {}, BadValue, "without a method"),
    ({"speculative_method": "ngram"}, {}, Unsupported, "num_speculative_tokens must be provided"),
    ({"speculative_method": "ngram", **DRAFT}, {}, BadValue, "no model of its own"),
    ({"speculative_method": "draft_model", "num_speculative_tokens": 3}, {}, Unsupported, "without speculative model"),
    ({"speculative_method": "suffix", "num_speculative_tokens": 3}, {}, NotModelled, "allowed: ngram, mtp, eagle, eagle3, medusa, draft_model"),
    ({"speculative_method": "medusa", "num_speculative_tokens": 3, "speculative_model": "llama-3.2-1b"}, {}, BadValue, "no config of Medusa"),
    ({"speculative_method": "mlp_speculator", "num_speculative_tokens": 3}, {}, Unsupported, "no proposer"),
    ({"speculative_method": "eagle3", "num_speculative_tokens": 3}, {}, Unsupported, "without speculative model"),
    ({"speculative_method": "eagle3", "num_speculative_tokens": 3, "speculative_model": "llama-3.2-1b"}, {}, BadValue, "a model, no head"),
    ({**DRAFT, "draft_tensor_parallel_size": 1, "tensor_parallel_size": 2}, {"gpus": 2}, Unsupported, "must be the same. Got 1 and 2"),
    ({**DRAFT, "tensor_parallel_size": 1}, {"gpus": 2}, NotModelled, "pipeline stages"),
    (DRAFT, {"engine_version": "0.14.0"}, NotModelled, "0.16.0 or later"),
    (DRAFT, {"engine_version": "0.8.5"}, NotModelled, "0.16.0 or later"),
    ({**DRAFT, "speculative_model": "qwen3-0.6b"}, {}, Unsupported, "same vocabulary size"),
    ({**DRAFT, "speculative_model": "no-such-model"}, {}, CalculatorError, "no-such-model"),
    ({**DRAFT, "enable_lora": 1}, {}, NotModelled, "enable_lora"),
    (MTP, {}, NotModelled, "MTP layers of llama-3.1-8b"),
])  # fmt: skip
def test_what_the_engine_or_the_formulas_refuse_is_said(settings, options, error, said):
    with pytest.raises(error) as caught:
        run("llama-3.1-8b", settings, **options)
    assert said in str(caught.value)


def test_drafts_beside_windows_recurrent_layers_and_quantized_mtp_layers_are_refused():
    ngram = {"speculative_method": "ngram", "num_speculative_tokens": 3}
    for model in ("gemma-3-27b", "qwen3-next-80b-a3b"):
        with pytest.raises(CalculatorError):
            run(model, ngram)
    with pytest.raises(NotModelled, match="MTP layers in awq"):
        run("glm-4.5-air", MTP, quant="awq-int4-g128", gpu="H200 SXM")
