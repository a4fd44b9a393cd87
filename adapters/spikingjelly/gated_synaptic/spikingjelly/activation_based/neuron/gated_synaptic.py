from typing import Optional

import torch

from .. import base, functional

__all__ = ["GatedSynapticNode"]

# The authors' constant: the largest voltage must not round up to a missing level.
_EPSILON = 1e-4


class _MultiBitSpike(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, v: torch.Tensor, v_range: torch.Tensor, levels: int, dead_zone: int
    ) -> torch.Tensor:
        ctx.save_for_backward(v, v_range)
        scale = levels * (1 - _EPSILON) / v_range
        spike = torch.trunc(scale * v.clamp(-v_range, v_range)) / scale
        # Silent where the range is too small to divide by, but not where it is NaN.
        return torch.where(spike.abs() > dead_zone / scale, spike, 0.0 * v_range)

    @staticmethod
    def backward(
        ctx, grad_output: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None]:
        v, v_range = ctx.saved_tensors
        inside = (v >= -v_range) & (v <= v_range)
        return grad_output * inside.to(grad_output.dtype), None, None, None


class GatedSynapticNode(base.MemoryModule):
    def __init__(
        self,
        levels: int = 32,
        dead_zone: int = 3,
        v_range: float = 1.0,
        momentum: Optional[float] = 0.1,
        alpha: float = 1.0,
        detach_reset: bool = False,
        step_mode: str = "s",
    ) -> None:
        r"""
        **API Language** - :ref:`中文 <GatedSynapticNode.__init__-cn>` | :ref:`English <GatedSynapticNode.__init__-en>`

        ----

        .. _GatedSynapticNode.__init__-cn:

        * **中文**

        门控突触神经元：突触电流由输入驱动的遗忘门控制，输出为多比特。由 `Spiking Neural
        Networks with Improved Inherent Recurrence Dynamics for Sequential Learning
        <https://arxiv.org/abs/2109.01905>`_ （AAAI 2022）提出，采用作者开源代码所计算的形式。

        本模块是逐元素的，以 ``node(gate, candidate)`` 的形式调用，两个输入是遗忘门和新电流的
        预激活值 :math:`G[t]` 和 :math:`C[t]`，由用户的权重层给出。突触电流 :math:`I[t]` 保存记忆，
        膜电位 :math:`V[t]` 保存尚未输出的部分：

        .. math::
            F[t] = \sigma(G[t])

        .. math::
            I[t] = F[t] \odot I[t-1] + (1 - F[t]) \odot \text{ReLU}(C[t])

        .. math::
            H[t] = \alpha V[t-1] + I[t], \qquad S[t] = Q(H[t]), \qquad V[t] = H[t] - S[t]

        多比特输出 :math:`Q` 将膜电位向零舍入到 :math:`b / (N (1 - 10^{-4}))` 的整数倍，其中
        :math:`N` 为 ``levels``，:math:`b` 为膜电位的范围 ``v_range``。绝对值不大于 ``dead_zone``
        的整数编码输出零，绝对值最大的编码为 ``levels - 1``。反向传播时，:math:`|H| \le b` 处的梯度
        为 1，其余为 0（直通估计）。:math:`\alpha = 1` 时，输出之和等于电流之和减去残余的膜电位。

        ``momentum`` 不为 ``None`` 且模块处于训练模式时，:math:`b` 在每个时间步量化之前更新为整层
        膜电位极值的（偏差校正的）指数滑动平均；推理时 :math:`b` 不变。与批归一化相同，``v_range``
        及其统计量 ``v_max`` 、 ``v_min`` 和 ``num_updates`` 是 buffer，保存在 ``state_dict`` 中，
        :meth:`reset` 不改变它们，训练模式下的 functional forward 也会更新它们。

        ``v`` 和 ``i`` 是持久状态，形状均为 ``[N, *]``，:meth:`reset` 将两者恢复为零。

        .. Note::

            :class:`GatedLIFNode` （GLIF）的门是可学习的常数，用来混合 LIF 的不同机制，输出为二值
            脉冲；本模块的门由每个时间步的输入计算。:class:`ILIFNode` 是 LIF，输出非负的四舍五入
            计数，上限固定；本模块的输出带符号、带死区，范围可跟随膜电位。

        :param levels: 零两侧各自的输出级数 :math:`N`，不小于 ``2``
        :type levels: int
        :param dead_zone: 绝对值最大的静默编码，取值于 ``[0, levels - 2]``
        :type dead_zone: int
        :param v_range: 范围 :math:`b` 的初值，大于 ``0``
        :type v_range: float
        :param momentum: 滑动平均的动量，取值于 ``(0, 1]``；``None`` 表示范围固定不变
        :type momentum: Optional[float]
        :param alpha: 膜电位的衰减系数 :math:`\alpha`，取值于 ``[0, 1]``
        :type alpha: float
        :param detach_reset: 是否在重置分支中分离输出的梯度，默认为 ``False``
        :type detach_reset: bool
        :param step_mode: 步进模式，``"s"`` 表示单步，``"m"`` 表示多步
        :type step_mode: str
        :raises ValueError: ``levels`` 、 ``dead_zone`` 、 ``v_range`` 、 ``momentum`` 或 ``alpha``
            超出取值范围，或 ``step_mode`` 不是 ``"s"`` 或 ``"m"`` 时抛出

        ----

        .. _GatedSynapticNode.__init__-en:

        * **English**

        A neuron with a gated synaptic current and a multi-bit output: the current is
        held by a forget gate that is driven by the input. Proposed in `Spiking Neural
        Networks with Improved Inherent Recurrence Dynamics for Sequential Learning
        <https://arxiv.org/abs/2109.01905>`_ (AAAI 2022), in the form that the authors'
        released code computes.

        This module is element-wise and is called as ``node(gate, candidate)``. The two
        inputs are the pre-activations :math:`G[t]` and :math:`C[t]` of the forget gate
        and of the new current, from weight layers of the user's. The synaptic current
        :math:`I[t]` holds the memory, and the membrane voltage :math:`V[t]` what was not
        emitted yet:

        .. math::
            F[t] = \sigma(G[t])

        .. math::
            I[t] = F[t] \odot I[t-1] + (1 - F[t]) \odot \text{ReLU}(C[t])

        .. math::
            H[t] = \alpha V[t-1] + I[t], \qquad S[t] = Q(H[t]), \qquad V[t] = H[t] - S[t]

        The multi-bit output :math:`Q` rounds the voltage toward zero to a multiple of
        :math:`b / (N (1 - 10^{-4}))`, where :math:`N` is ``levels`` and :math:`b` the
        range ``v_range`` of the voltage. Integer codes up to ``dead_zone`` in magnitude
        are silenced, and the largest code is ``levels - 1``. In the backward pass the
        gradient is 1 where :math:`|H| \le b` and 0 elsewhere (straight-through). With
        :math:`\alpha = 1` the outputs add up to the currents less the voltage that
        remains.

        If ``momentum`` is not ``None`` and the module is in training mode, :math:`b`
        moves at each time step, before the step is quantized, to the bias-corrected
        exponential moving average of the extremes of the layer's voltages; it stands
        still in inference. As in batch normalization, ``v_range`` and its statistics
        ``v_max``, ``v_min``, and ``num_updates`` are buffers: they are part of the
        ``state_dict``, :meth:`reset` does not change them, and a functional forward in
        training mode moves them, too.

        ``v`` and ``i`` are persistent states, both shaped ``[N, *]``; :meth:`reset`
        restores both to zero.

        .. admonition:: Note
            :class: note

            The gates of :class:`GatedLIFNode` (GLIF) are learned constants that mix
            mechanisms of the LIF neuron, and its output is binary; the gate here is
            computed from the input of each time step. :class:`ILIFNode` is a LIF neuron
            with a non-negative, rounded count and a fixed maximum; the output here is
            signed, has a dead zone, and a range that may follow the voltages.

        :param levels: Number of output levels :math:`N` on either side of zero, at least
            ``2``
        :type levels: int
        :param dead_zone: The largest code in magnitude that is silenced, in
            ``[0, levels - 2]``
        :type dead_zone: int
        :param v_range: Initial range :math:`b`, greater than ``0``
        :type v_range: float
        :param momentum: Momentum of the moving averages, in ``(0, 1]``; ``None`` keeps
            the range as it is
        :type momentum: Optional[float]
        :param alpha: Decay :math:`\alpha` of the membrane voltage, in ``[0, 1]``
        :type alpha: float
        :param detach_reset: Whether to detach the output in the reset branch, ``False``
            by default
        :type detach_reset: bool
        :param step_mode: Step mode, ``"s"`` for single-step or ``"m"`` for multi-step
        :type step_mode: str
        :raises ValueError: If ``levels``, ``dead_zone``, ``v_range``, ``momentum``, or
            ``alpha`` is out of its range, or ``step_mode`` is neither ``"s"`` nor
            ``"m"``

        ----

        * **代码示例 | Example**

        .. code-block:: python

            fc = layer.Linear(40, 2 * 64, step_mode="m")
            node = neuron.GatedSynapticNode(step_mode="m")
            gate, candidate = fc(torch.rand(100, 2, 40)).chunk(2, -1)
            s_seq = node(gate, candidate)
            functional.reset_net(node)
        """
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels must be at least 2, but got {levels}.")
        if not 0 <= dead_zone <= levels - 2:
            raise ValueError(
                f"dead_zone must be in [0, levels - 2], but got {dead_zone}."
            )
        if not v_range > 0.0:
            raise ValueError(f"v_range must be positive, but got {v_range}.")
        if momentum is not None and not 0.0 < momentum <= 1.0:
            raise ValueError(f"momentum must be None or in (0, 1], but got {momentum}.")
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha must be in [0, 1], but got {alpha}.")
        self.levels = levels
        self.dead_zone = dead_zone
        self.momentum = momentum
        self.alpha = alpha
        self.detach_reset = detach_reset
        self.step_mode = step_mode
        self.register_buffer("v_range", torch.tensor(float(v_range)))
        self.register_buffer("v_max", torch.tensor(0.0))
        self.register_buffer("v_min", torch.tensor(0.0))
        self.register_buffer("num_updates", torch.tensor(0))
        self.register_memory("v", 0.0)
        self.register_memory("i", 0.0)

    def extra_repr(self) -> str:
        return (
            f"levels={self.levels}, dead_zone={self.dead_zone}, "
            f"momentum={self.momentum}, alpha={self.alpha}, "
            f"detach_reset={self.detach_reset}, step_mode={self.step_mode}"
        )

    def materialize_states(
        self,
        inputs: tuple[torch.Tensor, ...],
        states: tuple[object, ...],
        step_mode: str,
    ) -> tuple[object, ...]:
        x = inputs[0] if step_mode == "s" else inputs[0][0]
        materialized = []
        for state in states:
            if not isinstance(state, torch.Tensor):
                state = torch.full_like(x, state, requires_grad=False)
            elif state.shape != x.shape:
                state = torch.zeros_like(x, requires_grad=False)
            elif state.dtype != x.dtype or state.device != x.device:
                state = state.to(dtype=x.dtype, device=x.device)
            materialized.append(state)
        return tuple(materialized)

    @torch.no_grad()
    def _follow(self, v: torch.Tensor) -> None:
        # New tensors instead of in-place updates: the graph holds the old ones.
        self.num_updates = self.num_updates + 1
        correction = 1 - (1 - self.momentum) ** self.num_updates.to(torch.float64)
        v_max, v_min = v.amax().to(self.v_max.dtype), v.amin().to(self.v_min.dtype)
        self.v_max = self.v_max + self.momentum * (v_max - self.v_max)
        self.v_min = self.v_min + self.momentum * (v_min - self.v_min)
        v_range = torch.maximum(
            (self.v_max / correction).abs(), (self.v_min / correction).abs()
        )
        self.v_range = v_range.to(self.v_range.dtype)

    def _spike(self, v: torch.Tensor) -> torch.Tensor:
        if self.training and self.momentum is not None:
            self._follow(v.detach())
        v_range = self.v_range.to(v.dtype)
        return _MultiBitSpike.apply(v, v_range, self.levels, self.dead_zone)

    def single_step_functional_forward(
        self,
        inputs: tuple[torch.Tensor, ...],
        states: tuple[object, ...],
        **kwargs: object,
    ) -> tuple[tuple[torch.Tensor, ...], tuple[object, ...]]:
        spike, v, i = functional.gated_synaptic_step(
            *inputs, *states, self.alpha, self._spike, self.detach_reset
        )
        return (spike,), (v, i)

    def multi_step_functional_forward(
        self,
        inputs: tuple[torch.Tensor, ...],
        states: tuple[object, ...],
        **kwargs: object,
    ) -> tuple[tuple[torch.Tensor, ...], tuple[object, ...]]:
        spike_steps = []
        for step_inputs in zip(*(x_seq.unbind(0) for x_seq in inputs), strict=True):
            (spike,), states = self.single_step_functional_forward(step_inputs, states)
            spike_steps.append(spike)
        return (torch.stack(spike_steps),), states
