import weakref

import torch
import torch.nn as nn
from .neurons import SpikingNeuron


class SkipRecurrent(nn.Module):
    """
    Recurrent connection around a neuron that skips time steps: each neuron
    of the layer also gets the output spikes of the layer from `span` steps
    ago, through a matrix of weights.

    .. math::

            I_{\\rm in}[t] = X[t] + WS[t - λ]

    * :math:`X` - Input to the layer
    * :math:`I_{\\rm in}` - Input current of the neuron
    * :math:`S` - Output spikes of the layer; those before the first step are 0
    * :math:`W` - Recurrent weights, without bias, orthogonal at the start
    * :math:`λ` - Number of steps that are skipped to, `span`

    With `span=1` it is the all-to-all connection of :class:`RLeaky` around any
    neuron. A gradient that goes back through the connection takes `span`
    steps at a time, so over a long sequence it passes fewer spikes.

    The outputs are kept as they are, not copied: time and memory are linear in
    the number of steps, whatever the span.

    The connection is presented in *S. Xu et al. (2025) ASRC-SNN: Adaptive Skip
    Recurrent Connection Spiking Neural Network. arXiv 2505.11455*. Equation
    and initial weights are those of its released code, which has them around
    a leaky integrate-and-fire neuron with `beta=0.5`.

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
                self.lif1 = snn.SkipRecurrent(
                    snn.Leaky(beta=0.5), num_hidden, span=8
                )
                self.fc2 = nn.Linear(num_hidden, num_outputs)
                self.lif2 = snn.Leaky(beta=0.5)

            def forward(self, x):
                past1, mem1 = self.lif1.reset_mem()
                mem2 = self.lif2.reset_mem()
                spk2_rec = []

                for step in x:  # time first
                    cur1 = self.fc1(step)
                    spk1, past1, mem1 = self.lif1(cur1, past1, mem1)
                    cur2 = self.fc2(spk1)
                    spk2, mem2 = self.lif2(cur2, mem2)
                    spk2_rec.append(spk2)

                return torch.stack(spk2_rec)

    :param neuron: a neuron of snnTorch that computes one step per call and
        has no recurrent connection of its own. With its `init_hidden=True`
        all states are instance variables, those of the connection too
    :type neuron: snntorch.SpikingNeuron

    :param features: number of neurons, the last dimension of the input
    :type features: int

    :param span: how many steps ago the spikes were emitted, at least 1
    :type span: int


    Inputs: \\input_, past_0, states of the neuron
        - **input_** of shape `(batch, features)`: tensor containing input \
        features
        - **past_0**: tuple of the last `span` outputs, newest last, each of \
        shape `(batch, features)`; empty at the start
        - the states of the neuron, in its order

    Outputs: spk, past_1, states of the neuron
        - **spk** of shape `(batch, features)`: tensor containing the output \
        spikes.
        - **past_1**: tuple of the last `span` outputs
        - the states of the neuron, in its order

    Learnable Parameters:
        - **SkipRecurrent.recurrent.weight** (torch.Tensor) - the recurrent \
        weights, of shape (features, features).
        - those of the neuron.

    """

    _instances = weakref.WeakSet()

    def __init__(self, neuron, features, span):
        super().__init__()

        if not isinstance(neuron, SpikingNeuron) or not hasattr(
            neuron, "reset_mem"
        ):
            raise TypeError(
                "`neuron` must be a neuron of snnTorch that computes one step "
                f"per call, e.g., `snn.Leaky(beta=0.9)`, got {neuron!r}."
            )
        if hasattr(neuron, "recurrent"):
            raise TypeError(
                f"{type(neuron).__name__} has a recurrent connection of its "
                "own; pass the neuron without it."
            )
        if span < 1:
            raise ValueError(f"The span must be at least 1, got {span}.")

        self.neuron = neuron
        self.span = span
        self.recurrent = nn.Linear(features, features, bias=False)
        nn.init.orthogonal_(self.recurrent.weight)

        # the buffers of a neuron that are not saved are its states
        saved = neuron.state_dict()
        self._states = [n for n, _ in neuron.named_buffers() if n not in saved]
        self.num_states = len(self._states)
        self.past = ()
        SkipRecurrent._instances.add(self)

    def reset_mem(self):
        """Clears the past outputs and resets the states of the neuron, and
        returns them."""
        self.past = ()
        states = self.neuron.reset_mem()
        states = states if isinstance(states, tuple) else (states,)
        return self.past, *states

    def forward(self, input_, past=None, *states):

        if self.neuron.init_hidden and past is not None:
            raise TypeError(
                "`past` should not be passed as an argument while the neuron "
                "has `init_hidden=True`"
            )

        if past is not None:
            if len(past) not in (0, self.span):
                raise ValueError(
                    f"`past` must hold the last {self.span} outputs, "
                    f"got {len(past)}."
                )
            self.past = tuple(past)

        if not self.past or self.past[-1].shape != input_.shape:
            self.past = (torch.zeros_like(input_),) * self.span

        returned = self.neuron(
            input_ + self.recurrent(self._heard(self.past)), *states
        )
        spk, *states = returned if isinstance(returned, tuple) else (returned,)
        self.past = self.past[1:] + (spk,)

        if self.neuron.init_hidden and not self.neuron.output:
            return spk
        return spk, self.past, *states

    def _heard(self, past):
        """What comes back to the layer, of the last outputs."""
        return past[0]

    def extra_repr(self):
        return f"span={self.span}"

    @classmethod
    def detach_hidden(cls):
        """Returns the hidden states, detached from the current graph.
        Intended for use in truncated backpropagation through time where
        hidden state variables are instance variables."""

        for instance in cls._instances:
            # not in place: what was recorded keeps its graph
            instance.past = tuple(spk.detach() for spk in instance.past)
            neuron = instance.neuron
            for name in instance._states:
                setattr(neuron, name, getattr(neuron, name).detach())

    @classmethod
    def reset_hidden(cls):
        """Used to clear hidden state variables to zero.
        Intended for use where hidden state variables are
        instance variables."""

        for instance in cls._instances:
            instance.reset_mem()


class AdaptiveSkipRecurrent(SkipRecurrent):
    """
    :class:`SkipRecurrent` that learns how many steps it skips to. In training,
    it hears a weighted mean of the last :math:`K` outputs of the layer; as the
    temperature falls, the weights settle on one of them. In evaluation, it
    hears the output that has the largest weight.

    .. math::

            I_{\\rm in}[t] = X[t] + W\\sum_{k=1}^{K}p_kS[t - k],
            p = {\\rm softmax}(z / τ) \\quad {\\rm (training)} \\\\
            I_{\\rm in}[t] = X[t] + WS[t - λ],
            λ = {\\rm argmax}_k z_k \\quad {\\rm (evaluation)}

    * :math:`K` - Largest number of steps that are skipped to, `max_span`
    * :math:`z` - Learnable logits of the layer, 0 at the start
    * :math:`τ` - Temperature

    To be called once per epoch: `step_temperature()`. The released code trains
    the logits with a learning rate of their own, 0.1, without weight decay.
    Of equal logits the first one counts, so a layer that was not trained has
    a span of 1 in evaluation.

    Citation, inputs and outputs are those of :class:`SkipRecurrent`; `past`
    always holds the last `max_span` outputs.

    Example::

        import torch
        import torch.nn as nn
        import snntorch as snn

        net = nn.Sequential(
            nn.Linear(784, 128),
            snn.AdaptiveSkipRecurrent(
                snn.Leaky(beta=0.5, init_hidden=True), 128, max_span=16
            ),
        )

        for epoch in range(2):
            for step in range(100):
                spk = net(torch.rand(4, 784))
            net[1].step_temperature()

    :param neuron: see :class:`SkipRecurrent`
    :type neuron: snntorch.SpikingNeuron

    :param features: number of neurons, the last dimension of the input
    :type features: int

    :param max_span: largest number of steps that are skipped to, at least 1
    :type max_span: int

    :param temperature: temperature at the start. Defaults to 1
    :type temperature: float, optional

    :param temperature_decay: factor of the temperature in each call of
        `step_temperature()`. Defaults to 0.96
    :type temperature_decay: float, optional

    Learnable Parameters:
        - **AdaptiveSkipRecurrent.logits** (torch.Tensor) - logits of the \
        steps that are skipped to, of shape (max_span), that of one step first.
        - those of :class:`SkipRecurrent`.

    """

    def __init__(
        self,
        neuron,
        features,
        max_span,
        temperature=1.0,
        temperature_decay=0.96,
    ):
        super().__init__(neuron, features, max_span)

        if not temperature > 0:
            raise ValueError(
                f"The temperature must be above 0, got {temperature}."
            )
        if not 0 < temperature_decay <= 1:
            raise ValueError(
                "`temperature_decay` must be above 0 and at most 1, got "
                f"{temperature_decay}."
            )

        self.logits = nn.Parameter(torch.zeros(max_span))
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        self.temperature_decay = temperature_decay

    def step_temperature(self):
        """Multiplies the temperature by its decay; once per epoch."""
        # a temperature of 0 would divide 0 by 0
        smallest = torch.finfo(self.temperature.dtype).tiny
        self.temperature.mul_(self.temperature_decay).clamp_(min=smallest)

    def weights(self):
        """Weight of each number of steps in training, that of one step
        first."""
        # relative to the largest: at no temperature does it overflow
        logits = self.logits - self.logits.detach().max()
        return (logits / self.temperature).softmax(0)

    def lag(self):
        """Number of steps that is skipped to in evaluation."""
        return 1 + int(self.logits.argmax())

    def _heard(self, past):
        if self.training:
            weights = self.weights().flip(0)  # newest last, as the outputs
            return torch.tensordot(weights, torch.stack(past), 1)
        return past[-self.lag()]

    def extra_repr(self):
        return f"max_span={self.span}, temperature={self.temperature:g}"
