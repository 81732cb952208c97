"""How the kernels for GPUs share the work among programs; what they compute: test_gpu_conv.py."""

import pytest

from jaxmnist.networks import kernels


@pytest.mark.parametrize("inputs", [1, 7, 16, 64])
@pytest.mark.parametrize("outputs", [1, 7, 10, 32])
@pytest.mark.parametrize("taps", [1, 3, 9, 25, 121])
def test_channels_fit_a_program_and_all_of_few_are_taken(inputs: int, outputs: int, taps: int):
    some_inputs, some_outputs = kernels._channels(inputs, outputs, taps)
    assert 1 <= some_inputs <= inputs
    assert 1 <= some_outputs <= outputs
    assert some_inputs * some_outputs * taps <= max(kernels.GRADIENTS, taps)
    if inputs * outputs * taps <= kernels.GRADIENTS:
        assert (some_inputs, some_outputs) == (inputs, outputs)
