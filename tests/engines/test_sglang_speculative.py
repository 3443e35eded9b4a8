"""Speculative decoding in SGLang: what a draft adds to weights and cache, and what it changes of the server's own choices."""

from __future__ import annotations

import json
import shlex
from bisect import bisect_left
from itertools import pairwise

import pytest
from test_contract import value_of

from calculator.architectures import build_inventory
from calculator.engines.ranks import shares_of
from calculator.engines.sglang.pool import cell_bytes
from calculator.engines.sglang.speculative import draft_cell, passing_bytes
from calculator.engines.sglang.states import slots_of, states_taken
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.fit import fit

MTP = {"speculative_algorithm": "nextn"}
STANDALONE = {"speculative_algorithm": "standalone", "speculative_draft_model_path": "llama-3.2-1b"}
HEAD = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 128256, "draft_vocab_size": 32000, "tie_word_embeddings": False, "torch_dtype": "float16", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5}  # fmt: skip
BEFORE, SINCE = "0.5.13", "0.5.20"  # the draft beside the static fraction, and within it


@pytest.fixture
def head(tmp_path):
    """A head of Llama 3.1 8B as yuhuili/EAGLE3-LLaMA3.1-Instruct-8B describes it."""
    (tmp_path / "config.json").write_text(json.dumps(HEAD))
    return {"speculative_algorithm": "eagle3", "speculative_draft_model_path": str(tmp_path / "config.json"), "allow_overwrite_longer_context_len": True}


def run(model="llama-3.1-8b", settings=None, **options):
    options = {"engine_version": SINCE, "quant": "bf16", "gpu": "H100 SXM", "context": 8192} | options
    return estimate(model, engine="sglang", settings=settings or {}, **options)


def deepseek(settings=MTP, **options):
    return run("deepseek-v3", {"tensor_parallel_size": 8, **settings}, gpus=8, gpu="H200", **({"quant": "fp8-block"} | options))


def size(found, *names, device=0):
    return sum(line.nbytes for line in found.ledger.on(device).lines if line.name.split(", draft")[0] in names and ", draft" in line.name)


def test_the_mtp_layer_of_deepseek_v3_is_a_layer_and_its_projection_without_embedding_and_head():
    """11.5 B parameters of its own beside 0.9 B of each of the shared two, says deepseek-ai/DeepSeek-V3 README_WEIGHTS.md."""
    one = run("deepseek-v3", MTP, quant="bf16", gpu=None)
    own = size(one, "linear layers", "routers", "norms and biases", "other tensors") // 2
    assert own == build_inventory(one.job.model).mtp_parameters - 2 * 129280 * 7168
    assert round(own / 1e9) == 12
    ranks = deepseek()
    assert [size(ranks, "embedding", "output head", device=i) for i in range(8)] == [0] * 8
    assert len({size(ranks, "linear layers", device=i) for i in range(8)}) == 1


@pytest.mark.parametrize(("version", "mib"), [("0.4.7", 0), ("0.4.9", 2048), ("0.5.6", 2048), ("0.5.9", 2048), ("0.5.10", 4096 - 8 * 58), ("0.5.13", 4096), ("0.5.14", 0), ("0.5.23", 0)])
def test_the_default_fraction_leaves_what_the_release_keeps_for_a_draft(version, mib, head):
    """sglang v0.4.9 srt/server_args.py L313, v0.5.6 L853, v0.5.10 L1322; v0.5.14 has no such term. 0.5.10 captures no prefill beside a draft: 58 graphs of 8 MiB."""
    kept = [e.engine.resolved_settings(e.job)["mem_fraction_static"] for e in (run(engine_version=version, settings=s) for s in ({}, head))]
    assert round((kept[0] - kept[1]) * 81559) == pytest.approx(mib, abs=82)  # the fraction has three digits


def test_ngram_changes_the_requests_alone():
    plain, drafted = run(), run(settings={"speculative_algorithm": "ngram"})
    table = "request table"
    assert [(x.name, x.nbytes) for x in plain.ledger.lines if x.name != table] == [(x.name, x.nbytes) for x in drafted.ledger.lines if x.name != table]
    assert drafted.engine.resolved_settings(drafted.job)["max_running_requests"] == 48
    assert plain.pool.tokens == drafted.pool.tokens


@pytest.mark.parametrize("version", ["0.4.9", "0.5.6", "0.5.7", BEFORE, "0.5.14", SINCE])
def test_a_draft_counts_in_the_fraction_since_0_5_14_and_has_slots_to_spare_until_0_5_6(version, head):
    """Before, the target's pool is what it is without the draft, at the same fraction; since, draft, cell and what it gives up later are less."""
    same = {"mem_fraction_static": 0.8}
    plain, drafted = run(engine_version=version, settings=same), run(engine_version=version, settings=same | head)
    release = tuple(map(int, version.split(".")))
    spare = 48 * (5 * 4 + 8) + 100 if release < (0, 5, 7) else 0
    if release < (0, 5, 14):
        assert drafted.pool.tokens == plain.pool.tokens + spare
        return
    weights = sum(line.nbytes for line in drafted.ledger.lines if line.component == "weights" and line.name.endswith(", draft"))
    passing = 2 * 4096 * 128256  # the embedding; the head over 32,000 tokens stays
    assert drafted.pool.tokens == (plain.pool.nbytes - weights - passing) // (131072 + 131072 // 32)


def test_the_drafts_pool_beside_the_fraction_takes_its_room_on_the_card(head):
    same = {"mem_fraction_static": 0.8}
    plain, drafted = run(engine_version="0.5.7", settings=same), run(engine_version="0.5.7", settings=same | head)
    assert plain.pool.room - drafted.pool.room == drafted.pool.tokens * 4096
    full = run(engine_version="0.5.7", settings={"mem_fraction_static": 0.98} | STANDALONE)
    assert "The draft's weights and its pool" in " ".join(full.warnings)
    assert fit(full, full.job.gpu).verdict == "does_not_fit"


def test_a_standalone_draft_is_the_weights_that_it_has_alone_and_its_own_cache():
    drafted, alone = run(settings=STANDALONE), run("llama-3.2-1b")
    for name in ("embedding", "linear layers", "norms and biases", "rotary cos and sin"):
        assert size(drafted, name) == sum(line.nbytes for line in alone.ledger.lines if line.name == name)
    assert drafted.kv_bytes_per_token == 131072 + 32768
    assert drafted.pool.tokens == drafted.pool.nbytes // (131072 + 16 * 4096)  # the pool takes the draft's 16 layers for layers of the target


def test_a_head_of_eagle3_has_the_tensors_of_its_checkpoint(head):
    """fc 3 h to h, q, k and v over 2 h, gate, up and down, three norms and the last, a head of 32,000; the embedding is the target's."""
    h, kv, f = 4096, 1024, 14336
    linear = h * 2 * h + 2 * kv * 2 * h + h * h + 3 * h * f
    assert size(run(settings=head), "linear layers", "other tensors") == 2 * (linear + 3 * h * h)
    assert size(run(settings=head), "norms and biases") == 2 * 4 * h
    assert size(run(settings=head), "output head") == 2 * 32000 * h
    assert size(run(settings=head), "embedding") == 0
    eagle = head | {"speculative_algorithm": "eagle"}
    assert size(run(settings=eagle), "linear layers", "other tensors") == 2 * (h * h * 2 + 2 * kv * h + 3 * h * f + 2 * h * h)
    assert size(run(settings=eagle), "norms and biases") == 2 * (h + h)  # one norm, and the bias of fc


def test_a_draft_of_qwen3_6_27b_loads_what_the_log_prints_with_the_copies_that_it_gives_up():
    """5.18 GB for Qwen3_5ForCausalLMMTP in block FP8 (sgl-project/sglang#35996, found after the formula), of which 2 x 248,320 x 5,120 x 2 bytes are embedding and head."""
    found = run("qwen3.6-27b", MTP, quant="fp8-block", gpu="RTX PRO 6000", partial=True)
    own = sum(line.nbytes for line in found.ledger.lines if line.component == "weights" and line.name.endswith(", draft"))
    assert round((own + passing_bytes(found.job)) / 2**30, 2) == 5.18


@pytest.mark.parametrize("version", ["0.5.6", "0.5.13", "0.5.14", "0.5.20"])
def test_recurrent_layers_keep_a_state_for_each_token_verified_at_once(version):
    """handle_max_mamba_cache of v0.5.6, v0.5.10, v0.5.14 and v0.5.17; 153,944,064 bytes a state: 146.81 MB, as a server of Qwen3.8 27B prints (text index 70870439371)."""
    release, n = tuple(map(int, version.split("."))), 153_944_064
    model, drafts = ("qwen3-next-80b-a3b", 8) if release < (0, 5, 9) else ("qwen3.6-27b", 4)
    n = 19_316_736 * 4 if model.startswith("qwen3-next") else n
    options = {"quant": "bf16", "gpu": "B200", "partial": True, "engine_version": version}
    plain, found = (run(model, {"mem_fraction_static": 0.9} | s, **options) for s in ({}, MTP))
    assert size(found, "recurrent states") == drafts * n
    per_token = plain.kv_bytes_per_token
    rest = plain.pool.tokens * per_token + plain.pool.states * n  # what both pools share, but for a token and what is paid for the padded slot
    slots = found.pool.states
    kept = {"0.5.6": slots * drafts, "0.5.13": 48 * drafts, "0.5.14": min(48, slots // 5) * drafts, "0.5.20": (min(48, slots // 5) + 1) * drafts}[version]
    if release >= (0, 5, 14):
        rest -= passing_bytes(found.job) + sum(line.nbytes for line in found.ledger.lines if line.component == "weights" and line.name.endswith(", draft"))
    spare = 48 * (5 * 4 + 8) + 100 if release < (0, 5, 7) else 0
    assert abs((found.pool.tokens - spare) * per_token + (slots + kept) * n - rest) < 65 * per_token  # pages of 64
    share = (rest - (48 * drafts * n if version == "0.5.13" else 0)) * 0.9 / 1.9
    each = n * {"0.5.6": 1 + drafts, "0.5.13": 1, "0.5.14": 1 + drafts / 5, "0.5.20": 1 + drafts / 5}[version]
    assert abs(slots - share / each) < 6
    assert plain.pool.room - found.pool.room > 0  # the draft's own pool lies beside the fraction


def test_slots_and_tokens_of_a_server_with_mtp_layers_are_those_of_its_release():
    """Qwen3.5 397B on H200, eight attention groups, July 2026: 76 slots, 1,202,971 tokens, 2.30 GiB of the draft's pool.

    Found after the formula: MEMORY_CAPACITY_FLOORS of sglang's own nightly test (text index 66450170794) are 99 % of what it saw. No rest of
    memory gives both by the rule of 0.5.13 or of 0.5.17.
    """
    drafts = {"speculative_algorithm": "eagle", "speculative_num_steps": 3, "speculative_eagle_topk": 1, "speculative_num_draft_tokens": 4, "max_running_requests": 6}
    holds = []
    for version in ("0.5.13", "0.5.14", "0.5.16", "0.5.17"):
        job = run("qwen3.5-397b-a17b", drafts, quant="fp8-block", gpu=None, engine_version=version, partial=True).job
        (share,) = shares_of(job)
        least, more = (bisect_left(range(2**37), n, key=lambda rest: slots_of(job, share, rest)) for n in (76, 77))
        few, many = ((rest - states_taken(job, share, rest)) // cell_bytes(job, share) for rest in (least, more - 1))
        holds.append(few <= 1_202_971 <= many)
        assert round(1_202_971 * draft_cell(job) / 2**30, 1) == 2.3
    assert holds == [False, True, True, False]


@pytest.mark.parametrize(("version", "counted"), [("0.5.9", False), ("0.5.14", False), ("0.5.15", True), ("0.5.18", True)])
def test_a_draft_beside_windows_has_all_tokens_and_counts_since_0_5_15(version, counted, tmp_path):
    head = HEAD | {"hidden_size": 2880, "intermediate_size": 8192, "num_attention_heads": 64, "head_dim": 64, "vocab_size": 201088}
    (tmp_path / "config.json").write_text(json.dumps(head))
    settings = {"mem_fraction_static": 0.85, "allow_overwrite_longer_context_len": True, "speculative_algorithm": "eagle3", "speculative_draft_model_path": str(tmp_path / "config.json")}
    found = run("gpt-oss-120b", settings, quant="mxfp4", gpu="H200", engine_version=version)
    row = 2 * 8 * 64 * 2
    assert found.pool.tokens == found.pool.nbytes // (row * (18 + counted) + round(0.8 * 18 * row))
    assert size(found, "KV slots") == 8192 * row


@pytest.mark.parametrize(("model", "version", "method", "plan"), [
    ("llama-3.1-8b", "0.5.23", "standalone", (3, 1, 4)), ("llama-3.1-8b", "0.5.23", "eagle3", (5, 4, 8)), ("deepseek-v3", "0.4.6", "nextn", (5, 4, 8)),
    ("deepseek-v3", "0.4.9", "nextn", (3, 1, 4)), ("glm-4.5", "0.5.6", "nextn", (5, 4, 8)), ("glm-4.5", "0.5.9", "nextn", (3, 1, 4)),
])  # fmt: skip
def test_the_plan_is_the_servers_choice_by_model_and_release(model, version, method, plan, head):
    """auto_choose_speculative_params of v0.4.6.post5, v0.4.9, v0.5.6, v0.5.8 and v0.5.23."""
    settings = {"standalone": STANDALONE, "eagle3": head, "nextn": MTP}[method]
    found = run(model, settings, engine_version=version, gpu=None)
    chosen = found.engine.resolved_settings(found.job)
    assert tuple(chosen[f"speculative_{name}"] for name in ("num_steps", "eagle_topk", "num_draft_tokens")) == plan


@pytest.mark.parametrize("version", ["0.4.9", "0.5.6", BEFORE, SINCE, "0.5.23"])
@pytest.mark.parametrize("kind", ["mtp", "standalone", "eagle3", "ngram"])
def test_lines_add_up_and_the_command_gives_them_again(version, kind, head):
    if version == "0.4.9" and kind in ("standalone", "ngram"):
        pytest.skip("not in this release")
    settings = {"mtp": MTP, "standalone": STANDALONE, "eagle3": head, "ngram": {"speculative_algorithm": "ngram"}}[kind]
    found = deepseek(engine_version=version) if kind == "mtp" else run(settings=settings, engine_version=version)
    for line in found.ledger.lines:
        assert 0 <= line.low_bytes <= line.nbytes <= line.high_bytes
        assert line.nbytes or line.note
        assert abs(value_of(str(line.formula)) - line.nbytes) <= 1, line.name
    one, more = (e.engine.dynamic(e.job, "prefill")(e.job.workload.context, 1)[0] for e in (found, found))
    assert one == more == found.ledger.component_bytes("kv_cache")
    words = shlex.split(found.start_command)
    flags = {a[2:].replace("-", "_"): b for a, b in pairwise(words) if a.startswith("--speculative")}
    assert flags["speculative_algorithm"] == str(settings["speculative_algorithm"]).upper()
    kept = {k: v for k, v in {"tensor_parallel_size": 8}.items() if kind == "mtp"}
    again = deepseek(kept | flags, engine_version=version) if kind == "mtp" else run(settings=flags | {k: v for k, v in settings.items() if k.startswith("allow")}, engine_version=version)
    assert [(x.name, x.nbytes) for x in again.ledger.lines] == [(x.name, x.nbytes) for x in found.ledger.lines]
    assert again.pool == found.pool


@pytest.mark.parametrize(("model", "settings", "options", "words"), [
    ("llama-3.1-8b", {"speculative_num_steps": 3}, {}, "without speculative_algorithm"),
    ("llama-3.1-8b", {"speculative_algorithm": "eagle3"}, {}, "without speculative_draft_model_path"),
    ("llama-3.1-8b", MTP, {}, "models with num_nextn_predict_layers"),
    ("llama-3.1-8b", STANDALONE | {"speculative_num_steps": 3}, {}, "the server wants all three"),
    ("llama-3.1-8b", STANDALONE | {"speculative_num_steps": 3, "speculative_eagle_topk": 1, "speculative_num_draft_tokens": 9}, {}, "speculative_num_draft_tokens=4"),
    ("llama-3.1-8b", STANDALONE | {"tensor_parallel_size": 1}, {"gpus": 2, "engine_version": "0.5.6"}, "Pipeline parallelism is not compatible"),
    ("llama-3.1-8b", STANDALONE, {"engine_version": "0.4.9"}, "0.5.2 or later"),
    ("llama-3.1-8b", {"speculative_algorithm": "ngram", "speculative_num_steps": 3}, {}, "which has no model"),
    ("qwen3-8b", STANDALONE, {}, "their tokens are not the same"),
    ("llama-3.1-8b", {"speculative_algorithm": "eagle3", "speculative_draft_model_path": "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B"}, {}, "greater than the derived context_length (2048)"),
    ("gpt-oss-20b", {"speculative_algorithm": "ngram", "disable_radix_cache": True}, {}, "the windows' pool grows"),
    ("gemma-4-26b-a4b", {"speculative_algorithm": "ngram"}, {}, "of two widths"),
    ("llama-3.1-8b", {"speculative_algorithm": "eagle3", "speculative_draft_model_path": "llama-3.2-1b"}, {}, "a model, no head"),
])  # fmt: skip
def test_what_is_refused(model, settings, options, words):
    with pytest.raises(CalculatorError) as error:
        run(model, settings, **options)
    assert words in str(error.value)
