import torch
import torch.nn as nn
from .neurons import SpikingNeuron


class LSTMLIF(SpikingNeuron):
    """
    Two-compartment neuron with a dendrite and a soma (LSTM-LIF).
    The input charges the dendrite, which holds a long-term memory; the soma
    reads the dendrite, fires, and is fed back to it. There is no leak, and the
    two coefficients are opposite in sign and learnable.
    For :math:`U[t] > U_{\\rm thr} ⇒ S[t] = 1`.

    If `reset_mechanism = "subtract"`, then both compartments are reset by
    subtraction after each spike:

    .. math::

            D[t] = D[t-1] + β_1U[t-1] + I_{\\rm in}[t] - γS[t-1] \\\\
            U[t] = U[t-1] + β_2D[t] - U_{\\rm thr}S[t-1]

    If `reset_mechanism = "zero"`, then :math:`U` is set to `0` after each
    spike, and the dendrite is left alone.

    * :math:`D` - Dendritic potential
    * :math:`U` - Somatic (membrane) potential
    * :math:`I_{\\rm in}` - Input current
    * :math:`U_{\\rm thr}` - Membrane threshold
    * :math:`S` - Output spike
    * :math:`β_1 = -σ(c_1)` - Soma to dendrite, in (-1, 0)
    * :math:`β_2 = σ(c_2)` - Dendrite to soma, in (0, 1)
    * :math:`γ` - Reset of the dendrite

    As in the other neurons, the returned potentials are those before the
    reset, which takes place first thing in the next step. Unlike there, the
    reset is part of the computational graph, as in the published training;
    see `detach_reset`.

    The equations are Eq. 10-12 of *S. Zhang, Q. Yang, C. Ma, J. Wu, H. Li, and
    K. C. Tan (2024) TC-LIF: A Two-Compartment Spiking Neuron Model for
    Long-Term Sequential Modelling. AAAI 2024 (arXiv 2308.13250)*, taken for
    the LSTM-LIF of *S. Zhang et al. (2023) Long Short-term Memory with
    Two-Compartment Spiking Neuron (arXiv 2307.07231)* by the same authors.

    Example::

        import torch
        import torch.nn as nn
        import snntorch as snn

        # Define Network
        class Net(nn.Module):
            def __init__(self, num_inputs, num_hidden, num_outputs):
                super().__init__()

                # initialize layers
                self.fc1 = nn.Linear(num_inputs, num_hidden)
                self.lif1 = snn.LSTMLIF()
                self.fc2 = nn.Linear(num_hidden, num_outputs)
                self.lif2 = snn.LSTMLIF()

            def forward(self, x, dend1, mem1, spk1, dend2, mem2):
                cur1 = self.fc1(x)
                spk1, dend1, mem1 = self.lif1(cur1, dend1, mem1)
                cur2 = self.fc2(spk1)
                spk2, dend2, mem2 = self.lif2(cur2, dend2, mem2)
                return dend1, mem1, spk1, dend2, mem2, spk2

    :param beta1: coefficient from soma to dendrite, in (-1, 0). Stored as its
        logit `c1`. May be a single-valued tensor (i.e., equal for all neurons
        in a layer), or multi-valued (one per neuron). Defaults to -0.5
    :type beta1: float or torch.tensor, optional

    :param beta2: coefficient from dendrite to soma, in (0, 1). Stored as its
        logit `c2`. As `beta1`. Defaults to 0.5
    :type beta2: float or torch.tensor, optional

    :param gamma: reset of the dendrite, not learnable. Defaults to 0.5
    :type gamma: float or torch.tensor, optional

    :param threshold: Threshold for :math:`mem` to reach in order to generate
        a spike `S=1`. Defaults to 1
    :type threshold: float, optional

    :param spike_grad: Surrogate gradient for the term dS/dU. Defaults to None
        (corresponds to the triangle max(0, 1 - abs(U - U_thr)) of the paper)
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

    :param learn_beta: Option to enable learnable `c1` and `c2`. Defaults to
        True
    :type learn_beta: bool, optional

    :param learn_threshold: Option to enable learnable threshold. Defaults
        to False
    :type learn_threshold: bool, optional

    :param reset_mechanism: Defines the reset mechanism applied each time the
        threshold is met. Reset-by-subtraction: "subtract", reset-to-zero:
        "zero", none: "none". Defaults to "subtract"
    :type reset_mechanism: str, optional

    :param state_quant: If specified, hidden states :math:`mem` and
        :math:`dend` are quantized to a valid state for the forward pass.
        Defaults to False
    :type state_quant: quantization function from snntorch.quant, optional

    :param output: If `True` as well as `init_hidden=True`, states are
        returned when neuron is called. Defaults to False
    :type output: bool, optional

    :param detach_reset: If `True`, no gradient flows through the spike in the
        reset. Defaults to False
    :type detach_reset: bool, optional


    Inputs: \\input_, dend_0, mem_0
        - **input_** of shape `(batch, input_size)`: tensor containing \
        input features
        - **dend_0** of shape `(batch, input_size)`: tensor containing the \
        initial dendritic potential for each element in the batch.
        - **mem_0** of shape `(batch, input_size)`: tensor containing \
        the initial membrane potential for each element in the batch.

    Outputs: spk, dend_1, mem_1
        - **spk** of shape `(batch, input_size)`: tensor containing the \
        output spikes.
        - **dend_1** of shape `(batch, input_size)`: tensor containing the \
        next dendritic potential for each element in the batch
        - **mem_1** of shape `(batch, input_size)`: tensor containing the \
        next membrane potential for each element in the batch

    Learnable Parameters:
        - **LSTMLIF.c1** (torch.Tensor) - logit of `-beta1`, of shape `1` or \
        (input_size).
        - **LSTMLIF.c2** (torch.Tensor) - logit of `beta2`, of shape `1` or \
        (input_size).
        - **LSTMLIF.threshold** (torch.Tensor) - optional learnable \
        thresholds must be manually passed in, of shape `1` or (input_size).

    """

    def __init__(
        self,
        beta1=-0.5,
        beta2=0.5,
        gamma=0.5,
        threshold=1.0,
        spike_grad=None,
        surrogate_disable=False,
        init_hidden=False,
        inhibition=False,
        learn_beta=True,
        learn_threshold=False,
        reset_mechanism="subtract",
        state_quant=False,
        output=False,
        detach_reset=False,
    ):
        # before the base class, which keeps every instance in a list
        beta1 = torch.as_tensor(beta1, dtype=torch.get_default_dtype())
        beta2 = torch.as_tensor(beta2, dtype=torch.get_default_dtype())
        if not ((-1 < beta1) & (beta1 < 0)).all():
            raise ValueError("`beta1` must be between -1 and 0, exclusive.")
        if not ((0 < beta2) & (beta2 < 1)).all():
            raise ValueError("`beta2` must be between 0 and 1, exclusive.")

        super().__init__(
            threshold,
            _Triangle.apply if spike_grad is None else spike_grad,
            surrogate_disable,
            init_hidden,
            inhibition,
            learn_threshold,
            reset_mechanism,
            state_quant,
            output,
        )

        self._logit_register("c1", torch.logit(-beta1), learn_beta)
        self._logit_register("c2", torch.logit(beta2), learn_beta)
        self.register_buffer(
            "gamma", torch.as_tensor(gamma, dtype=torch.get_default_dtype())
        )

        self.detach_reset = detach_reset
        self._init_mem()

    def _logit_register(self, name, logit, learn):
        if learn:
            self.register_parameter(name, nn.Parameter(logit))
        else:
            self.register_buffer(name, logit)

    def _init_mem(self):
        self.register_buffer("dend", torch.zeros(0), False)
        self.register_buffer("mem", torch.zeros(0), False)

    def reset_mem(self):
        # empty, as at first: nothing has fired that a step would reset
        self.dend = torch.zeros(0, device=self.dend.device)
        self.mem = torch.zeros(0, device=self.mem.device)
        return self.dend, self.mem

    def forward(self, input_, dend=None, mem=None):

        if self.init_hidden and not (dend is None and mem is None):
            raise TypeError(
                "`dend` or `mem` should not be passed as an argument while "
                "`init_hidden=True`"
            )

        if dend is not None:
            self.dend = dend

        if mem is not None:
            self.mem = mem

        if not self.dend.shape == input_.shape:
            self.dend = torch.zeros_like(input_, device=self.dend.device)

        if self.mem.shape == input_.shape:
            dend, mem = self._reset_states(self.dend, self.mem)
        else:
            dend = self.dend
            mem = torch.zeros_like(input_, device=self.mem.device)

        self.dend, self.mem = self._charge(input_, dend, mem)

        if self.state_quant:
            self.dend = self.state_quant(self.dend)
            self.mem = self.state_quant(self.mem)

        if self.inhibition:
            spk = self.fire_inhibition(self.mem.size(0), self.mem)
        else:
            spk = self.fire(self.mem)

        if self.init_hidden and not self.output:
            return spk
        return spk, self.dend, self.mem

    def _reset_states(self, dend, mem):
        """Reset by the spike of the step before, as `mem` implies it."""
        if self.reset_mechanism == "none":
            return dend, mem
        spk = self.spike_grad(mem - self.threshold)
        if self.detach_reset:
            spk = spk.detach()
        if self.reset_mechanism == "subtract":
            return self._subtract(spk, dend, mem)
        return self._zero(spk, dend, mem)

    def _betas(self):
        #: betas
        return beta1, beta2

    def _charge(self, input_, dend, mem):
        beta1, beta2 = self._betas()
        #: charge
        return dend, mem

    def _subtract(self, spk, dend, mem):
        beta1, _ = self._betas()
        #: subtract_pre
        return dend, mem

    def _zero(self, spk, dend, mem):
        #: zero
        return dend, mem

    @classmethod
    def detach_hidden(cls):
        """Returns the hidden states, detached from the current graph.
        Intended for use in truncated backpropagation through time where
        hidden state variables are instance variables."""

        for instance in cls.instances:
            if isinstance(instance, LSTMLIF):
                instance.dend = instance.dend.detach()
                instance.mem = instance.mem.detach()

    @classmethod
    def reset_hidden(cls):
        """Used to clear hidden state variables to zero.
        Intended for use where hidden state variables are
        instance variables."""

        for instance in cls.instances:
            if isinstance(instance, LSTMLIF):
                instance.reset_mem()


class TCLIF(LSTMLIF):
    """
    Two-compartment neuron TC-LIF, as its authors' released code computes it.
    As :class:`LSTMLIF`, but the dendrite reads the soma after its reset, and
    is itself reset by :math:`γ`:

    .. math::

            D[t] = D'[t-1] + β_1U'[t-1] + I_{\\rm in}[t] \\\\
            U[t] = U'[t-1] + β_2D[t] \\\\
            D'[t] = D[t] - γS[t] \\\\
            U'[t] = U[t] - U_{\\rm thr}S[t]

    Arguments, inputs, outputs and learnable parameters are those of
    :class:`LSTMLIF`.

    *S. Zhang, Q. Yang, C. Ma, J. Wu, H. Li, and K. C. Tan (2024) TC-LIF: A
    Two-Compartment Spiking Neuron Model for Long-Term Sequential Modelling.
    AAAI 2024 (arXiv 2308.13250)*

    Example::

        import torch
        import torch.nn as nn
        import snntorch as snn

        net = nn.Sequential(
            nn.Linear(784, 128), snn.TCLIF(init_hidden=True)
        )
        spk = net(torch.rand(4, 784))

    """

    def _subtract(self, spk, dend, mem):
        #: subtract_post
        return dend, mem


class _Triangle(torch.autograd.Function):
    """Heaviside forward, a triangle of width and height 1 backward."""

    @staticmethod
    def forward(ctx, input_):
        ctx.save_for_backward(input_)
        return (input_ > 0).to(input_.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        #: triangle
        return grad_output * grad
