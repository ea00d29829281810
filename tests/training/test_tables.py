"""What stands around a measurement."""

import pytest

from training import tables

AVX2 = "fpu avx avx2 fma"
AVX512 = f"{AVX2} avx512f avx512cd avx512bw avx512dq avx512vl"


@pytest.mark.parametrize(
    ("vendor", "flags", "value"),
    [
        ("AuthenticAMD", AVX2, "5"),
        ("AuthenticAMD", AVX512, "7"),
        ("AuthenticAMD", AVX512.replace(" avx512dq", ""), "5"),  # it would not run
        ("AuthenticAMD", "fpu avx", None),
        ("GenuineIntel", AVX512, None),  # MKL does well by itself
        (None, None, None),  # no Linux
    ],
)
def test_what_makes_mkl_fast(vendor, flags, value, monkeypatch):
    found = {"vendor_id": vendor, "flags": flags} if vendor else {}
    monkeypatch.setattr(tables, "_cpu", lambda: found)
    assert tables.fast_products() == ({"MKL_DEBUG_CPU_TYPE": value} if value else {})
