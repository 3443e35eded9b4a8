from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calculator.formats import FORMATS, SOURCES


def test_block_sizes_are_those_of_the_gguf_package():
    gguf = pytest.importorskip("gguf")
    checked = 0
    for name, fmt in FORMATS.items():
        kind = getattr(gguf.GGMLQuantizationType, name, None)
        if name == "Q8_1":  # ggml-common.h block_q8_1 holds two halves, 36 bytes; the package still counts two floats
            continue
        if kind is not None:
            assert gguf.GGML_QUANT_SIZES[kind] == (fmt.block_elements, fmt.block_bytes), name
            checked += 1
    assert checked >= 24


def test_q4_k_is_256_elements_in_144_bytes():  # ggml-common.h block_q4_K
    assert (FORMATS["Q4_K"].block_elements, FORMATS["Q4_K"].block_bytes) == (256, 144)


@given(st.sampled_from(sorted(FORMATS)), st.integers(1, 10**7))
def test_a_started_block_counts_whole(name, elements):
    fmt = FORMATS[name]
    nbytes = fmt.nbytes(elements)
    assert nbytes % fmt.block_bytes == 0
    assert nbytes * fmt.block_elements >= elements * fmt.block_bytes
    assert (nbytes - fmt.block_bytes) * fmt.block_elements < elements * fmt.block_bytes


def test_every_format_has_a_source():
    assert all(SOURCES[name] for name in FORMATS)
