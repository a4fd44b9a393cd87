import torch
import torch.nn as nn
from .neurons import LIF


class KLIF(LIF):
    """
    Leaky integrate-and-fire neuron whose potential is scaled by a learnable
    factor `k` and rectified before it is compared with the threshold.
    During training, `k` changes height and width of the surrogate gradient.
    For :math:`F[t] > U_{\\rm thr} ⇒ S[t] = 1`.

    .. math::

            U[t] = βV[t-1] + I_{\\rm in}[t] \\\\
            F[t] = {\\rm max}(0, kU[t])

    If `reset_mechanism = "zero"`, then :math:`F` is set to `0` after each
    spike:

    .. math::

            V[t] = (1 - S[t])F[t]

    If `reset_mechanism = "subtract"`, then the threshold is subtracted from
    :math:`F` after each spike:

    .. math::

            V[t] = F[t] - S[t]U_{\\rm thr}

    * :math:`I_{\\rm in}` - Input current
    * :math:`U` - Membrane potential, as that of :class:`Leaky`
    * :math:`F` - Scaled and rectified membrane potential, returned as `mem`
    * :math:`V` - Membrane potential after the reset
    * :math:`U_{\\rm thr}` - Membrane threshold
    * :math:`S` - Output spike
    * :math:`β` - Membrane potential decay rate
    * :math:`k` - Scaling factor

    As in the other neurons, the returned potential is that before the reset,
    which takes place first thing in the next step. It is not the reset of
    :class:`Leaky`:

    * "subtract" takes the threshold off before the next decay, where `Leaky`
      does so after it.
    * The reset is part of the computational graph; see `detach_reset`.

    As the reset acts on :math:`F`, the factor `k` multiplies the potential
    that is carried on in each step: the decay rate without spikes is
    :math:`kβ`. With `k = 1` and potentials that never are negative, this is
    a leaky integrate-and-fire neuron.

    The neuron is presented in *C. Jiang and Y. Zhang (2023) KLIF: An Optimized
    Spiking Neuron Unit for Tuning Surrogate Gradient Slope and Membrane
    Potential. arXiv 2302.09238*. The equations are those that the
    documentation of SpikingJelly transcribes from it, which has "zero" only
    and writes the decay as a time constant :math:`τ`, with
    :math:`β = 1 - 1/τ` and the input scaled by :math:`1/τ`. Here the input
    is not scaled, as in :class:`Leaky`.

    Example::

        import torch
        import torch.nn as nn
        import snntorch as snn

        beta = 0.5

        # Define Network
        class Net(nn.Module):
            def __init__(self, num_inputs, num_hidden, num_outputs):
                super().__init__()

                # initialize layers
                self.fc1 = nn.Linear(num_inputs, num_hidden)
                self.lif1 = snn.KLIF(beta=beta)
                self.fc2 = nn.Linear(num_hidden, num_outputs)
                self.lif2 = snn.KLIF(beta=beta)

            def forward(self, x, mem1, spk1, mem2):
                cur1 = self.fc1(x)
                spk1, mem1 = self.lif1(cur1, mem1)
                cur2 = self.fc2(spk1)
                spk2, mem2 = self.lif2(cur2, mem2)
                return mem1, spk1, mem2, spk2

    :param beta: membrane potential decay rate. Clipped between 0 and 1
        during the forward-pass. May be a single-valued tensor (i.e., equal
        decay rate for all neurons in a layer), or multi-valued (one weight
        per neuron).
    :type beta: float or torch.tensor

    :param k: scaling factor, as `beta` but not clipped. At `k = 0` a layer
        is silent and stays so, which weight decay may lead to. Defaults to 1
    :type k: float or torch.tensor, optional

    :param threshold: Threshold for :math:`mem` to reach in order to generate
        a spike `S=1`. Defaults to 1
    :type threshold: float, optional

    :param spike_grad: Surrogate gradient for the term dS/dU. Defaults to None
        (corresponds to ATan surrogate gradient. See `snntorch.surrogate`
        for more options)
    :type spike_grad: surrogate gradient function from snntorch.surrogate,
        optional

    :param surrogate_disable: Disables surrogate gradients regardless of
        `spike_grad` argument. Useful for ONNX compatibility. Defaults
        to False
    :type surrogate_disable: bool, Optional

    :param init_hidden: Instantiates state variables as instance variables.
        Defaults to False
    :type init_hidden: bool, optional

    :param inhibition: If `True`, suppresses all spiking other than the
        neuron with the highest state. Defaults to False
    :type inhibition: bool, optional

    :param learn_beta: Option to enable learnable beta. Defaults to False
    :type learn_beta: bool, optional

    :param learn_k: Option to enable learnable k. Defaults to True
    :type learn_k: bool, optional

    :param learn_threshold: Option to enable learnable threshold. Defaults
        to False
    :type learn_threshold: bool, optional

    :param reset_mechanism: Defines the reset mechanism applied to
        :math:`mem` each time the threshold is met. Reset-by-subtraction:
        "subtract", reset-to-zero: "zero", none: "none". Defaults to
        "subtract"
    :type reset_mechanism: str, optional

    :param state_quant: If specified, hidden state :math:`mem` is quantized
        to a valid state for the forward pass. Defaults to False
    :type state_quant: quantization function from snntorch.quant, optional

    :param output: If `True` as well as `init_hidden=True`, states are
        returned when neuron is called. Defaults to False
    :type output: bool, optional

    :param detach_reset: If `True`, no gradient flows through the spike in the
        reset. Defaults to False
    :type detach_reset: bool, optional


    Inputs: \\input_, mem_0
        - **input_** of shape `(batch, input_size)`: tensor containing input \
        features
        - **mem_0** of shape `(batch, input_size)`: tensor containing the \
        initial membrane potential for each element in the batch.

    Outputs: spk, mem_1
        - **spk** of shape `(batch, input_size)`: tensor containing the \
        output spikes.
        - **mem_1** of shape `(batch, input_size)`: tensor containing the \
        next membrane potential for each element in the batch

    Learnable Parameters:
        - **KLIF.k** (torch.Tensor) - scaling factor, of shape `1` or \
        (input_size).
        - **KLIF.beta** (torch.Tensor) - optional learnable weights must be \
        manually passed in, of shape `1` or (input_size).
        - **KLIF.threshold** (torch.Tensor) - optional learnable thresholds \
        must be manually passed in, of shape `1` or (input_size).

    """

    def __init__(
        self,
        beta,
        k=1.0,
        threshold=1.0,
        spike_grad=None,
        surrogate_disable=False,
        init_hidden=False,
        inhibition=False,
        learn_beta=False,
        learn_k=True,
        learn_threshold=False,
        reset_mechanism="subtract",
        state_quant=False,
        output=False,
        detach_reset=False,
    ):
        super().__init__(
            beta,
            threshold,
            spike_grad,
            surrogate_disable,
            init_hidden,
            inhibition,
            learn_beta,
            learn_threshold,
            reset_mechanism,
            state_quant,
            output,
        )

        k = torch.as_tensor(k, dtype=torch.get_default_dtype())
        if learn_k:
            self.k = nn.Parameter(k)
        else:
            self.register_buffer("k", k)

        self.detach_reset = detach_reset
        self._init_mem()

    def _init_mem(self):
        self.register_buffer("mem", torch.zeros(0), False)

    def reset_mem(self):
        # empty, as at first: nothing has fired that a step would reset
        self.mem = torch.zeros(0, device=self.mem.device)
        return self.mem

    def forward(self, input_, mem=None):

        if self.init_hidden and mem is not None:
            raise TypeError(
                "`mem` should not be passed as an argument while "
                "`init_hidden=True`"
            )

        if mem is not None:
            self.mem = mem

        if self.mem.shape == input_.shape:
            mem = self._reset_state(self.mem)
        else:
            mem = torch.zeros_like(input_, device=self.mem.device)

        self.mem = self._charge(input_, mem)

        if self.state_quant:
            self.mem = self.state_quant(self.mem)

        if self.inhibition:
            spk = self.fire_inhibition(self.mem.size(0), self.mem)
        else:
            spk = self.fire(self.mem)

        if self.init_hidden and not self.output:
            return spk
        return spk, self.mem

    def _reset_state(self, mem):
        """Reset by the spike of the step before, as `mem` implies it."""
        if self.reset_mechanism == "none":
            return mem
        spk = self.spike_grad(mem - self.threshold)
        if self.detach_reset:
            spk = spk.detach()
        if self.reset_mechanism == "subtract":
            return self._subtract(spk, mem)
        return self._zero(spk, mem)

    def _subtract(self, spk, mem):
        #: subtract
        return mem

    def _zero(self, spk, mem):
        #: zero
        return mem

    def _charge(self, input_, mem):
        beta = self.beta.clamp(0, 1)
        #: charge
        return mem

    @classmethod
    def detach_hidden(cls):
        """Returns the hidden states, detached from the current graph.
        Intended for use in truncated backpropagation through time where
        hidden state variables are instance variables."""

        for instance in cls.instances:
            if isinstance(instance, KLIF):
                instance.mem = instance.mem.detach()

    @classmethod
    def reset_hidden(cls):
        """Used to clear hidden state variables to zero.
        Intended for use where hidden state variables are
        instance variables."""

        for instance in cls.instances:
            if isinstance(instance, KLIF):
                instance.reset_mem()
