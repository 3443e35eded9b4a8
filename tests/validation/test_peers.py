"""Each peer's formula against an example of its own, and peers.json against the script."""

import re
import sys
from pathlib import Path

import pytest

from calculator.checks import peers as shown
from calculator.checks.compare import compare_all

VALIDATION = Path(__file__).parents[2] / "validation"
sys.path.insert(0, str(VALIDATION))

from peers import __main__ as script  # noqa: E402
from peers import formulas  # noqa: E402
from peers.claims import PEERS, UNAVAILABLE  # noqa: E402
from peers.runs import Dims, Run  # noqa: E402

GIB, MIB = 1 << 30, 1 << 20
LLAMA_1B = Dims(2048, 16, 32, 8, 64, 8192, 128256, True, False, 131072)
LLAMA_8B = Dims(4096, 32, 32, 8, 128, 14336, 128256, False, False, 131072)
LLAMA_7B = Dims(4096, 32, 32, 32, 128, 11008, 32000, False, False, 2048)
STARLING = Dims(4096, 32, 32, 8, 128, 14336, 32002, False, False, 8192)
QWEN_7B = Dims(3584, 28, 28, 4, 128, 18944, 152064, False, True, 131072)
MINIMAX_M2 = Dims(3072, 62, 48, 8, 128, 1536, 200064, False, False, 196608)


def torch(dims, quant="bf16", context=0, phase="prefill", **more):
    return Run(dims, "transformers", quant, context, 1, phase, quant, quant, more)


def gguf(dims, quant="F16", n_ctx=0, kind="f16", flash=False, n_ubatch=512):
    settings = {"backend": "cuda", "n_ctx": n_ctx, "n_seq_max": 1, "n_outputs_max": 0, "n_ubatch": n_ubatch, "flash_attn": flash}
    return Run(dims, "llama.cpp", quant, n_ctx, 1, "", kind, kind, settings)


def test_parameters_are_those_of_the_released_checkpoint():  # 1,235,814,400, meta-llama/Llama-3.2-1B
    assert LLAMA_1B.params == 1_235_814_400


def test_rule_is_two_bytes_a_parameter_and_a_fifth():  # transformer-math.md, "Total Inference Memory"
    assert formulas.rule_weights(torch(LLAMA_1B)) == 2 * LLAMA_1B.params
    assert formulas.rule_total(torch(LLAMA_1B, "bnb-int8")) == 1.2 * LLAMA_1B.params


@pytest.mark.parametrize(("quant", "mib"), [("fp32", 413.18), ("fp16", 206.59), ("bnb-int8", 103.29), ("bnb-nf4", 51.65)])
def test_accelerate_s_bert_base_cased(quant, mib):  # model_size_estimator.md L70-L77, L120-L134; L74 has a misprint
    # 108,310,272 parameters and two buffers of 512 ids
    assert round(formulas.accelerate_bytes(108_310_272, 2 * 512 * 8, quant) / MIB, 2) == pytest.approx(mib, abs=0.006)


def test_nyxkrage_s_starling():  # the port's README: context_size 1.5293059349060059 GiB at 8192, its input buffer included
    run = gguf(STARLING, n_ctx=8192)
    inputs = 512 + 4096 * 512 + 512 + 8192 * 512 + 8192 + 512
    assert (formulas.nyx_cache(run) + formulas.nyx_compute(run) + inputs) / GIB == pytest.approx(1.5293059349060059, rel=1e-12)
    assert formulas.nyx_weights(gguf(STARLING, "Q4_K_S")) / GIB == pytest.approx(3.8611711978912355, rel=1e-4)


def test_cookbook_s_own_program():
    # it prints 14.99 GiB model, 1.00 GiB cache, 0.53 GiB activations for --infer --num-layers=32 --sequence-length=4096
    # --hidden-size=4096 --ffn-expansion-factor=3.5 --num-mlp-linears 3 --kv-size-ratio 0.25 --vocab-size 128256 --output-tokens 0
    run = torch(LLAMA_8B, context=4096)
    terms = (formulas.cookbook_weights(run), formulas.cookbook_cache(run), formulas.cookbook_activations(run))
    assert [round(term / GIB, 2) for term in terms] == [14.99, 1.0, 0.53]


def test_hf_mem_s_minimax_m2():  # its README: kv_cache=24964497408 at the model's length, in 8 bits
    assert formulas.hf_mem_cache(torch(MINIMAX_M2, "fp8", 196608)) == 24_964_497_408


def test_llm_analysis_s_llama_7b():  # examples/llama/outputs_infer/…7b…-summary-readable.txt: 285.21 MB cache at 512 + 32
    assert round(formulas.analysis_cache(torch(LLAMA_7B, context=544)) / 1e6, 2) == 285.21
    smaller = formulas.analysis_weights(torch(LLAMA_7B._replace(vocab=0)))
    assert round((formulas.analysis_weights(torch(LLAMA_7B)) - smaller) / 1e6, 2) == 262.14  # embedding_memory_per_gpu


def test_gguf_parser_s_deepseek_r1_distill():
    # its README L104-L137: Qwen 7B, Q4_K_M of 4.36 GiB, 131,072 cells: 7.30 GiB of cache and output buffer, 18.89 GiB in all
    run = gguf(QWEN_7B, n_ctx=131072)
    cache, compute, output = formulas.parser_cache(run), formulas.parser_compute(run), 4 * 512 * (3584 + 152064)
    assert round((cache + output) / GIB, 2) == 7.30
    weights = 4.36 * GIB - 3584 * 152064 * 4.5 / 8  # less the embedding, which stays on the host in Q4_K
    assert (250 * MIB + cache + output + compute + weights) / GIB == pytest.approx(18.89, abs=0.01)


def test_llmfit_s_own_tests():  # models.rs L2142-L2145 and L3178-L3183
    assert formulas.llmfit_cache(gguf(LLAMA_8B, n_ctx=8192)) == 1_073_741_824
    assert formulas.llmfit_weights(gguf(LLAMA_7B, "Q4_K_M")) == 0.58 * LLAMA_7B.params


def test_oobabooga_s_expression():
    # models_settings.py L372-L383 evaluated as it stands there: a file of 2,357.26 MiB, 16 layers, 8 KV heads, 2048 wide, 8192, fp16
    assert formulas.ooba_total(gguf(LLAMA_1B, n_ctx=8192, flash=True)) / MIB == pytest.approx(4271.417, abs=0.001)


def test_silent_where_it_makes_no_claim():
    claims = {peer.name: peer.claims for peer in PEERS}
    assert claims["NyxKrage's calculator"]["compute buffer"].formula(gguf(LLAMA_1B, n_ctx=8192, n_ubatch=128)) is None
    assert claims["llm-analysis"]["activations"].formula(torch(LLAMA_1B, context=1024, attn_implementation="eager")) is None
    assert claims["hf-mem"]["total"].formula(torch(LLAMA_1B, "bnb-nf4", 1024)) is None


def test_every_source_names_a_commit():
    assert all(re.search(r"@[0-9a-f]{40}, \S+", peer.source) for peer in PEERS)
    assert all(claim.not_counted for peer in PEERS for claim in peer.claims.values())
    assert all(UNAVAILABLE.values())


def test_peers_json_is_what_the_script_computes():
    assert (VALIDATION / "peers.json").read_text("utf-8") == script.text()


def test_peers_import_nothing_of_ours():
    for path in (VALIDATION / "peers").glob("*.py"):
        assert not re.search(r"^(from|import) calculator", path.read_text("utf-8"), re.MULTILINE)


def test_ours_comes_first_on_each_set_of_records_and_only_once():
    rows = shown.table_rows(compare_all()[0])
    sets = dict.fromkeys(row[:3] for row in rows)
    for one in sets:
        names = [row[3] for row in rows if row[:3] == one]
        assert names[0] == shown.OURS
        assert names.count(shown.OURS) == 1
        assert len(names) > 1


def test_without_the_file_there_is_no_table(monkeypatch, tmp_path):  # a wheel has no validation folder
    monkeypatch.setattr(shown, "PEERS", tmp_path / "peers.json")
    assert shown.table_rows([]) == []
