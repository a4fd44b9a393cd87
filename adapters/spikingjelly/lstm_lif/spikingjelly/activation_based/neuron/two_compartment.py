from typing import Optional

import torch
import torch.nn as nn

from .. import functional, surrogate
from .base_node import BaseNode

__all__ = ["LSTMLIFNode", "TCLIFNode"]


class _TwoCompartmentNode(BaseNode):
    def __init__(
        self,
        beta1: float,
        beta2: float,
        gamma: float,
        v_threshold: float,
        v_reset: Optional[float],
        surrogate_function: Optional[surrogate.SurrogateFunctionBase],
        detach_reset: bool,
        step_mode: str,
        store_v_seq: bool,
    ) -> None:
        assert isinstance(beta1, float) and -1.0 < beta1 < 0.0
        assert isinstance(beta2, float) and 0.0 < beta2 < 1.0
        assert isinstance(gamma, float)
        if surrogate_function is None:
            surrogate_function = surrogate.PiecewiseQuadratic(alpha=1.0)
        super().__init__(
            v_threshold,
            v_reset,
            surrogate_function,
            detach_reset,
            step_mode=step_mode,
            store_v_seq=store_v_seq,
        )
        self.c1 = nn.Parameter(torch.logit(torch.tensor(-beta1)))
        self.c2 = nn.Parameter(torch.logit(torch.tensor(beta2)))
        self.gamma = gamma
        self.register_memory("v_dend", 0.0)

    def extra_repr(self) -> str:
        with torch.no_grad():
            beta1, beta2 = self._betas()
        return (
            super().extra_repr()
            + f", beta1={beta1}, beta2={beta2}, gamma={self.gamma}"
            + f", store_v_seq={self.store_v_seq}"
        )

    def _step(self, *args) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def _betas(self) -> tuple[torch.Tensor, torch.Tensor]:
        #: betas
        return beta1, beta2

    def materialize_states(
        self,
        inputs: tuple[torch.Tensor, ...],
        states: tuple[object, ...],
        step_mode: str,
    ) -> tuple[object, ...]:
        v, v_dend = super().materialize_states(inputs, states, step_mode)
        if not isinstance(v_dend, torch.Tensor):
            v_dend = torch.full_like(v, v_dend, requires_grad=False)
        elif v_dend.shape != v.shape:
            v_dend = torch.zeros_like(v, requires_grad=False)
        elif v_dend.dtype != v.dtype or v_dend.device != v.device:
            v_dend = v_dend.to(dtype=v.dtype, device=v.device)
        return v, v_dend

    def _steps(
        self,
        x_seq: tuple[torch.Tensor, ...],
        states: tuple[object, ...],
        v_steps: Optional[list[torch.Tensor]] = None,
    ) -> tuple[list[torch.Tensor], tuple[object, ...]]:
        v, v_dend = states
        beta1, beta2 = self._betas()
        spike_steps = []
        for x in x_seq:
            spike, v, v_dend = self._step(
                x,
                v,
                v_dend,
                beta1,
                beta2,
                self.gamma,
                self.v_threshold,
                self.v_reset,
                self.surrogate_function,
                self.detach_reset,
            )
            spike_steps.append(spike)
            if v_steps is not None:
                v_steps.append(v)
        return spike_steps, (v, v_dend)

    def single_step_functional_forward(
        self,
        inputs: tuple[torch.Tensor, ...],
        states: tuple[object, ...],
        **kwargs: object,
    ) -> tuple[tuple[torch.Tensor, ...], tuple[object, ...]]:
        (spike,), states = self._steps(inputs, states)
        return (spike,), states

    def multi_step_functional_forward(
        self,
        inputs: tuple[torch.Tensor, ...],
        states: tuple[object, ...],
        **kwargs: object,
    ) -> tuple[tuple[torch.Tensor, ...], tuple[object, ...]]:
        spike_steps, states = self._steps(inputs[0].unbind(0), states)
        return (torch.stack(spike_steps),), states

    def multi_step_forward(self, x_seq: torch.Tensor, *args, **kwargs):
        if not self.store_v_seq:
            return super().multi_step_forward(x_seq, *args, **kwargs)

        states = self.materialize_states((x_seq,), tuple(self._memories.values()), "m")
        v_steps = []
        spike_steps, (self.v, self.v_dend) = self._steps(
            x_seq.unbind(0), states, v_steps
        )
        self.v_seq = torch.stack(v_steps)
        return torch.stack(spike_steps)


class LSTMLIFNode(_TwoCompartmentNode):
    def __init__(
        self,
        beta1: float = -0.5,
        beta2: float = 0.5,
        gamma: float = 0.5,
        v_threshold: float = 1.0,
        v_reset: Optional[float] = None,
        surrogate_function: Optional[surrogate.SurrogateFunctionBase] = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        store_v_seq: bool = False,
    ) -> None:
        r"""
        **API Language** - :ref:`中文 <LSTMLIFNode.__init__-cn>` | :ref:`English <LSTMLIFNode.__init__-en>`

        ----

        .. _LSTMLIFNode.__init__-cn:

        * **中文**

        LSTM-LIF 神经元：由树突和胞体组成的双室脉冲神经元，面向具有长期依赖的序列，由
        `Long Short-term Memory with Two-Compartment Spiking Neuron
        <https://arxiv.org/abs/2307.07231>`_ 提出。

        树突 :math:`V^D[t]` 积累输入并保存长期记忆，胞体 :math:`V^S[t]` 读取树突、发放脉冲，
        并反馈给树突。神经元没有泄漏，两个耦合系数符号相反且可学习：

        .. math::
            V^D[t] = V^D[t-1] + \beta_1 V^S[t-1] + X[t] - \gamma S[t-1]

        .. math::
            V^S[t] = V^S[t-1] + \beta_2 V^D[t] - V_{th} S[t-1]

        .. math::
            S[t] = \Theta(V^S[t] - V_{th})

        其中 :math:`\beta_1 = -\sigma(c_1) \in (-1, 0)`，
        :math:`\beta_2 = \sigma(c_2) \in (0, 1)`，:math:`c_1` 和 :math:`c_2` 为可学习参数。
        树突读取的是重置之前的胞体膜电位 :math:`V^S[t-1]`。与其他神经元一样，本模块在时间步
        末尾执行重置并保存重置之后的状态：

        .. math::
            V^D[t] \leftarrow V^D[t] - (\gamma - \beta_1 V_{th}) S[t], \qquad
            V^S[t] \leftarrow V^S[t] - V_{th} S[t]

        两种写法在实数运算下等价。若 ``v_reset`` 不为 ``None``，则胞体被重置为 ``v_reset``，
        树突不重置。``v`` （胞体）和 ``v_dend`` （树突）是持久状态，形状均为 ``[N, *]``；
        :meth:`reset` 将 ``v`` 恢复为 ``v_reset`` （软重置时为零），将 ``v_dend`` 恢复为零。
        ``train()`` 和 ``eval()`` 的前向语义相同。

        .. Note::

            这里的方程是 `TC-LIF: A Two-Compartment Spiking Neuron Model for Long-Term
            Sequential Modelling <https://arxiv.org/abs/2308.13250>`_ （AAAI 2024，作者相同）
            印出的式 (10)-(12)。将其视为 LSTM-LIF 预印本的方程是一个推断。作者开源代码所计算的
            形式见 :class:`TCLIFNode`。

        :param beta1: 胞体到树突的系数 :math:`\beta_1` 的初值，取值于 ``(-1, 0)``
        :type beta1: float
        :param beta2: 树突到胞体的系数 :math:`\beta_2` 的初值，取值于 ``(0, 1)``
        :type beta2: float
        :param gamma: 树突的重置量，不学习
        :type gamma: float
        :param v_threshold: 胞体的放电阈值
        :type v_threshold: float
        :param v_reset: 胞体的重置电位。默认为 ``None``，即对两个室均使用软重置
        :type v_reset: Optional[float]
        :param surrogate_function: 替代函数。默认为 ``None``，此时每个实例创建自己的
            ``surrogate.PiecewiseQuadratic(alpha=1.0)``，即论文式 (21) 中宽度为 1 的三角形
        :type surrogate_function: Optional[surrogate.SurrogateFunctionBase]
        :param detach_reset: 是否将重置过程的计算图分离。默认为 ``False``，与论文的训练一致
        :type detach_reset: bool
        :param step_mode: 步进模式，``"s"`` 表示单步，``"m"`` 表示多步
        :type step_mode: str
        :param store_v_seq: 是否将每个时间步重置后的胞体膜电位保存到 ``self.v_seq``，
            形状为 ``[T, N, *]``
        :type store_v_seq: bool
        :raises AssertionError: ``beta1`` 、 ``beta2`` 或 ``gamma`` 不是浮点数，或系数超出取值范围
            时抛出
        :raises ValueError: ``step_mode`` 不是 ``"s"`` 或 ``"m"`` 时抛出

        ----

        .. _LSTMLIFNode.__init__-en:

        * **English**

        LSTM-LIF: a spiking neuron with two compartments, a dendrite and a soma, for
        sequences with long-term dependencies, proposed in
        `Long Short-term Memory with Two-Compartment Spiking Neuron
        <https://arxiv.org/abs/2307.07231>`_.

        The dendrite :math:`V^D[t]` integrates the input and holds a long-term memory.
        The soma :math:`V^S[t]` reads the dendrite, fires, and is fed back to it. There
        is no leak, and the two coupling coefficients are opposite in sign and
        learnable:

        .. math::
            V^D[t] = V^D[t-1] + \beta_1 V^S[t-1] + X[t] - \gamma S[t-1]

        .. math::
            V^S[t] = V^S[t-1] + \beta_2 V^D[t] - V_{th} S[t-1]

        .. math::
            S[t] = \Theta(V^S[t] - V_{th})

        with :math:`\beta_1 = -\sigma(c_1) \in (-1, 0)`,
        :math:`\beta_2 = \sigma(c_2) \in (0, 1)`, and learnable :math:`c_1` and
        :math:`c_2`. The dendrite reads the soma :math:`V^S[t-1]` before its reset. As
        in the other neurons, this module resets at the end of the time step and stores
        the states after the reset:

        .. math::
            V^D[t] \leftarrow V^D[t] - (\gamma - \beta_1 V_{th}) S[t], \qquad
            V^S[t] \leftarrow V^S[t] - V_{th} S[t]

        Both forms are the same in real arithmetic. If ``v_reset`` is not ``None``, the
        soma is set to ``v_reset`` and the dendrite is not reset. ``v`` (soma) and
        ``v_dend`` (dendrite) are persistent states, both shaped ``[N, *]``;
        :meth:`reset` restores ``v`` to ``v_reset`` (zero with a soft reset) and
        ``v_dend`` to zero. ``train()`` and ``eval()`` have the same forward semantics.

        .. admonition:: Note
            :class: note

            The equations are Eq. (10)-(12) as printed in `TC-LIF: A Two-Compartment
            Spiking Neuron Model for Long-Term Sequential Modelling
            <https://arxiv.org/abs/2308.13250>`_ (AAAI 2024, by the same authors). That
            they are those of the LSTM-LIF preprint is an inference. See
            :class:`TCLIFNode` for the form that the authors' released code computes.

        :param beta1: Initial coefficient :math:`\beta_1` from soma to dendrite, in
            ``(-1, 0)``
        :type beta1: float
        :param beta2: Initial coefficient :math:`\beta_2` from dendrite to soma, in
            ``(0, 1)``
        :type beta2: float
        :param gamma: Reset of the dendrite, not learnable
        :type gamma: float
        :param v_threshold: Firing threshold of the soma
        :type v_threshold: float
        :param v_reset: Reset voltage of the soma. ``None`` (the default) selects the
            soft reset of both compartments
        :type v_reset: Optional[float]
        :param surrogate_function: Surrogate function. ``None`` (the default) creates a
            ``surrogate.PiecewiseQuadratic(alpha=1.0)`` of the instance's own, the
            triangle of width 1 in Eq. (21) of the paper
        :type surrogate_function: Optional[surrogate.SurrogateFunctionBase]
        :param detach_reset: Whether to detach the reset from the computation graph.
            ``False`` by default, as in the published training
        :type detach_reset: bool
        :param step_mode: Step mode, ``"s"`` for single-step or ``"m"`` for multi-step
        :type step_mode: str
        :param store_v_seq: Whether to store the somatic voltage after the reset of each
            time step in ``self.v_seq``, shaped ``[T, N, *]``
        :type store_v_seq: bool
        :raises AssertionError: If ``beta1``, ``beta2``, or ``gamma`` is not a float, or
            a coefficient is out of its range
        :raises ValueError: If ``step_mode`` is neither ``"s"`` nor ``"m"``

        ----

        * **代码示例 | Example**

        .. code-block:: python

            net = nn.Sequential(
                layer.Linear(1, 64), neuron.LSTMLIFNode(), layer.Linear(64, 10)
            )
            functional.set_step_mode(net, "m")
            y = net(torch.rand(784, 16, 1)).mean(0)
            functional.reset_net(net)
        """
        super().__init__(
            beta1,
            beta2,
            gamma,
            v_threshold,
            v_reset,
            surrogate_function,
            detach_reset,
            step_mode,
            store_v_seq,
        )

    def _step(self, *args) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return functional.lstm_lif_step(*args)


class TCLIFNode(_TwoCompartmentNode):
    def __init__(
        self,
        beta1: float = -0.5,
        beta2: float = 0.5,
        gamma: float = 0.5,
        v_threshold: float = 1.0,
        v_reset: Optional[float] = None,
        surrogate_function: Optional[surrogate.SurrogateFunctionBase] = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        store_v_seq: bool = False,
    ) -> None:
        r"""
        **API Language** - :ref:`中文 <TCLIFNode.__init__-cn>` | :ref:`English <TCLIFNode.__init__-en>`

        ----

        .. _TCLIFNode.__init__-cn:

        * **中文**

        TC-LIF 双室神经元，由 `TC-LIF: A Two-Compartment Spiking Neuron Model for
        Long-Term Sequential Modelling <https://arxiv.org/abs/2308.13250>`_ （AAAI 2024）
        提出，采用作者开源代码所计算的形式。

        令 :math:`V^D[t]` 为树突电位，:math:`V^S[t]` 为胞体膜电位，均为重置之后的值，则

        .. math::
            H^D[t] = V^D[t-1] + \beta_1 V^S[t-1] + X[t]

        .. math::
            H^S[t] = V^S[t-1] + \beta_2 H^D[t]

        .. math::
            S[t] = \Theta(H^S[t] - V_{th})

        .. math::
            V^D[t] = H^D[t] - \gamma S[t], \qquad V^S[t] = H^S[t] - V_{th} S[t]

        与 :class:`LSTMLIFNode` 的唯一区别是树突读取重置之后的胞体膜电位。硬重置
        （``v_reset`` 不为 ``None``）时胞体被重置为 ``v_reset``，树突不重置，此时两个类相同。
        状态、:meth:`reset` 的行为、可学习参数 ``c1`` 和 ``c2`` 均与 :class:`LSTMLIFNode`
        相同。``train()`` 和 ``eval()`` 的前向语义相同。

        :param beta1: 胞体到树突的系数 :math:`\beta_1 = -\sigma(c_1)` 的初值，取值于 ``(-1, 0)``
        :type beta1: float
        :param beta2: 树突到胞体的系数 :math:`\beta_2 = \sigma(c_2)` 的初值，取值于 ``(0, 1)``
        :type beta2: float
        :param gamma: 树突的重置量，不学习
        :type gamma: float
        :param v_threshold: 胞体的放电阈值
        :type v_threshold: float
        :param v_reset: 胞体的重置电位。默认为 ``None``，即对两个室均使用软重置
        :type v_reset: Optional[float]
        :param surrogate_function: 替代函数。默认为 ``None``，此时每个实例创建自己的
            ``surrogate.PiecewiseQuadratic(alpha=1.0)``，即论文式 (21) 中宽度为 1 的三角形
        :type surrogate_function: Optional[surrogate.SurrogateFunctionBase]
        :param detach_reset: 是否将重置过程的计算图分离。默认为 ``False``，与论文的训练一致
        :type detach_reset: bool
        :param step_mode: 步进模式，``"s"`` 表示单步，``"m"`` 表示多步
        :type step_mode: str
        :param store_v_seq: 是否将每个时间步重置后的胞体膜电位保存到 ``self.v_seq``，
            形状为 ``[T, N, *]``
        :type store_v_seq: bool
        :raises AssertionError: ``beta1`` 、 ``beta2`` 或 ``gamma`` 不是浮点数，或系数超出取值范围
            时抛出
        :raises ValueError: ``step_mode`` 不是 ``"s"`` 或 ``"m"`` 时抛出

        ----

        .. _TCLIFNode.__init__-en:

        * **English**

        The two-compartment TC-LIF neuron proposed in `TC-LIF: A Two-Compartment
        Spiking Neuron Model for Long-Term Sequential Modelling
        <https://arxiv.org/abs/2308.13250>`_ (AAAI 2024), in the form that the authors'
        released code computes.

        Let :math:`V^D[t]` be the dendritic and :math:`V^S[t]` the somatic voltage, both
        after the reset. Then

        .. math::
            H^D[t] = V^D[t-1] + \beta_1 V^S[t-1] + X[t]

        .. math::
            H^S[t] = V^S[t-1] + \beta_2 H^D[t]

        .. math::
            S[t] = \Theta(H^S[t] - V_{th})

        .. math::
            V^D[t] = H^D[t] - \gamma S[t], \qquad V^S[t] = H^S[t] - V_{th} S[t]

        The only difference from :class:`LSTMLIFNode` is that the dendrite reads the
        soma after its reset. With a hard reset (``v_reset`` is not ``None``) the soma
        is set to ``v_reset`` and the dendrite is not reset; both classes are then the
        same. States, the behavior of :meth:`reset`, and the learnable parameters
        ``c1`` and ``c2`` are those of :class:`LSTMLIFNode`. ``train()`` and ``eval()``
        have the same forward semantics.

        :param beta1: Initial coefficient :math:`\beta_1 = -\sigma(c_1)` from soma to
            dendrite, in ``(-1, 0)``
        :type beta1: float
        :param beta2: Initial coefficient :math:`\beta_2 = \sigma(c_2)` from dendrite to
            soma, in ``(0, 1)``
        :type beta2: float
        :param gamma: Reset of the dendrite, not learnable
        :type gamma: float
        :param v_threshold: Firing threshold of the soma
        :type v_threshold: float
        :param v_reset: Reset voltage of the soma. ``None`` (the default) selects the
            soft reset of both compartments
        :type v_reset: Optional[float]
        :param surrogate_function: Surrogate function. ``None`` (the default) creates a
            ``surrogate.PiecewiseQuadratic(alpha=1.0)`` of the instance's own, the
            triangle of width 1 in Eq. (21) of the paper
        :type surrogate_function: Optional[surrogate.SurrogateFunctionBase]
        :param detach_reset: Whether to detach the reset from the computation graph.
            ``False`` by default, as in the published training
        :type detach_reset: bool
        :param step_mode: Step mode, ``"s"`` for single-step or ``"m"`` for multi-step
        :type step_mode: str
        :param store_v_seq: Whether to store the somatic voltage after the reset of each
            time step in ``self.v_seq``, shaped ``[T, N, *]``
        :type store_v_seq: bool
        :raises AssertionError: If ``beta1``, ``beta2``, or ``gamma`` is not a float, or
            a coefficient is out of its range
        :raises ValueError: If ``step_mode`` is neither ``"s"`` nor ``"m"``
        """
        super().__init__(
            beta1,
            beta2,
            gamma,
            v_threshold,
            v_reset,
            surrogate_function,
            detach_reset,
            step_mode,
            store_v_seq,
        )

    def _step(self, *args) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return functional.tc_lif_step(*args)
