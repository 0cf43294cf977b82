import pytest

from jina_jax.devices.accelerators import ACCELERATORS, accelerator


@pytest.mark.parametrize(
    ("device_kind", "name"),
    [
        ("TPU v4", "TPU v4"),
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v5", "TPU v5p"),
        ("TPU v6 lite", "TPU v6e"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA L4", "L4"),
    ],
)
def test_kinds_as_jax_names_them(device_kind, name):
    assert accelerator(device_kind).name == name


@pytest.mark.parametrize("device_kind", ["cpu", "NVIDIA L40S", "TPU v3", "TPU v4 lite"])
def test_a_kind_that_is_not_listed_has_no_peak(device_kind):
    assert accelerator(device_kind) is None


def test_peaks_by_dtype():
    v5e, h100 = accelerator("TPU v5 lite"), accelerator("NVIDIA H100 80GB HBM3")
    assert v5e.flops_per_s("bfloat16") == v5e.flops_per_s("float32") == 197e12
    assert h100.flops_per_s("bfloat16") == 989.4e12
    assert h100.flops_per_s("float32") == 494.7e12


def test_arithmetic_intensities_are_plausible():
    # A slip in a unit (GB for TB, GFLOPs for TFLOPs) would show here.
    for known in ACCELERATORS:
        assert 100 < known.bfloat16_flops_per_s / known.hbm_bytes_per_s < 800
        assert known.highest_flops_per_s < known.float32_flops_per_s <= known.bfloat16_flops_per_s
        assert known.interconnect_bytes_per_s < known.hbm_bytes_per_s
        assert 16e9 <= known.hbm_bytes <= 192e9
