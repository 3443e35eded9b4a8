"""llama.cpp's compute buffers: simulated byte for byte, with few layers as with all, and as a sum of what lives."""

import csv
from pathlib import Path

import pytest

from calculator.checks.records import read_records
from calculator.engines.llama_cpp import simulation
from calculator.engines.llama_cpp.allocator import Place, allocate
from calculator.engines.llama_cpp.buffers import Context
from calculator.engines.llama_cpp.compute import decoder
from calculator.engines.llama_cpp.families import Decoder
from calculator.engines.llama_cpp.graph import F32, Graph
from calculator.engines.llama_cpp.simulation import compute_buffers
from calculator.readers.hf_config import model_from_config

LLAMA = Decoder("llama", 80, 8192, 64, 8, 128, 28672, 128256, rope_factors=True)
GEMMA = Decoder("gemma3", 62, 5376, 32, 16, 128, 21504, 262208, window=1024, full_every=6)
MIXTRAL = Decoder("llama", 32, 4096, 32, 8, 128, 14336, 32000, experts=8, experts_used=2, expert_feed_forward=14336)
CONTEXT = Context(8192, 2048, 512, 1, 1, False, True, "F16", "F16", True)


def recorded():
    """A sample of the recorded contexts."""
    records = [r for r in read_records() if r.suite == "llama-cpp-contexts"][::5]
    assert len(records) > 700
    for r in records:
        m, s = r.model, r.run["settings"]
        model = decoder(model_from_config(m, id=m["id"]))
        ubatch = min(s["n_ubatch"], s["n_batch"])
        context = Context(s["n_ctx"], s["n_batch"], ubatch, s["n_seq_max"], s["n_outputs_max"] or ubatch, s["kv_unified"],
                          s["flash_attn"], s["type_k"].upper(), s["type_v"].upper(), s["backend"] == "cuda",
                          s.get("swa_full", False))  # fmt: skip
        yield model, context, r.measured


def test_recorded_contexts_are_exact_to_the_byte():
    for model, context, measured in recorded():
        if "IQ4_NL" in context and context.cuda:
            continue  # the mock device took IQ4_NL into flash attention, which CUDA's kernels refuse
        *devices, host = compute_buffers(model, context)
        assert (devices or [host])[0].nbytes == measured["compute_bytes"], context
        if devices and "host_compute_bytes" in measured:
            assert host.nbytes == measured["host_compute_bytes"], context


def golden():
    with (Path(__file__).parent / "compute_buffers.csv").open() as f:
        for row in csv.DictReader(f):
            decoder = Decoder(row["family"], *(int(row[k]) for k in Decoder._fields[1:13]), *(row[k] == "1" for k in Decoder._fields[13:17]))
            context = Context(*(int(row[k]) for k in Context._fields[:5]), row["kv_unified"] == "1", row["flash_attn"] == "1",
                              row["type_k"], row["type_v"], row["cuda"] == "1", row["swa_full"] == "1")  # fmt: skip
            yield decoder, context, int(row["compute_bytes"]), int(row["compute_host_bytes"])


def test_contexts_of_every_family_are_exact_to_the_byte():
    """Sizes that llama.cpp 0c1e57098 itself reserved."""
    families = set()
    for model, context, compute, host in golden():
        found = compute_buffers(model, context)
        assert (found[0].nbytes, found[1].nbytes if context.cuda else 0) == (compute, host), (model, context)
        families.add(model.family)
    assert families >= {"gemma3", "qwen3moe", "llama"}


@pytest.mark.parametrize("model", [LLAMA, GEMMA, MIXTRAL])
@pytest.mark.parametrize("cuda", [True, False])
@pytest.mark.parametrize("flash", [True, False])
def test_few_layers_give_what_all_layers_give(model, cuda, flash):
    task = simulation.task(model, CONTEXT._replace(cuda=cuda, flash_attn=flash, n_ctx=32768))
    all_layers = simulation._buffers(simulation._allocate(task, task.layers))
    assert [b.nbytes for b in simulation.run(task)] == [b.nbytes for b in all_layers]
    assert len(simulation._reduced(task.layers, 12 if model is GEMMA else 2, 2)) < 26 < len(task.layers)


@pytest.mark.parametrize("model", [LLAMA, GEMMA, MIXTRAL])
def test_a_peak_is_the_sum_of_what_lives_and_the_holes(model):
    for context in (CONTEXT, CONTEXT._replace(n_outputs=512), CONTEXT._replace(flash_attn=False)):
        for buffer in compute_buffers(model, context):
            assert buffer.nbytes == sum(t.nbytes for t in buffer.live) + buffer.holes
            assert buffer.holes >= 0
            assert buffer.node
            assert len({id(t) for t in buffer.live}) == len(buffer.live)


def test_logits_of_a_whole_micro_batch_are_the_peak():
    (device, _) = compute_buffers(LLAMA, CONTEXT._replace(n_outputs=512))
    assert device.node == "result_output"
    assert device.live[0].ne[:2] == (128256, 512)
    assert device.live[0].nbytes == 4 * 128256 * 512


def test_an_element_wise_result_takes_over_its_source_and_a_product_does_not():
    g = Graph()
    x = g.input("x", F32, 256)
    a = g.like("a", "scale", x)  # the input has no other reader
    b = g.new("b", "mul_mat", (64,), g.resident("w", F32, 0, 256, 64), a)
    g.forward(b)
    for t in g.leafs + g.nodes:
        t.backend = 0
    (arena,) = allocate(g.nodes, g.leafs, [Place("host", 32, cuda=False)]).arenas
    assert arena.nbytes == 4 * (256 + 64)
    assert [t.name for t in arena.at_peak()] == ["a", "b"]
    assert arena.free_at[0] == 0  # a is freed again


