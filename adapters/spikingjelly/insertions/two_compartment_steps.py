

def lstm_lif_step(
    x: torch.Tensor,
    v: torch.Tensor,
    v_dend: torch.Tensor,
    beta1: torch.Tensor,
    beta2: torch.Tensor,
    gamma: float,
    v_threshold: float,
    v_reset: Optional[float],
    surrogate_function: SurrogateFunction,
    detach_reset: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""
    **API Language** - :ref:`中文 <lstm_lif_step-cn>` | :ref:`English <lstm_lif_step-en>`

    ----

    .. _lstm_lif_step-cn:

    * **中文**

    执行一次 LSTM-LIF 双室神经元状态转移，返回脉冲、下一胞体膜电位和下一树突电位。
    动力学方程见 :class:`~spikingjelly.activation_based.neuron.LSTMLIFNode`。软重置时，
    树突减去 ``gamma - beta1 * v_threshold``，即树突读取的是重置之前的胞体膜电位；
    硬重置只作用于胞体。输入状态须已物化；函数不读取 module memory，也不原地修改
    输入状态。该函数没有独立的多步形式，多步由调用者逐步执行。

    :param x: 当前输入，形状为 ``[N, *]``
    :type x: torch.Tensor
    :param v: 当前胞体膜电位，与 ``x`` 形状、dtype 和 device 相同
    :type v: torch.Tensor
    :param v_dend: 当前树突电位，与 ``x`` 形状、dtype 和 device 相同
    :type v_dend: torch.Tensor
    :param beta1: 胞体到树突的系数，取值于 ``[-1, 0]``，可广播到 ``x``
    :type beta1: torch.Tensor
    :param beta2: 树突到胞体的系数，取值于 ``[0, 1]``，可广播到 ``x``
    :type beta2: torch.Tensor
    :param gamma: 树突的重置量
    :type gamma: float
    :param v_threshold: 胞体的放电阈值
    :type v_threshold: float
    :param v_reset: 胞体硬重置的目标电位；``None`` 表示对两个室均使用软重置
    :type v_reset: Optional[float]
    :param surrogate_function: 以 ``v - v_threshold`` 为输入的放电函数
    :type surrogate_function: Callable[[torch.Tensor], torch.Tensor]
    :param detach_reset: 是否在重置分支中分离脉冲梯度，默认为 ``False``
    :type detach_reset: bool
    :return: ``(spike, v_next, v_dend_next)``，各张量形状与 ``x`` 相同
    :rtype: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    ----

    .. _lstm_lif_step-en:

    * **English**

    Run one state transition of the two-compartment LSTM-LIF neuron and return
    spikes, next somatic voltage, and next dendritic voltage. The dynamics are
    those of :class:`~spikingjelly.activation_based.neuron.LSTMLIFNode`. A soft
    reset subtracts ``gamma - beta1 * v_threshold`` from the dendrite, which means
    that the dendrite reads the soma before its reset; a hard reset acts on the soma
    only. States must be materialized. The function does not read module memory or
    mutate input states. It has no independent multi-step form; callers iterate it.

    :param x: Current input shaped ``[N, *]``
    :type x: torch.Tensor
    :param v: Current somatic voltage with the shape, dtype, and device of ``x``
    :type v: torch.Tensor
    :param v_dend: Current dendritic voltage with the shape, dtype, and device of
        ``x``
    :type v_dend: torch.Tensor
    :param beta1: Coefficient from soma to dendrite in ``[-1, 0]``, broadcastable to
        ``x``
    :type beta1: torch.Tensor
    :param beta2: Coefficient from dendrite to soma in ``[0, 1]``, broadcastable to
        ``x``
    :type beta2: torch.Tensor
    :param gamma: Reset of the dendrite
    :type gamma: float
    :param v_threshold: Firing threshold of the soma
    :type v_threshold: float
    :param v_reset: Target voltage of a hard reset of the soma; ``None`` selects the
        soft reset of both compartments
    :type v_reset: Optional[float]
    :param surrogate_function: Firing function of ``v - v_threshold``
    :type surrogate_function: Callable[[torch.Tensor], torch.Tensor]
    :param detach_reset: Whether to detach the spike in the reset branch, ``False`` by
        default
    :type detach_reset: bool
    :return: ``(spike, v_next, v_dend_next)`` with tensors shaped like ``x``
    :rtype: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """
    #: charge
    spike = surrogate_function(v - v_threshold)
    if v_reset is None:
        reset_spike = spike.detach() if detach_reset else spike
        #: reset_pre
    v = voltage_reset(v, spike, v_threshold, v_reset, detach_reset)
    return spike, v, v_dend


def tc_lif_step(
    x: torch.Tensor,
    v: torch.Tensor,
    v_dend: torch.Tensor,
    beta1: torch.Tensor,
    beta2: torch.Tensor,
    gamma: float,
    v_threshold: float,
    v_reset: Optional[float],
    surrogate_function: SurrogateFunction,
    detach_reset: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""
    **API Language** - :ref:`中文 <tc_lif_step-cn>` | :ref:`English <tc_lif_step-en>`

    ----

    .. _tc_lif_step-cn:

    * **中文**

    执行一次 TC-LIF 双室神经元状态转移，返回脉冲、下一胞体膜电位和下一树突电位。
    与 :func:`lstm_lif_step` 的唯一区别是软重置时树突减去 ``gamma``，即树突读取的是
    重置之后的胞体膜电位。输入状态须已物化；函数不读取 module memory，也不原地修改
    输入状态。该函数没有独立的多步形式，多步由调用者逐步执行。

    :param x: 当前输入，形状为 ``[N, *]``
    :type x: torch.Tensor
    :param v: 当前胞体膜电位，与 ``x`` 形状、dtype 和 device 相同
    :type v: torch.Tensor
    :param v_dend: 当前树突电位，与 ``x`` 形状、dtype 和 device 相同
    :type v_dend: torch.Tensor
    :param beta1: 胞体到树突的系数，取值于 ``[-1, 0]``，可广播到 ``x``
    :type beta1: torch.Tensor
    :param beta2: 树突到胞体的系数，取值于 ``[0, 1]``，可广播到 ``x``
    :type beta2: torch.Tensor
    :param gamma: 树突的重置量
    :type gamma: float
    :param v_threshold: 胞体的放电阈值
    :type v_threshold: float
    :param v_reset: 胞体硬重置的目标电位；``None`` 表示对两个室均使用软重置
    :type v_reset: Optional[float]
    :param surrogate_function: 以 ``v - v_threshold`` 为输入的放电函数
    :type surrogate_function: Callable[[torch.Tensor], torch.Tensor]
    :param detach_reset: 是否在重置分支中分离脉冲梯度，默认为 ``False``
    :type detach_reset: bool
    :return: ``(spike, v_next, v_dend_next)``，各张量形状与 ``x`` 相同
    :rtype: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    ----

    .. _tc_lif_step-en:

    * **English**

    Run one state transition of the two-compartment TC-LIF neuron and return spikes,
    next somatic voltage, and next dendritic voltage. The only difference from
    :func:`lstm_lif_step` is that a soft reset subtracts ``gamma`` from the dendrite,
    which means that the dendrite reads the soma after its reset. States must be
    materialized. The function does not read module memory or mutate input states. It
    has no independent multi-step form; callers iterate it.

    :param x: Current input shaped ``[N, *]``
    :type x: torch.Tensor
    :param v: Current somatic voltage with the shape, dtype, and device of ``x``
    :type v: torch.Tensor
    :param v_dend: Current dendritic voltage with the shape, dtype, and device of
        ``x``
    :type v_dend: torch.Tensor
    :param beta1: Coefficient from soma to dendrite in ``[-1, 0]``, broadcastable to
        ``x``
    :type beta1: torch.Tensor
    :param beta2: Coefficient from dendrite to soma in ``[0, 1]``, broadcastable to
        ``x``
    :type beta2: torch.Tensor
    :param gamma: Reset of the dendrite
    :type gamma: float
    :param v_threshold: Firing threshold of the soma
    :type v_threshold: float
    :param v_reset: Target voltage of a hard reset of the soma; ``None`` selects the
        soft reset of both compartments
    :type v_reset: Optional[float]
    :param surrogate_function: Firing function of ``v - v_threshold``
    :type surrogate_function: Callable[[torch.Tensor], torch.Tensor]
    :param detach_reset: Whether to detach the spike in the reset branch, ``False`` by
        default
    :type detach_reset: bool
    :return: ``(spike, v_next, v_dend_next)`` with tensors shaped like ``x``
    :rtype: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """
    #: charge
    spike = surrogate_function(v - v_threshold)
    if v_reset is None:
        reset_spike = spike.detach() if detach_reset else spike
        #: reset_post
    v = voltage_reset(v, spike, v_threshold, v_reset, detach_reset)
    return spike, v, v_dend
