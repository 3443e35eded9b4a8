"""--override-tensor: tensors elsewhere than their layer."""

import shlex

import pytest

from calculator.errors import CalculatorError
from calculator.estimate import estimate


def weights(found):
    return sum(line.nbytes for line in found.ledger.lines if line.component == "weights")


def sized(model="qwen3-30b-a3b", **settings):
    return estimate(model, quant="Q8_0", context=4096, settings=settings)


def by_place(found):
    total: dict[tuple[str, object], int] = {}
    for line in found.ledger.lines:
        total[line.component, line.device] = total.get((line.component, line.device), 0) + line.nbytes
    return total


def test_n_cpu_moe_is_a_pattern_as_in_llama_cpp():
    """common/common.h llm_ffn_exps_block_regex: one pattern a layer."""
    text = ",".join(rf"blk\.{i}\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU" for i in range(7))
    assert by_place(sized(override_tensor=text)) == by_place(sized(n_cpu_moe=7))


def test_of_two_patterns_the_first_decides():
    assert by_place(sized(override_tensor="ffn_(up|gate)_exps=CUDA0,ffn_.*_exps=CPU")) == by_place(sized(override_tensor="ffn_down_exps=CPU"))


@pytest.mark.parametrize("text", ["ffn_up=CPU", r"blk\.(1|2)\.=CPU", "norm=CPU", "^output=CPU", "token_embd=CUDA0", r"attn_(q|k)\.=CPU,ffn=CUDA0"])
@pytest.mark.parametrize("layers", [-1, 5, 0])
def test_weights_are_somewhere_whatever_is_moved(text, layers):
    assert weights(sized("llama-3.1-8b", override_tensor=text, n_gpu_layers=layers)) == weights(sized("llama-3.1-8b", n_gpu_layers=layers))


def test_a_tied_embedding_is_held_once_where_both_uses_are_in_one_place():
    twice = sized("llama-3.2-1b")
    for text in ("token_embd=CPU", "token_embd=CUDA0"):
        assert weights(twice) - weights(sized("llama-3.2-1b", override_tensor=text)) == 128256 * 2048 * 34 // 32


def test_the_cache_stays_with_its_layer():
    assert sized(override_tensor=r"blk\.=CPU").ledger.component_bytes("kv_cache") == sized().ledger.component_bytes("kv_cache")


def test_the_start_command_has_the_pattern_before_n_cpu_moe():
    words = shlex.split(sized(override_tensor=r"blk\.3\.ffn_.*_exps=CUDA0", n_cpu_moe=8).start_command)
    assert words[words.index("-ot") + 1] == r"blk\.3\.ffn_.*_exps=CUDA0"
    assert words.index("-ot") < words.index("--n-cpu-moe")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ffn_up", "PATTERN=BUFFER"),
        ("ffn_up=CUDA1", "CPU, CUDA0"),
        ("ffn_up=GPU", "CPU, CUDA0"),
        ("ffn_(up=CPU", "no regular expression"),
        (r"(?<=blk)\.ffn=CPU", "simpler"),
        ("(a+)+b=CPU", "simpler"),
        ("ffn_up_exps=CPU", "matches no tensor"),
        ("ffn_up=CPU,blk.0.ffn_up=CUDA0", "matches no tensor"),
        ("", "printable"),
    ],
)
def test_what_is_refused(text, words):
    with pytest.raises(CalculatorError, match=words) as error:
        sized("llama-3.1-8b", override_tensor=text)
    assert "\n" not in str(error.value)


def test_what_cuda_has_no_kernel_for_stays_on_the_host():
    with pytest.raises(CalculatorError, match="takes rows of"):
        estimate("llama-3.1-8b", quant="Q4_K_M", context=4096, settings={"override_tensor": "token_embd=CUDA0"})
    with pytest.raises(CalculatorError, match="no GPU"):
        sized("llama-3.1-8b", override_tensor="ffn=CPU", backend="cpu")
