

def gated_synaptic_step(
    gate: torch.Tensor,
    candidate: torch.Tensor,
    v: torch.Tensor,
    i: torch.Tensor,
    alpha: float,
    spike_function: SurrogateFunction,
    detach_reset: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""
    **API Language** - :ref:`中文 <gated_synaptic_step-cn>` | :ref:`English <gated_synaptic_step-en>`

    ----

    .. _gated_synaptic_step-cn:

    * **中文**

    执行一次门控突触神经元状态转移，返回多比特输出、下一膜电位和下一突触电流。动力学方程见
    :class:`~spikingjelly.activation_based.neuron.GatedSynapticNode`。膜电位减去的是输出本身，
    因此 ``v_next`` 是尚未输出的部分。输入状态须已物化；函数不读取 module memory，也不原地
    修改输入状态。该函数没有独立的多步形式，多步由调用者逐步执行。

    :param gate: 遗忘门的预激活值，形状为 ``[N, *]``
    :type gate: torch.Tensor
    :param candidate: 新电流的预激活值，与 ``gate`` 形状、dtype 和 device 相同
    :type candidate: torch.Tensor
    :param v: 当前膜电位，与 ``gate`` 形状、dtype 和 device 相同
    :type v: torch.Tensor
    :param i: 当前突触电流，与 ``gate`` 形状、dtype 和 device 相同
    :type i: torch.Tensor
    :param alpha: 膜电位的衰减系数，取值于 ``[0, 1]``
    :type alpha: float
    :param spike_function: 以膜电位为输入、返回输出值的函数，可携带替代梯度
    :type spike_function: Callable[[torch.Tensor], torch.Tensor]
    :param detach_reset: 是否在重置分支中分离输出的梯度，默认为 ``False``
    :type detach_reset: bool
    :return: ``(spike, v_next, i_next)``，各张量形状与 ``gate`` 相同
    :rtype: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    ----

    .. _gated_synaptic_step-en:

    * **English**

    Run one state transition of the gated synaptic neuron and return the multi-bit
    output, next membrane voltage, and next synaptic current. The dynamics are those
    of :class:`~spikingjelly.activation_based.neuron.GatedSynapticNode`. The output
    itself is subtracted from the voltage, so that ``v_next`` is what was not emitted
    yet. States must be materialized. The function does not read module memory or
    mutate input states. It has no independent multi-step form; callers iterate it.

    :param gate: Pre-activation of the forget gate, shaped ``[N, *]``
    :type gate: torch.Tensor
    :param candidate: Pre-activation of the new current, with the shape, dtype, and
        device of ``gate``
    :type candidate: torch.Tensor
    :param v: Current membrane voltage with the shape, dtype, and device of ``gate``
    :type v: torch.Tensor
    :param i: Current synaptic current with the shape, dtype, and device of ``gate``
    :type i: torch.Tensor
    :param alpha: Decay of the membrane voltage in ``[0, 1]``
    :type alpha: float
    :param spike_function: Function from membrane voltage to output, possibly with a
        surrogate gradient
    :type spike_function: Callable[[torch.Tensor], torch.Tensor]
    :param detach_reset: Whether to detach the output in the reset branch, ``False`` by
        default
    :type detach_reset: bool
    :return: ``(spike, v_next, i_next)`` with tensors shaped like ``gate``
    :rtype: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """
    #: charge
    spike = spike_function(v)
    reset_spike = spike.detach() if detach_reset else spike
    #: reset
    return spike, v, i
