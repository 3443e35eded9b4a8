"""llama-server's --fit: what it leaves of the context, and which layers and experts it puts on the GPUs."""

import shlex

import pytest

from calculator.catalog import load_model
from calculator.engines.llama_cpp.settings import context_of
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.report.documents import estimate_document
from calculator.sweep import sweep


def fitted(model, gpus=1, gpu=None, quant="Q8_0", **settings):
    return estimate(model, quant=quant, context=4096, gpus=gpus, gpu=gpu, settings={"fit": True} | settings)


@pytest.mark.parametrize(
    ("model", "gpus", "settings", "n_ctx", "layers", "split", "moved", "first"),
    [  # what common_fit_params @0c1e57098 itself chose, on pretend devices with so many MiB free
        ("llama-3.1-8b", 1, {"n_ctx": 0, "fit_free": 11000}, 17920, 33, (1.0,), 0, ""),
        ("llama-3.1-8b", 1, {"n_ctx": 0, "fit_free": 9000}, 4096, 31, (1.0,), 0, ""),
        ("llama-3.1-8b", 2, {"n_ctx": 0, "fit_free": 6500}, 19968, 33, (16.0, 17.0), 0, ""),
        ("qwen3-30b-a3b", 1, {"fit_free": 12000}, 4096, 49, (1.0,), 35, r"blk\.14\.ffn_down.*"),
        ("qwen3-30b-a3b", 2, {"fit_free": 16000}, 4096, 49, (23.0, 26.0), 5, r"blk\.22\.ffn_down.*"),
        ("qwen3-30b-a3b", 1, {"fit_free": 2200}, 4096, 1, (1.0,), 0, ""),
    ],
)
def test_the_choice_is_the_engines_own(model, gpus, settings, n_ctx, layers, split, moved, first):
    found = fitted(model, gpus, **settings)
    context = context_of(found.job)
    assert (context.n_ctx, context.split, len(context.overrides)) == (n_ctx, split, moved)
    assert found.engine.resolved_settings(found.job)["n_gpu_layers"] == layers
    assert not moved or context.overrides[0].pattern == first


def test_what_fits_is_left_alone():
    assert fitted("llama-3.1-8b", gpu="h100").total_bytes == estimate("llama-3.1-8b", quant="Q8_0", context=4096, gpu="h100").total_bytes


@pytest.mark.parametrize("model", ["llama-3.1-70b", "qwen3-30b-a3b", "mixtral-8x7b-instruct-v0.1"])
def test_the_target_stays_free(model):
    found = fitted(model, gpu="rtx 4090")
    assert 2**30 <= estimate_document(found)["devices"][0]["headroom_bytes"] < 3 * 2**30


def test_what_the_user_set_stays():
    """llama.cpp gives up then, after it has reduced the context where that was left open."""
    found = fitted("llama-3.1-8b", n_ctx=0, fit_free=6000, n_gpu_layers=20)
    assert context_of(found.job).n_gpu_layers == 20
    assert context_of(found.job).n_ctx < 131072


@pytest.mark.parametrize("model", ["llama-3.1-70b", "qwen3-30b-a3b"])
def test_the_start_command_is_the_choice(model):
    found = fitted(model, gpu="rtx 4090")
    words = shlex.split(found.start_command)
    chosen = {"n_gpu_layers": words[words.index("-ngl") + 1]}
    if "-ot" in words:
        chosen["override_tensor"] = words[words.index("-ot") + 1]
    again = estimate(model, quant="Q8_0", context=4096, gpu="rtx 4090", settings=chosen)
    assert [line.nbytes for line in again.ledger.lines] == [line.nbytes for line in found.ledger.lines]


@pytest.mark.parametrize(
    ("options", "words"),
    [({}, "free memory"), ({"backend": "cpu"}, "host's memory"), ({"fit_free": 0}, "1 to")],
)
def test_what_is_refused(options, words):
    with pytest.raises(CalculatorError, match=words):
        fitted("llama-3.1-8b", **options)
    with pytest.raises(CalculatorError, match="4227c9be"):
        estimate("llama-3.1-8b", quant="Q8_0", gpu="h100", engine_version="4227c9be", settings={"fit": True})


@pytest.mark.parametrize("settings", [{"fit": True, "lora_rank": 8}, {"draft": "llama-3.2-1b"}, {"override_tensor": r"blk\.(1|2)\.=CPU", "lora_rank": 8}])
def test_a_sweep_chooses_cell_by_cell(settings):
    quants, contexts = ("Q4_K_M", "Q8_0"), (2048, 65536)
    found = sweep([load_model("llama-3.1-8b")], quants, contexts, (1, 2), {"settings": settings, "gpu": "rtx 3060"})
    for q, quant in enumerate(quants):
        for c, context in enumerate(contexts):
            for s, sequences in enumerate((1, 2)):
                alone = estimate("llama-3.1-8b", quant=quant, context=context, sequences=sequences, gpu="rtx 3060", settings=settings)
                assert found.total_bytes[0, q, c, s] == alone.total_bytes
