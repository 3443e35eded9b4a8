"""SGLang's newer families and ranks: latent attention, windows with a pool of their own, experts dealt out, DP attention."""

from __future__ import annotations

import pytest

from calculator.engines.sglang.defaults import piecewise_graphs
from calculator.engines.sglang.families import FAMILIES
from calculator.errors import BadValue, CalculatorError, NotModelled, Unsupported
from calculator.estimate import estimate
from calculator.fit import fit
from calculator.units import GIB

TP8 = {"tensor_parallel_size": 8}


def sized(model, **options):
    return estimate(model, engine="sglang", context=options.pop("context", 2048), **options)


def weights(found, device=0):
    """Without what the allocator adds."""
    return sum(line.nbytes for line in found.ledger.lines if line.component == "weights" and line.device == device and line.name != "load slack")


def test_latent_attention_keeps_one_row_of_576_a_layer_on_every_rank():
    found = sized("deepseek-v3", gpu="H200", gpus=8, settings=TP8)
    assert found.kv_bytes_per_token == 8 * 61 * 576 * 2
    assert found.pool.tokens == pytest.approx(found.pool.nbytes / (61 * 576 * 2), abs=1)


def test_latent_attention_holds_kv_b_again_in_16_bits():
    found = sized("deepseek-v2-lite", quant="bf16")
    (line,) = [line for line in found.ledger.lines if line.name == "absorbed key and value matrices"]
    assert line.nbytes == 27 * 512 * 16 * (128 + 128) * 2


def test_deepseek_v3_fits_8_h200_and_not_4_b200():
    assert weights(sized("deepseek-v3", gpu="H200", gpus=8, settings=TP8)) == pytest.approx(79.57 * GIB, rel=1e-3)
    refused = sized("deepseek-v3", gpu="B200", gpus=4, settings={"tensor_parallel_size": 4}, engine_version="0.5.0")
    assert refused.pool.tokens == 0


def test_dp_attention_repeats_attention_and_embedding_and_divides_the_sequences():
    plain, grouped = (sized("deepseek-v3", gpu="H200", gpus=8, sequences=16, settings=TP8 | more) for more in ({}, {"dp_size": 8, "enable_dp_attention": True}))
    attention = sum(g.nbytes for g in plain.job.stored if g.group.role.startswith("attn") and ("_b_proj" in g.group.name or "o_proj" in g.group.name))
    absorbed = 61 * 512 * 128 * 256 * 2
    embedding = 129280 * 7168 * 2
    assert weights(grouped) - weights(plain) == pytest.approx((attention + absorbed + embedding) * 7 / 8, rel=1e-3)
    assert 8 * grouped.ledger.on(0).component_bytes("kv_cache") == plain.ledger.on(0).component_bytes("kv_cache")
    assert grouped.pool.max_concurrency == pytest.approx(8 * grouped.pool.tokens / 2048)


def test_experts_dealt_out_weigh_as_much_as_experts_divided():
    divided, dealt, mixed = (sized("qwen3-30b-a3b", gpus=4, settings={"tensor_parallel_size": 4, "ep_size": ep}) for ep in (1, 4, 2))
    assert weights(divided) == weights(dealt) == weights(mixed)


def test_windowed_layers_have_a_pool_of_their_own_where_the_release_gives_them_one():
    row, card = 8 * 64 * 2 * 2, "H100 SXM5 80GB"
    before, since, half = (sized("gpt-oss-20b", gpu=card, engine_version=v, settings=s) for v, s in (("0.5.6", {}), ("0.5.9", {}), ("0.5.9", {"swa_full_tokens_ratio": 0.5})))
    assert before.kv_bytes_per_token == 24 * row
    assert since.kv_bytes_per_token == pytest.approx(12 * row * 1.8, abs=1)
    assert half.kv_bytes_per_token == 12 * row * 1.5
    assert sized("gemma-2-9b-it", gpu=card).kv_bytes_per_token == 42 * 2 * 8 * 256 * 2  # all layers keep all tokens


def test_prefill_graphs_by_pieces_lower_the_fraction_since_0_5_10():
    assert piecewise_graphs(2048) == 8 + 14 + 8 + 8 + 4
    older, newer = (sized("llama-3.1-8b", gpu="H100 SXM5 80GB", engine_version=v, settings={"chunked_prefill_size": 16384}) for v in ("0.5.9", "0.5.10"))
    fractions = [e.engine.resolved_settings(e.job)["mem_fraction_static"] for e in (older, newer)]
    assert fractions[0] - fractions[1] == pytest.approx(8 * piecewise_graphs(16384) / 81559, abs=1e-3)


def test_lora_slots_are_buffers_of_all_layers_taken_from_the_pool():
    options = {"gpu": "H100 SXM5 80GB", "engine_version": "0.5.6"}
    plain, slots = (sized("llama-3.1-8b", settings=s, **options) for s in ({}, {"enable_lora": 1, "max_lora_rank": 64, "max_loras_per_batch": 4}))
    h, q, kv, f = 4096, 4096, 1024, 14336
    expected = 2 * 32 * 4 * 64 * (3 * h + q + 2 * kv + q + h + 2 * h + 2 * f + f + h)
    assert weights(slots) - weights(plain) == expected
    assert plain.pool.nbytes - slots.pool.nbytes == expected
    assert "--enable-lora --max-lora-rank 64" in slots.start_command


def test_a_stated_fraction_gives_every_release_the_same_pool():
    pools = [sized("llama-3.1-8b", gpu="H100 SXM5 80GB", engine_version=v, settings={"mem_fraction_static": 0.85}).pool.tokens for v in ("0.5.12", "0.5.15", "0.5.23")]
    assert len(set(pools)) == 1


def test_a_windowed_pool_is_sized_by_its_requests_without_a_radix_tree_since_0_5_14():
    """16 requests of gpt-oss 20B: 127 tokens of window, 128 until they are evicted and a page twice; two chunks and a page."""
    settings = {"disable_radix_cache": 1, "max_running_requests": 16, "chunked_prefill_size": 8192}
    options = {"gpu": "H100 SXM5 80GB", "settings": settings}
    before, since = (sized("gpt-oss-20b", engine_version=v, **options) for v in ("0.5.13", "0.5.14"))
    (windows,) = [line for line in since.ledger.lines if line.name == "window slots"]
    row = 2 * 8 * 64 * 2
    assert windows.nbytes == (16 * (127 + 128 + 2) + 2 * 8192 + 1) * 12 * row
    assert since.kv_bytes_per_token == 12 * row
    assert since.pool.tokens == (since.pool.nbytes - windows.nbytes) // (12 * row)
    assert since.pool.tokens > before.pool.tokens
    assert not [line for line in before.ledger.lines if line.name == "window slots"]
    assert sized("gpt-oss-20b", engine_version="0.5.14", context=4096, **options).ledger.total_bytes - since.ledger.total_bytes == 2048 * 12 * row


def test_all_has_embedding_and_head_since_0_5_10_twice():
    """Both tables of the pool are made for both names; a head that is split has its rank's rows."""
    lora = {"enable_lora": 1, "max_lora_rank": 16, "max_loras_per_batch": 2}

    def slots(version, tp=1, **settings):
        found = sized("llama-3.1-8b", gpu="H100 SXM5 80GB", engine_version=version, gpus=tp, settings=lora | settings | {"tensor_parallel_size": tp})
        return next(line.nbytes for line in found.ledger.on(0).lines if line.name == "LoRA slots")

    h, v = 4096, 128256
    assert slots("0.5.9") == slots("0.5.6")
    assert slots("0.5.10") - slots("0.5.9") == 2 * 2 * 16 * 2 * (v + 2 * h + v)
    assert slots("0.5.23", 2) - slots("0.5.9", 2) == 2 * 2 * 16 * 2 * (v + 2 * h + v // 2)
    assert slots("0.5.23", lora_target_modules="attention") == slots("0.5.6", lora_target_modules="attention")


@pytest.mark.parametrize(
    ("model", "options", "error"),
    [("glm-4.5-air", {"engine_version": "0.4.9"}, NotModelled), ("gpt-oss-20b", {"gpu": "RTX 4090"}, NotModelled),
     ("llama-3.1-8b", {"settings": {"dp_size": 2}}, NotModelled), ("llama-3.1-8b", {"gpus": 2, "settings": {"tensor_parallel_size": 2, "dp_size": 2, "enable_dp_attention": 1}}, NotModelled),
     ("deepseek-v3", {"settings": TP8 | {"enable_dp_attention": 1}}, BadValue), ("deepseek-v3", {"settings": TP8 | {"dp_size": 3, "enable_dp_attention": 1}}, BadValue),
     ("llama-3.1-8b", {"gpus": 2, "settings": {"tensor_parallel_size": 2, "ep_size": 2}}, Unsupported),
     ("deepseek-v3", {"settings": {"tensor_parallel_size": 32}}, Unsupported), ("llama-3.1-8b", {"settings": {"enable_lora": 1}}, BadValue),
     ("llama-3.1-8b", {"settings": {"enable_lora": 1, "max_lora_rank": 8}, "engine_version": "0.4.9"}, NotModelled), ("qwen3-30b-a3b", {"settings": {"enable_lora": 1, "max_lora_rank": 8}}, NotModelled)],
)  # fmt: skip
def test_what_is_refused(model, options, error):
    with pytest.raises(error) as raised:
        sized(model, **options)
    assert "\n" not in str(raised.value)


def test_every_family_is_sized_or_refused_with_a_reason():
    from calculator.catalog import load_model, model_ids

    seen = set()
    for name in model_ids():
        model = load_model(name)
        if model.spec.model_type not in FAMILIES or model.spec.model_type in seen or model.spec.vision_parameters:
            continue
        try:
            found = estimate(model, engine="sglang", context=512, gpu="H200")
        except CalculatorError:
            continue
        seen.add(model.spec.model_type)
        assert found.ledger.component_bytes("weights") >= 0.98 * found.tensor_bytes
    assert len(seen) >= 15


@pytest.mark.parametrize(("tp", "pp", "printed"), [(8, 1, (41.90,)), (4, 2, (40.69, 42.86))])
def test_glm_4_7_in_fp8_holds_what_a_log_prints_on_each_stage(tp, pp, printed):
    """GLM-4.7-FP8 on eight cards of 96 GB, sglang of January 2026: half a head is turned, and its table is that wide."""
    found = estimate("glm-4.7", quant="fp8-per-channel", engine="sglang", gpus=tp * pp, context=1024, engine_version="0.5.6",
                     settings={"tensor_parallel_size": tp, "mem_fraction_static": "0.848"})  # fmt: skip
    table = next(line for line in found.ledger.lines if line.name == "rotary cos and sin")
    assert table.nbytes == 4 * 202_752 * 64
    for stage, gib in enumerate(printed):
        held = sum(line.nbytes for line in found.ledger.lines if line.component == "weights" and line.device == stage * tp)
        assert held / 2**30 == pytest.approx(gib, rel=0.01)
    assert 841_782 * found.kv_bytes_per_token / 8 / 2**30 * (1 if pp == 2 else 0) == pytest.approx(36.92 if pp == 2 else 0, abs=0.02)


def test_a_share_with_all_the_digits_that_python_prints_is_taken():
    """0.8717961202189594 stands in a public log's server_args."""
    found = estimate("meta-llama-3-8b-instruct", engine="sglang", context=1024, engine_version="0.4.9", settings={"mem_fraction_static": "0.8717961202189594"})
    assert found.job.deployment.settings["mem_fraction_static"] == pytest.approx(0.8717961202189594)


def test_llama_4_s_table_of_requests_finds_no_room_without_a_context_length():
    """80.04 GiB, as sgl-project/sglang#5755 prints; a context that fits starts. Its tower isn't made unless asked for, since 0.4.10."""
    options = {"gpu": "H100 SXM5 80GB", "gpus": 8, "partial": True}
    told = sized("llama-4-scout-17b-16e-instruct", engine_version="0.4.6", settings=TP8 | {"context_length": 131072}, **options)
    found = sized("llama-4-scout-17b-16e-instruct", engine_version="0.4.6", settings=TP8, **options)
    assert fit(found, found.job.gpu).verdict == "does_not_fit"
    assert "Tried to allocate 80.04 GiB" in found.warnings[0]
    assert fit(told, told.job.gpu).verdict != "does_not_fit"
    towers = [any(line.name.startswith("vision tower") for line in sized("llama-4-scout-17b-16e-instruct", engine_version=v, settings=TP8, **options).ledger.lines) for v in ("0.4.9", "0.4.10")]
    assert towers == [True, False]


def test_weights_beyond_the_fraction_are_refused_in_the_servers_words():
    """GLM 4.7 Flash in 16 bits on an RTX 5090: fakoli/anvil-serving, July 2026."""
    found = sized("glm-4.7-flash", gpu="RTX 5090", engine_version="0.5.16", settings={"context_length": 32768, "mem_fraction_static": 0.85})
    assert found.warnings[0].startswith("sglang refuses: Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static=0.85.")
