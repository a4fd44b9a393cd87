"""Spiking neurons for long sequences, native in snnTorch and SpikingJelly.

Importing this package imports neither host, nor CuPy, nor a compiler. The hosts' parts are in
``snn_ext.snntorch`` and ``snn_ext.spikingjelly``; each needs its host installed.
"""

from __future__ import annotations

from typing import Any, Literal

__version__ = "0.1.0"


def explain(module: Any, x: Any) -> str:
    """Which backend runs each of this package's neurons in a module, and why not the others.

    Runs ``module(x)`` once, without gradients and in evaluation mode, where the range of a multi-bit output stands
    still, and puts states and modes back.

    Args:
        module: a neuron of ours, or any ``torch.nn.Module`` that contains some.
        x: an input of the module; a tuple of them for several.

    Returns:
        a line for every call of a neuron, and a line with the reason for every backend that does not run it.

    Raises:
        Exception: whatever ``module(x)`` raises.
    """
    from .sequence import explained

    return explained(module, x)


def convert(net: Any, to: Any, *, inplace: bool = False, **settings: Any) -> Any:
    """Swap a host's neurons for ours and keep everything else, trained weights first of all.

    Which host it is says the network. Replaced are SpikingJelly's ``IFNode``, ``LIFNode``, ``ParametricLIFNode`` and
    ``KLIFNode`` and snnTorch's ``Leaky`` and ``RLeaky`` (as a :class:`~snn_ext.snntorch.SkipRecurrent` with its
    weights), wherever they are; a neuron that is used in several places stays one. Another spiking neuron of the host
    is refused; what does not spike, and what is ours already, stays as it is.

    **Kept**: threshold, reset, surrogate, ``detach_reset``, the modes and records of the host (``step_mode``,
    ``store_v_seq``; ``init_hidden``, ``output``, ``inhibition``, ``state_quant``, graded spikes, what is learned), the
    leak and ``k`` where the new neuron has them, training mode, device, dtype, forward and backward hooks. Learned
    ``beta``, ``threshold``, ``k`` and recurrent weights stay the same parameters, so with ``inplace=True`` an optimiser
    goes on training them. The reset of ``Leaky`` is detached, so that of ours is too. **Not kept**: numbers of the old
    equations that the new ones do not have (the leak for LSTM-LIF, say), hidden states, which begin afresh, and a
    backend, which is ``"auto"``.

    The same spikes and states, bit for bit, come from ``IFNode`` and ``LIFNode`` as ``"LIF"`` and ``KLIFNode`` as
    ``"KLIF"``, and from ``Leaky`` as ``"LIF"`` with the resets "zero" and "none"; from ``RLeaky`` with "none" but for
    the order of a sum. (With ``decay_input=False`` SpikingJelly 0.0.0.0.14 rounds its leak in another way.) A reset
    with which they would not, like that of ``Leaky("subtract")``, is refused.

    Args:
        net: the network, a ``torch.nn.Module``.
        to: a row of the catalogue ("LIF", "KLIF", "LSTM-LIF", "TC-LIF"); or a class of ours for one input and binary
            spikes; or a function that is given each spiking neuron of the host and returns what takes its place, which
            may be the old one.
        inplace: change ``net`` itself, in place of a copy. A neuron by itself is not changed but returned anew.
        settings: arguments of the new neurons (``gamma=0.3``, ``step_mode=False``), in place of what is kept. What is
            said here is not refused: ``reset_mechanism="subtract"`` accepts that ``Leaky`` subtracts in another place.
            Every neuron gets a copy of its own of a :class:`~snn_ext.core.quantize.MultiBit`, which serves one layer.

    Returns:
        the network with our neurons. With SpikingJelly 2.0.0, whose ``reset_net`` remembers what it has reset, call
        ``functional.invalidate_reset_cache`` for a larger network of which ``net`` is a part that was changed in place.

    Raises:
        TypeError: no module, no target, a setting that the new neuron does not take.
        ValueError: a neuron, with its path, that has no counterpart or something that could not be kept; nothing to
            convert. Nothing has changed then.
        RuntimeError: a network that cannot be copied, as its states have a graph.

    Example::

        from torch import nn
        from spikingjelly.activation_based import layer, neuron
        import snn_ext

        net = nn.Sequential(layer.Linear(13, 128), neuron.LIFNode(), layer.Linear(128, 10))
        net = snn_ext.convert(net, to="LSTM-LIF", v_reset=None)
    """
    from .conversion import converted

    return converted(net, to, inplace, settings)


def convert_state_dict(sd: Any, to: Literal["snntorch", "spikingjelly"], *, like: Any) -> dict[str, Any]:
    """Map a checkpoint of our neurons in one host to the same architecture in the other.

    Trained parameters have the same names in both. The others are a host's own: snnTorch saves threshold, reset,
    graded factor and ``beta``, which in SpikingJelly are plain attributes of a node (and ``tau`` in place of ``beta``)
    unless they are tensors. So the network that is to load the result must be there too:

    * what it keeps as a tensor gets what the checkpoint says, ``beta = 1 - 1 / tau``;
    * what it keeps as a plain attribute is compared with what the checkpoint says, and refused if it differs;
    * what the checkpoint does not say stays as it is in ``like``. Give the other network itself in the place of its
      ``state_dict``, and its plain attributes and options are compared, or taken over, as well.

    Then both compute the same, each with its host's rule at the threshold, provided that they were built alike: no
    checkpoint holds ``decay_input``, ``scale_reset``, ``relu``, ``k_constraint``, ``levels``, ``span`` or a surrogate.
    The two forms of the leak, with ``tau`` and with ``beta``, round differently: LIF and KLIF are equal bit for bit
    without ``decay_input`` and with a ``tau`` that is a power of two, else to rounding, which may move a spike.

    Args:
        sd: a ``state_dict`` of a network of the other host, or that network.
        to: the host that the result is for.
        like: the network of that host; it is read, not changed.

    Returns:
        a ``state_dict`` that ``like.load_state_dict(..., strict=True)`` takes. Tensors are those of ``sd``, or copies.

    Raises:
        TypeError: no checkpoint or no network.
        ValueError: an unknown host; keys of another architecture; a value that would be lost, or has no counterpart
            (``reset_mechanism="none"``, graded spikes, a ``v_reset`` other than 0).
        ImportError: the host is not installed.

    Example::

        from torch import nn
        import snn_ext
        from snn_ext.snntorch import TCLIF
        from snn_ext.spikingjelly import TCLIFNode

        trained = nn.Sequential(nn.Linear(13, 128), TCLIF(init_hidden=True))
        other = nn.Sequential(nn.Linear(13, 128), TCLIFNode())
        other.load_state_dict(snn_ext.convert_state_dict(trained.state_dict(), to="spikingjelly", like=other))
    """
    from .conversion import mapped

    return mapped(sd, to, like)
