import torch
import torch.nn as nn
from .neurons import SpikingNeuron


class GatedSynaptic(SpikingNeuron):
    """
    A layer of neurons whose synaptic current has a gate of its own instead
    of a fixed decay rate, and whose spikes have several levels.
    The current holds a long-term memory; the membrane potential holds what
    was not emitted yet, so that the outputs add up to the current.

    The input is expected to be of size :math:`(N, X)` where
    :math:`N` is the batch size. As for :class:`SLSTM`, the weights are part
    of the layer, and only one time step is simulated each time it is called.

    .. math::

            F[t] = σ(W_fX[t] + b_f) \\\\
            C[t] = {\\rm max}(0, W_cX[t] + b_c) \\\\
            I_{\\rm syn}[t] = F[t]I_{\\rm syn}[t-1] + (1 - F[t])C[t] \\\\
            U[t] = U[t-1] - S[t-1] + I_{\\rm syn}[t] \\\\
            S[t] = Q(U[t])

    The output function :math:`Q` rounds toward zero to multiples of a step,
    where :math:`N` is the number of levels, :math:`b` the range of the
    membrane potential, and :math:`θ` the dead zone:

    .. math::

            q = {\\rm trunc}(U/Δ), Δ = \\frac{b}{N(1 - 10^{-4})} \\\\
            Q(U) = qΔ {\\rm ~if~} |q| > θ {\\rm ,~ otherwise~} 0

    Potentials outside of the range count as its ends. A spike is of one of
    the levels :math:`θ+1` to :math:`N-1`, so :math:`(θ+1)Δ` is the threshold;
    `levels=2, dead_zone=0` are spikes of one level. The gradient of :math:`Q`
    is 1 inside the range and 0 outside.

    * :math:`F` - Forget gate
    * :math:`C` - New part of the synaptic current
    * :math:`I_{\\rm syn}` - Synaptic current
    * :math:`U` - Membrane potential
    * :math:`S` - Output spike

    In training, the range follows the membrane potentials: in each step, it
    moves toward the largest and smallest one of the layer, before these are
    emitted. In evaluation it stays. As in the other neurons, the returned
    potential is that before the reset, which takes place first thing in the
    next step. Unlike there, the reset takes off what was emitted, and it is
    part of the computational graph; see `detach_reset`.

    The neuron is the one of *W. Ponghiran and K. Roy (2022) Spiking Neural
    Networks with Improved Inherent Recurrence Dynamics for Sequential
    Learning. AAAI 2022 (arXiv 2109.01905)*, v1 there. The equations are those
    of its released code, which also has batch normalization over all steps in
    the place of the bias, and dropout on the new part of the current.

    Example::

        import torch
        import torch.nn as nn
        import snntorch as snn

        # Define Network
        class Net(nn.Module):
            def __init__(self):
                super().__init__()

                num_inputs = 40
                num_hidden = 550
                num_outputs = 48

                # initialize layers
                self.gated1 = snn.GatedSynaptic(num_inputs, num_hidden)
                self.gated2 = snn.GatedSynaptic(num_hidden, num_hidden)
                self.fc = nn.Linear(num_hidden, num_outputs)

            def forward(self, x):
                # Initialize hidden states at t=0
                syn1, mem1 = self.gated1.reset_mem()
                syn2, mem2 = self.gated2.reset_mem()
                out_rec = []

                for step in x:  # time first
                    spk1, syn1, mem1 = self.gated1(step, syn1, mem1)
                    spk2, syn2, mem2 = self.gated2(spk1, syn2, mem2)
                    out_rec.append(self.fc(spk2))

                return torch.stack(out_rec)

    :param input_size: number of expected features in the input :math:`X`
    :type input_size: int

    :param hidden_size: number of neurons
    :type hidden_size: int

    :param bias: If `True`, adds a learnable bias to gate and new current.
        Defaults to `True`
    :type bias: bool, optional

    :param levels: number of levels :math:`N` on either side of zero, at least
        2. Defaults to 32, those of 6 bits with a sign
    :type levels: int, optional

    :param dead_zone: the largest level that is silenced, at most `levels - 2`.
        Defaults to 3
    :type dead_zone: int, optional

    :param mem_range: range :math:`b` of the membrane potential, or its first
        value. Defaults to 1
    :type mem_range: float, optional

    :param momentum: of the running extremes that the range follows in
        training; `None` for a fixed range. Defaults to 0.1
    :type momentum: float, optional

    :param init_hidden: Instantiates state variables as instance variables.
        Defaults to False
    :type init_hidden: bool, optional

    :param output: If `True` as well as `init_hidden=True`, states are
        returned when neuron is called. Defaults to False
    :type output: bool, optional

    :param detach_reset: If `True`, no gradient flows through the spike in the
        reset. Defaults to False
    :type detach_reset: bool, optional


    Inputs: \\input_, syn_0, mem_0
        - **input_** of shape `(batch, input_size)`: tensor containing input \
        features
        - **syn_0** of shape `(batch, hidden_size)`: tensor containing the \
        initial synaptic current for each element in the batch.
        - **mem_0** of shape `(batch, hidden_size)`: tensor containing the \
        initial membrane potential for each element in the batch.

    Outputs: spk, syn_1, mem_1
        - **spk** of shape `(batch, hidden_size)`: tensor containing the \
        output spikes, of several levels.
        - **syn_1** of shape `(batch, hidden_size)`: tensor containing the \
        next synaptic current for each element in the batch
        - **mem_1** of shape `(batch, hidden_size)`: tensor containing the \
        next membrane potential for each element in the batch

    Learnable Parameters:
        - **GatedSynaptic.gate.weight**, **GatedSynaptic.candidate.weight** \
        (torch.Tensor) - the learnable weights of gate and new current, of \
        shape (hidden_size, input_size)
        - **GatedSynaptic.gate.bias**, **GatedSynaptic.candidate.bias** \
        (torch.Tensor) - the learnable biases, of shape (hidden_size)

    """

    state_names = ("syn", "mem")

    def __init__(
        self,
        input_size,
        hidden_size,
        bias=True,
        levels=32,
        dead_zone=3,
        mem_range=1.0,
        momentum=0.1,
        init_hidden=False,
        output=False,
        detach_reset=False,
    ):
        # before the base class, which keeps every instance in a list
        if levels < 2 or not 0 <= dead_zone <= levels - 2:
            raise ValueError(
                "There must be at least 2 `levels` and a `dead_zone` from 0 "
                f"to `levels - 2`, got {levels} and {dead_zone}."
            )
        if not mem_range > 0:
            raise ValueError(f"`mem_range` must be above 0, got {mem_range}.")
        if momentum is not None and not 0 < momentum <= 1:
            raise ValueError(
                f"`momentum` must be above 0 and at most 1, got {momentum}."
            )

        # the potential itself is compared, with the levels
        super().__init__(threshold=0.0, init_hidden=init_hidden, output=output)

        self.input_size = input_size
        self.hidden_size = hidden_size
        self.levels = levels
        self.dead_zone = dead_zone
        self.momentum = momentum
        self.detach_reset = detach_reset

        self.gate = nn.Linear(input_size, hidden_size, bias)
        self.candidate = nn.Linear(input_size, hidden_size, bias)
        self._init_weights()

        self.register_buffer("mem_range", torch.tensor(float(mem_range)))
        if momentum is not None:
            self.register_buffer("mem_high", torch.tensor(0.0))
            self.register_buffer("mem_low", torch.tensor(0.0))
            self.register_buffer("updates", torch.tensor(0))
        self._init_mem()

    def _init_weights(self):
        bound = (3 / self.input_size) ** 0.5
        for layer in (self.gate, self.candidate):
            nn.init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def _init_mem(self):
        for name in self.state_names:
            self.register_buffer(name, torch.zeros(0), False)

    def reset_mem(self):
        for name in self.state_names:
            setattr(self, name, torch.zeros_like(getattr(self, name)))
        return tuple(getattr(self, name) for name in self.state_names)

    def forward(self, input_, syn=None, mem=None):
        self._set_states(input_, syn=syn, mem=mem)
        return self._step(self.gate(input_), self.candidate(input_))

    def _set_states(self, input_, **states):
        """Takes over the states that are passed; zeros where none fits."""
        if self.init_hidden and any(s is not None for s in states.values()):
            raise TypeError(
                f"`{'`, `'.join(states)}` should not be passed as an argument "
                "while `init_hidden=True`"
            )
        shape = (*input_.shape[:-1], self.hidden_size)
        for name, state in states.items():
            state = getattr(self, name) if state is None else state
            if state.shape != shape:
                state = input_.new_zeros(shape)
            setattr(self, name, state)

    def _step(self, gate, candidate):
        mem = self._reset_state(self.mem)
        self.syn, self.mem = self._charge(gate, candidate, self.syn, mem)

        if self.training and self.momentum is not None:
            self._follow(self.mem.detach())

        spk = self.fire(self.mem)

        if self.init_hidden and not self.output:
            return spk
        return spk, self.syn, self.mem

    def _charge(self, gate, candidate, syn, mem):
        #: charge
        return syn, mem

    def _reset_state(self, mem):
        """Takes off what was emitted in the step before."""
        spk = self.fire(mem)
        if self.detach_reset:
            spk = spk.detach()
        #: reset
        return mem

    def fire(self, mem):
        """Emits the membrane potential in levels.
        Returns spk."""
        return _MultiBit.apply(
            mem, self.mem_range, self.levels, self.dead_zone
        )

    def _follow(self, mem):
        """Moves the range toward the extremes of the layer. The buffers are
        replaced, not written to: the graph holds those of earlier steps."""
        self.updates = self.updates + 1
        # averages that start at 0 are too small by this factor
        weight = 1 - (1 - self.momentum) ** self.updates.double()
        self.mem_high = self.mem_high + self.momentum * (
            mem.amax() - self.mem_high
        )
        self.mem_low = self.mem_low + self.momentum * (
            mem.amin() - self.mem_low
        )
        self.mem_range = torch.maximum(
            (self.mem_high / weight).abs(), (self.mem_low / weight).abs()
        ).to(self.mem_range.dtype)

    @classmethod
    def detach_hidden(cls):
        """Returns the hidden states, detached from the current graph.
        Intended for use in truncated backpropagation through time where
        hidden state variables are instance variables."""

        for instance in cls.instances:
            if isinstance(instance, GatedSynaptic):
                for name in instance.state_names:
                    setattr(instance, name, getattr(instance, name).detach())

    @classmethod
    def reset_hidden(cls):
        """Used to clear hidden state variables to zero.
        Intended for use where hidden state variables are
        instance variables."""

        for instance in cls.instances:
            if isinstance(instance, GatedSynaptic):
                instance.reset_mem()


class RGatedSynaptic(GatedSynaptic):
    """
    :class:`GatedSynaptic` with recurrent connections for output spikes: gate
    and new current also get the output of the layer from the step before.

    .. math::

            F[t] = σ(W_fX[t] + b_f + V_fS[t-1]) \\\\
            C[t] = {\\rm max}(0, W_cX[t] + b_c + V_cS[t-1])

    It has half the weights of an LSTM. It is v2 of the citation of
    :class:`GatedSynaptic`. Arguments are those of :class:`GatedSynaptic`.

    Example::

        import torch
        import torch.nn as nn
        import snntorch as snn

        net = nn.Sequential(snn.RGatedSynaptic(40, 550, init_hidden=True))
        for step in torch.rand(100, 4, 40):
            spk = net(step)


    Inputs: \\input_, spk_0, syn_0, mem_0
        - **input_** of shape `(batch, input_size)`: tensor containing input \
        features
        - **spk_0** of shape `(batch, hidden_size)`: tensor containing the \
        output of the step before
        - **syn_0**, **mem_0**: see :class:`GatedSynaptic`

    Outputs: spk_1, syn_1, mem_1
        - as for :class:`GatedSynaptic`

    Learnable Parameters:
        - **RGatedSynaptic.recurrent_gate.weight**, \
        **RGatedSynaptic.recurrent_candidate.weight** (torch.Tensor) - the \
        recurrent weights, of shape (hidden_size, hidden_size)
        - those of :class:`GatedSynaptic`

    """

    state_names = ("spk", "syn", "mem")

    def _init_weights(self):
        super()._init_weights()
        size = self.hidden_size
        self.recurrent_gate = nn.Linear(size, size, bias=False)
        self.recurrent_candidate = nn.Linear(size, size, bias=False)

        # orthogonal as one matrix
        weight = torch.empty(2 * size, size)
        nn.init.orthogonal_(weight, gain=2**0.5)
        with torch.no_grad():
            self.recurrent_gate.weight.copy_(weight[:size])
            self.recurrent_candidate.weight.copy_(weight[size:])

    def forward(self, input_, spk=None, syn=None, mem=None):
        self._set_states(input_, spk=spk, syn=syn, mem=mem)
        returned = self._step(
            self.gate(input_) + self.recurrent_gate(self.spk),
            self.candidate(input_) + self.recurrent_candidate(self.spk),
        )
        self.spk = returned[0] if isinstance(returned, tuple) else returned
        return returned


class _MultiBit(torch.autograd.Function):
    """`n` levels of `v` in the range `b`, those up to `dead` are silent;
    straight through inside the range."""

    @staticmethod
    def forward(ctx, v, b, n, dead):
        ctx.save_for_backward(v, b)
        #: fire
        return spk

    @staticmethod
    def backward(ctx, grad_output):
        v, b = ctx.saved_tensors
        return grad_output * (v.abs() <= b), None, None, None
