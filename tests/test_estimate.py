from __future__ import annotations

import subprocess
import sys

import pytest

from calculator.errors import CalculatorError
from calculator.estimate import estimate


def test_defaults_are_the_contracts():
    found = estimate("llama-3.2-1b").job
    assert (found.deployment.quant, found.deployment.engine, found.deployment.kv_dtype) == ("bf16", "transformers", "bf16")
    assert (found.workload.context, found.workload.sequences) == (8192, 1)
    assert estimate("llama-3.2-1b", quant="q4_k_m").job.deployment.engine == "llama.cpp"
    assert estimate("tinyllama-1.1b").job.workload.context == 2048  # the model's limit is smaller than 8k


def test_released_checkpoint_and_card_name_each_other():
    released, card = estimate("llama-3.2-1b"), estimate("llama-3.2-1b-card")
    assert released.kv_bytes_per_token == 32_768
    assert card.kv_bytes_per_token == 16_384
    assert card.parameters == 374_637_568
    assert any("llama-3.2-1b-card" in w for w in released.warnings)
    assert any("llama-3.2-1b:" in w for w in card.warnings)


def test_a_context_beyond_training_is_a_warning_here():
    found = estimate("tinyllama-1.1b", context=4096)
    assert any("max_position_embeddings" in w for w in found.warnings)


@pytest.mark.parametrize(
    ("kw", "words"),
    [
        ({"quant": "exl2-4.0", "engine": "vllm"}, "vllm can't run exl2-4.0"),
        ({"engine": "mlx"}, "not modelled yet"),
        ({"engine": "tgi"}, "is not known"),
        ({"context": 0}, "out of range"),
        ({"context": -1}, "out of range"),
        ({"context": "-1"}, "not a whole number"),
        ({"context": 10**30}, "out of range"),
        ({"context": str(10**30)}, "out of range"),
        ({"context": "12q"}, "not a whole number"),
        ({"context": "NaN"}, "not a whole number"),
        ({"sequences": 0}, "out of range"),
        ({"kv_dtype": "q3"}, "kv-dtype"),
        ({"gpu": "rtx 9090"}, "GPU 'rtx 9090' is not known"),
        ({"quant": "Q4_K_X"}, "Q4_K_M"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(kw, words):
    with pytest.raises(CalculatorError, match=words) as error:
        estimate("llama-3.2-1b", **kw)
    assert "\n" not in str(error.value)
    assert "try:" in str(error.value) or "allowed:" in str(error.value)


def test_an_unknown_model_gets_the_nearest():
    with pytest.raises(CalculatorError, match=r"llama-3\.2-1b"):
        estimate("llama-3.2-1bb")


def test_estimating_imports_nothing_heavy():
    """Start-up is guarded by what is imported, not by a clock."""
    code = (
        "import sys\n"
        "from calculator.cli import main\n"
        "sys.argv = ['vram', 'estimate', 'llama-3.2-1b', '--gpu', 'rtx 4090', '--json']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'pandas', 'torch', 'streamlit', 'plotly', 'rich', 'huggingface_hub', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr.strip() == "[]"
    assert run.stdout.startswith("{")
