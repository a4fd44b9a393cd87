"""The host is imported here once, so that its own import-time warnings do not fail a test."""

import warnings

with warnings.catch_warnings():
    # SpikingJelly 0.0.0.0.14 calls torch.jit.script while it is imported.
    warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
    import spikingjelly.activation_based.layer
    import spikingjelly.activation_based.monitor
    import spikingjelly.activation_based.neuron  # noqa: F401
