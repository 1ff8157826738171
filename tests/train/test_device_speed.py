"""The peak that MFU is measured against."""

from types import SimpleNamespace

from t5x_lite.train.device_speed import peak_flops


def test_one_device_of_a_tpu7x_has_half_of_its_chip() -> None:
    # Google Cloud, TPU7x: 2307 TFLOP/s of bfloat16 a chip; a chip is two JAX devices.
    flops, _ = peak_flops(SimpleNamespace(device_kind="TPU7x"), None)
    assert flops == 2307e12 / 2
