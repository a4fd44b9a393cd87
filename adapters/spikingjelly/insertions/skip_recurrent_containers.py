

class SkipRecurrentContainer(base.MemoryModule):
    def __init__(
        self,
        sub_module: nn.Module,
        features: int,
        span: int,
        bias: bool = False,
        step_mode: str = "s",
    ) -> None:
        r"""
        **API Language** - :ref:`中文 <SkipRecurrentContainer.__init__-cn>` | :ref:`English <SkipRecurrentContainer.__init__-en>`

        ----

        .. _SkipRecurrentContainer.__init__-cn:

        * **中文**

        跳跃循环连接（Skip Recurrent Connection，SRC）的自连接包装器，来自
        `arXiv 2505.11455 <https://arxiv.org/abs/2505.11455>`_ 及其作者的开源代码。记 ``sub_module``
        的输出为 :math:`y[t]` （也是整个模块的输出），整个模块的输入为 :math:`x[t]`，跨度为
        :math:`\lambda` （即 ``span``），则

        .. math::

            y[t] = \text{sub\_module}(x[t] + W y[t - \lambda])

        其中 :math:`W` 是形状为 ``[features, features]`` 的可学习矩阵，用正交矩阵初始化。
        :math:`t < 0` 时 :math:`y[t] = 0`。``span=1`` 即普通的循环层，与
        ``rc.weight=[I,W]`` 且 ``bias=False`` 的 :class:`LinearRecurrentContainer` 相同。

        ``y`` 是持久状态，保存最近 ``span`` 个输出，形状为 ``[span, N, *]``，最新的输出在末尾；
        在首次前向传播之前为 ``None``。``reset()`` 只清除容器的 ``y``，使用
        ``functional.reset_net(container)`` 同时清除子模块的时间状态。batch/前导维度改变前需要
        reset；否则前向传播抛出 ``ValueError``。与其他循环容器一样，``sub_module`` 始终以单步模式
        运行，``functional.set_step_mode`` 不改变它；多步前向逐步执行，反向传播的代价与 :math:`T`
        成线性关系。

        :param sub_module: 被包含的单步模块，输入和输出的形状均为 ``[N, *, features]``
        :type sub_module: torch.nn.Module

        :param features: 输入和输出最后一维的大小
        :type features: int

        :param span: 循环连接跨越的时间步数，不小于 ``1``
        :type span: int

        :param bias: 循环连接是否带有偏置项，初始化为零。默认为 ``False``，与作者的代码一致
        :type bias: bool

        :param step_mode: 步进模式，可以为 `'s'` (单步) 或 `'m'` (多步)
        :type step_mode: str

        :raises AssertionError: ``sub_module`` 处于多步模式时抛出
        :raises ValueError: ``span`` 小于 ``1``，或 ``step_mode`` 不是 ``"s"`` 或 ``"m"`` 时抛出

        ----

        .. _SkipRecurrentContainer.__init__-en:

        * **English**

        A container with a skip recurrent connection (SRC), from
        `arXiv 2505.11455 <https://arxiv.org/abs/2505.11455>`_ and its authors' released
        code. Denote the output of ``sub_module`` as :math:`y[t]` (which is also the
        output of this module), the input of this module as :math:`x[t]`, and the span
        as :math:`\lambda` (``span``). Then

        .. math::

            y[t] = \text{sub\_module}(x[t] + W y[t - \lambda])

        where :math:`W` is a learnable matrix shaped ``[features, features]``,
        orthogonal at the start. We set :math:`y[t] = 0` for :math:`t < 0`. ``span=1``
        is the common recurrent layer, the same as :class:`LinearRecurrentContainer`
        with ``rc.weight=[I,W]`` and ``bias=False``.

        ``y`` is a persistent state that holds the last ``span`` outputs, shaped
        ``[span, N, *]``, the newest last; it is ``None`` before the first forward.
        ``reset()`` clears only the container's ``y``; use
        ``functional.reset_net(container)`` to also clear temporal states of its child.
        Reset before changing batch/leading shape; otherwise forward raises
        ``ValueError``. As in the other recurrent containers, ``sub_module`` always runs
        in single-step mode, which ``functional.set_step_mode`` does not change. The
        multi-step forward iterates over time; the cost of its backward is linear in
        :math:`T`.

        :param sub_module: the contained single-step module, whose input and output are
            both shaped ``[N, *, features]``
        :type sub_module: torch.nn.Module

        :param features: size of the last dimension of input and output
        :type features: int

        :param span: how many time steps the recurrent connection spans, at least ``1``
        :type span: int

        :param bias: whether the recurrent connection has a bias, zero at the start.
            ``False`` by default, as in the authors' code
        :type bias: bool

        :param step_mode: the step mode, which can be `s` (single-step) or `m` (multi-step)
        :type step_mode: str

        :raises AssertionError: If ``sub_module`` is in multi-step mode
        :raises ValueError: If ``span`` is less than ``1``, or ``step_mode`` is neither
            ``"s"`` nor ``"m"``

        ----

        * **代码示例 | Example**

        .. code-block:: python

            net = SkipRecurrentContainer(
                neuron.LIFNode(decay_input=False, v_reset=None),
                features=64,
                span=8,
                step_mode="m",
            )
            y_seq = net(torch.rand([100, 2, 64]))
            functional.reset_net(net)
        """
        super().__init__()
        if span < 1:
            raise ValueError(f"span must be at least 1, but got {span}.")
        self.step_mode = step_mode
        assert not hasattr(sub_module, "step_mode") or sub_module.step_mode == "s"
        self.span = span
        self.recurrent = nn.Linear(features, features, bias)
        nn.init.orthogonal_(self.recurrent.weight)
        if bias:
            nn.init.zeros_(self.recurrent.bias)
        self.sub_module = sub_module
        self.register_memory("y", None)

    def materialize_states(
        self,
        inputs: tuple[Tensor, ...],
        states: tuple[object, ...],
        step_mode: str,
    ) -> tuple[object, ...]:
        x = inputs[0] if step_mode == "s" else inputs[0][0]
        y = states[0]
        if y is None:
            y = x.new_zeros(self.span, *x.shape)
        elif y.shape != (self.span, *x.shape):
            raise ValueError(
                "Recurrent state shape does not match input; call reset_net(container) "
                "before changing batch shape."
            )
        return (y.to(dtype=x.dtype, device=x.device),)

    def _lags(self) -> int | Tensor:
        return self.span

    def _steps(
        self, x_seq: tuple[Tensor, ...], y: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        y_steps = list(y.unbind(0))
        lags = self._lags()
        for x in x_seq:
            if isinstance(lags, int):
                heard = y_steps[-lags]
            else:
                heard = torch.tensordot(
                    lags.flip(0).to(x.dtype), torch.stack(y_steps[-self.span :]), 1
                )
            y_steps.append(self.sub_module(x + self.recurrent(heard)))
        return y_steps[self.span :], torch.stack(y_steps[-self.span :])

    def single_step_functional_forward(
        self,
        inputs: tuple[Tensor, ...],
        states: tuple[object, ...],
        **kwargs: object,
    ) -> tuple[tuple[Tensor, ...], tuple[object, ...]]:
        (output,), y = self._steps(inputs, states[0])
        return (output,), (y,)

    def multi_step_functional_forward(
        self,
        inputs: tuple[Tensor, ...],
        states: tuple[object, ...],
        **kwargs: object,
    ) -> tuple[tuple[Tensor, ...], tuple[object, ...]]:
        outputs, y = self._steps(inputs[0].unbind(0), states[0])
        return (torch.stack(outputs),), (y,)

    def extra_repr(self) -> str:
        return f"span={self.span}, step_mode={self.step_mode}"


class AdaptiveSkipRecurrentContainer(SkipRecurrentContainer):
    def __init__(
        self,
        sub_module: nn.Module,
        features: int,
        max_span: int,
        temperature: float = 1.0,
        temperature_decay: float = 0.96,
        bias: bool = False,
        step_mode: str = "s",
    ) -> None:
        r"""
        **API Language** - :ref:`中文 <AdaptiveSkipRecurrentContainer.__init__-cn>` | :ref:`English <AdaptiveSkipRecurrentContainer.__init__-en>`

        ----

        .. _AdaptiveSkipRecurrentContainer.__init__-cn:

        * **中文**

        自适应跳跃循环连接（Adaptive Skip Recurrent Connection，ASRC）的自连接包装器，即跨度可学习
        的 :class:`SkipRecurrentContainer`，来自
        `arXiv 2505.11455 <https://arxiv.org/abs/2505.11455>`_ 及其作者的开源代码。训练时

        .. math::

            y[t] = \text{sub\_module}\left(x[t] + W \sum_{k=1}^{K} p_k y[t - k]\right), \qquad
            p = \text{softmax}(z / \tau)

        其中 :math:`K` 为 ``max_span``，:math:`z` 为可学习参数 ``logits`` （初始化为零），
        :math:`\tau` 为 buffer ``temperature``。推理时（``eval()``）只使用 :math:`z_k` 最大的跨度
        :math:`k` （相等时取最小的），此时与 :class:`SkipRecurrentContainer` 相同，因此 ``train()``
        和 ``eval()`` 的输出通常不同。应在每个 epoch 结束后调用一次 :meth:`step_temperature`，使
        :math:`p` 逐渐接近独热。

        ``y`` 在训练和推理时均保存最近 ``max_span`` 个输出。训练时每个时间步的代价与 ``max_span``
        成正比。状态、``reset()`` 的行为和其他约束均与 :class:`SkipRecurrentContainer` 相同。

        :param sub_module: 被包含的单步模块，输入和输出的形状均为 ``[N, *, features]``
        :type sub_module: torch.nn.Module

        :param features: 输入和输出最后一维的大小
        :type features: int

        :param max_span: 最大跨度 :math:`K`，不小于 ``1``
        :type max_span: int

        :param temperature: 初始温度，大于 ``0``
        :type temperature: float

        :param temperature_decay: 每次调用 :meth:`step_temperature` 时温度所乘的系数，取值于 ``(0, 1]``
        :type temperature_decay: float

        :param bias: 循环连接是否带有偏置项，初始化为零。默认为 ``False``，与作者的代码一致
        :type bias: bool

        :param step_mode: 步进模式，可以为 `'s'` (单步) 或 `'m'` (多步)
        :type step_mode: str

        :raises AssertionError: ``sub_module`` 处于多步模式时抛出
        :raises ValueError: ``max_span`` 小于 ``1``，``temperature`` 或 ``temperature_decay`` 超出
            取值范围，或 ``step_mode`` 不是 ``"s"`` 或 ``"m"`` 时抛出

        ----

        .. _AdaptiveSkipRecurrentContainer.__init__-en:

        * **English**

        A container with an adaptive skip recurrent connection (ASRC), a
        :class:`SkipRecurrentContainer` that learns its span, from
        `arXiv 2505.11455 <https://arxiv.org/abs/2505.11455>`_ and its authors' released
        code. In training

        .. math::

            y[t] = \text{sub\_module}\left(x[t] + W \sum_{k=1}^{K} p_k y[t - k]\right), \qquad
            p = \text{softmax}(z / \tau)

        where :math:`K` is ``max_span``, :math:`z` is the learnable parameter ``logits``
        (zero at the start), and :math:`\tau` is the buffer ``temperature``. In
        inference (``eval()``) only the span :math:`k` of the largest :math:`z_k` is
        used (the smallest of equal ones), which is a :class:`SkipRecurrentContainer`;
        outputs in ``train()`` and ``eval()`` therefore differ in general. Call
        :meth:`step_temperature` once after each epoch, so that :math:`p` approaches
        one-hot.

        ``y`` holds the last ``max_span`` outputs in training and inference alike. The
        cost of a training time step is proportional to ``max_span``. States, the
        behavior of ``reset()``, and the other constraints are those of
        :class:`SkipRecurrentContainer`.

        :param sub_module: the contained single-step module, whose input and output are
            both shaped ``[N, *, features]``
        :type sub_module: torch.nn.Module

        :param features: size of the last dimension of input and output
        :type features: int

        :param max_span: the largest span :math:`K`, at least ``1``
        :type max_span: int

        :param temperature: temperature at the start, greater than ``0``
        :type temperature: float

        :param temperature_decay: factor of the temperature in each
            :meth:`step_temperature`, in ``(0, 1]``
        :type temperature_decay: float

        :param bias: whether the recurrent connection has a bias, zero at the start.
            ``False`` by default, as in the authors' code
        :type bias: bool

        :param step_mode: the step mode, which can be `s` (single-step) or `m` (multi-step)
        :type step_mode: str

        :raises AssertionError: If ``sub_module`` is in multi-step mode
        :raises ValueError: If ``max_span`` is less than ``1``, ``temperature`` or
            ``temperature_decay`` is out of its range, or ``step_mode`` is neither
            ``"s"`` nor ``"m"``
        """
        super().__init__(sub_module, features, max_span, bias, step_mode)
        if not temperature > 0.0:
            raise ValueError(f"temperature must be positive, but got {temperature}.")
        if not 0.0 < temperature_decay <= 1.0:
            raise ValueError(
                f"temperature_decay must be in (0, 1], but got {temperature_decay}."
            )
        self.temperature_decay = temperature_decay
        self.logits = nn.Parameter(torch.zeros(max_span))
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def _lags(self) -> int | Tensor:
        if not self.training:
            return 1 + int(self.logits.argmax())
        # Relative to the largest, as a quotient by a low temperature may overflow.
        z = self.logits - self.logits.detach().max()
        return (z / self.temperature).softmax(0)

    @torch.no_grad()
    def step_temperature(self) -> None:
        r"""
        **API Language** - :ref:`中文 <AdaptiveSkipRecurrentContainer.step_temperature-cn>` | :ref:`English <AdaptiveSkipRecurrentContainer.step_temperature-en>`

        ----

        .. _AdaptiveSkipRecurrentContainer.step_temperature-cn:

        * **中文**

        将 ``temperature`` 原地乘以 ``temperature_decay``，且不低于其 dtype 的最小正规数。
        每个 epoch 调用一次。``reset()`` 不改变温度；温度保存在 ``state_dict`` 中。

        ----

        .. _AdaptiveSkipRecurrentContainer.step_temperature-en:

        * **English**

        Multiply ``temperature`` in place by ``temperature_decay``, down to the smallest
        normal number of its dtype. Call it once per epoch. ``reset()`` does not change
        the temperature, which is part of the ``state_dict``.
        """
        smallest = torch.finfo(self.temperature.dtype).tiny
        self.temperature.mul_(self.temperature_decay).clamp_(min=smallest)

    def extra_repr(self) -> str:
        return (
            super().extra_repr()
            + f", temperature={self.temperature.item()}"
            + f", temperature_decay={self.temperature_decay}"
        )
