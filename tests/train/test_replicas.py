"""Comparison of the copies of parameters on the devices of a mesh."""

from pathlib import Path

from tests.simulated_devices import run_on_eight_devices

SCRIPT = Path(__file__).with_name("replicas_on_a_mesh.py")


def test_a_flipped_bit_in_one_replica_is_detected_and_its_parameter_and_device_are_named() -> None:
    process = run_on_eight_devices(SCRIPT)
    assert process.returncode == 0, process.stderr
    two_copies, eight_copies = process.stdout.splitlines()
    assert "step 7" in two_copies
    assert "differ" in two_copies
    # Neither of two copies has the majority, so that both devices are named; of eight copies the odd one is known.
    assert "even on cpu:1, cpu:5;" in two_copies
    assert "bias on cpu:3;" in eight_copies
