"""How kernels are compiled and launched through CuPy, and what is said where they cannot be: on its double."""

import logging
import threading
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from support import identical

from snn_ext import kernels, sequence
from snn_ext.core.surrogate import Surrogate
from snn_ext.kernels import check, cpu, cuda, generate

from . import cupy_double
from .cuda_cases import PUBLISHED

ROW = PUBLISHED[0]
CPU = torch.device("cpu")


@pytest.fixture
def double(monkeypatch, tmp_path):
    monkeypatch.setenv("SNN_EXT_CACHE", str(tmp_path))  # nothing is compiled yet
    with cupy_double.installed(monkeypatch) as double:
        yield double


def run(backend="cupy", steps=33, shape=(300,)):
    return ROW.data(steps, shape).run(backend)


def test_what_is_launched(double):
    """The grid covers every neuron, and every argument is what the kernel's parameter is."""
    run(steps=33, shape=(300,))
    assert [one.kernel for one in double.launches] == ["forward", "backward", "fold", "fold"]
    for one, blocks in zip(double.launches, (3, 3, 1, 1), strict=True):
        assert (one.grid, one.block, one.device) == ((blocks,), (cuda.BLOCK,), 0)
    forward, backward, *_ = double.launches
    # x, v and where it starts, tau, v_threshold, out, v, checkpoints; T, N; v_reset, alpha
    assert [type(one) for one in forward.arguments] == [int, int, int, float, *[int] * 9, float, float]
    assert forward.arguments[-4:] == (33, 300, -0.125, 2.0)
    assert backward.arguments[-4:] == (33, 300, -0.125, 2.0)
    assert all(pointer > 0 for pointer in forward.arguments[:3:2])


def test_whole_numbers_are_passed_as_the_kernel_reads_them(double):
    """An int for a double would be read as another number, 5e-324 for 1."""
    data = ROW.data(17, (10,))
    values = {**data.values, "v_reset": 0}
    spike = Surrogate("atan", (("alpha", 3),))
    results = [
        sequence.run(ROW.case.neuron, data.inputs, (1,), values, spike=spike, backend=backend)
        for backend in ("cupy", "cpu")
    ]
    gradients = [torch.autograd.grad(result.output.sum(), data.inputs)[0] for result in results]
    assert identical(results[0].output, results[1].output) and identical(*gradients)


@pytest.mark.parametrize("before_cupy_14", [False, True])
def test_the_current_stream_at_every_call(double, before_cupy_14):
    if before_cupy_14:
        del double.cuda.Stream.from_external
    run()
    assert {one.stream for one in double.launches} == {100}
    mine = torch.cuda.Stream(CPU)
    with torch.cuda.stream(mine):
        run()
    assert {one.stream for one in double.launches[4:]} == {mine.cuda_stream}
    run()
    assert {one.stream for one in double.launches[8:]} == {100}


def test_the_backward_pass_uses_the_stream_of_its_own_thread(double):
    data = ROW.data(17, (10,))
    output = sequence.run(
        ROW.case.neuron, data.inputs, data.states, data.values, spike=ROW.spike, backend="cupy"
    ).output
    mine = torch.cuda.Stream(CPU)

    def work():
        with torch.cuda.stream(mine):
            output.sum().backward()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [(one.kernel, one.stream) for one in double.launches[:2]] == [
        ("forward", 100),
        ("backward", mine.cuda_stream),
    ]


def test_once_per_text_and_device(double):
    for _ in range(2):
        run()
    # One file serves both kernels of the backward text, and the second device too, where it is loaded again.
    assert double.compiled == ["forward", "backward"]
    assert [device for _, device in double.modules] == [0, 0, 0]
    with torch.cuda.device(1):
        found = run()
    assert {one.device for one in double.launches[8:]} == {1}
    assert {one.stream for one in double.launches[8:]} == {101}
    assert double.compiled == ["forward", "backward"]
    assert [device for _, device in double.modules[3:]] == [1, 1, 1]
    for a, b in zip(found, run("cpu"), strict=True):
        assert identical(a, b)
    assert double.nvrtc.destroyed == [0, 1]


def test_another_architecture_is_another_file(double):
    run()
    with torch.cuda.device(1):
        double.capability = 80
        run()
    assert double.compiled == ["forward", "backward"] * 2
    assert [one.options[-1] for one in double.nvrtc.programs] == ["-arch=sm_90"] * 2 + ["-arch=sm_80"] * 2


def test_a_gpu_newer_than_nvrtc_gets_ptx(double):
    double.capability = 130
    for a, b in zip(run(), run("cpu"), strict=True):
        assert identical(a, b)
    assert {one.options for one in double.nvrtc.programs} == {(*cuda.OPTIONS, "-arch=compute_120")}


def test_a_gpu_too_old_for_nvrtc(double):
    double.capability = 70
    with pytest.raises(RuntimeError, match=r"capability 7\.5 and above, this GPU has 7\.0; .*cupy-cuda12x"):
        run()
    assert double.launches == []


def test_another_process_finds_the_files(double):
    run()
    cupy_double.forget()
    run()
    assert double.compiled == ["forward", "backward"]
    assert len(double.modules) == 6


def test_a_damaged_file_is_made_again(double):
    run()
    for path in {path for path, _ in double.modules}:
        half = path.read_bytes()[:10000]
        path.unlink()  # the old file is still in memory
        path.write_bytes(half)
    cupy_double.forget()
    for a, b in zip(run(), run("cpu"), strict=True):
        assert identical(a, b)
    assert double.compiled == ["forward", "backward"] * 2


def test_threads_compile_once(double):
    gate = threading.Barrier(4)

    def work():
        gate.wait()
        run()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert double.compiled == ["forward", "backward"] and len(double.modules) == 3
    assert len(double.launches) == 16


def test_no_first_use_during_a_graph_capture(double):
    double.capturing = True
    with pytest.raises(RuntimeError, match=r"run it once before capturing \(warm up\)"):
        run()
    assert double.compiled == [] and double.launches == []
    double.capturing = False
    run()
    double.capturing = True
    run()
    with torch.cuda.device(1), pytest.raises(RuntimeError, match="warm up"):
        run()


def test_a_compile_error_shows_everything(double):
    function = cuda.load("#define FORWARD\nextern broken", (("forward", "q", ()),))["forward"]
    with pytest.raises(RuntimeError) as caught:
        function((1,), (128,), (0,), CPU)
    for part in ("NVRTC_ERROR_COMPILATION", "--fmad=false", "-arch=sm_90", "error: ", "   2 extern broken"):
        assert part in str(caught.value)
    assert double.nvrtc.destroyed == [0]


def test_more_blocks_than_cuda_counts(double):
    function = cuda.load("", (("forward", "q", ()),))["forward"]
    with pytest.raises(ValueError, match=r"at most 274877906816 elements per step, got about 274877906944; split"):
        function((2**31,), (128,), (0,), CPU)
    assert double.launches == []


def test_the_number_of_arguments_is_checked(double):
    function = cuda.load("", (("forward", "qd", ()),))["forward"]
    with pytest.raises(ValueError, match="shorter"):
        function((1,), (128,), (0,), CPU)


# ---------------------------------------------------------------- auto


def test_auto_checks_once_per_device(double):
    with double.auto():
        for _ in range(2):
            found = run("auto")
    # The check's own forward and backward, and a sum over 300 neurons in two stages.
    assert [one.kernel for one in double.launches[:4]] == ["forward", "backward", "fold", "fold"]
    assert len(double.launches) == 3 * 4
    for a, b in zip(found, run("cpu"), strict=True):
        assert identical(a, b)


@pytest.mark.parametrize("kernel", ["forward", "backward", "fold"])
def test_auto_uses_torch_where_the_check_fails(double, caplog, kernel):
    """A kernel that does nothing must show, whichever it is."""
    double.dead = kernel
    with double.auto(), caplog.at_level(logging.WARNING, logger="snn_ext"):
        found = run("auto")
        run("auto")
    for a, b in zip(found, run("torch"), strict=True):
        assert identical(a, b)
    (record,) = caplog.records
    assert "backend='auto' uses torch" in record.getMessage()
    assert "differs from the reference by up to" in record.getMessage()


def test_auto_uses_torch_where_nothing_compiles(double, caplog):
    double.capability = 70
    with double.auto(), caplog.at_level(logging.WARNING, logger="snn_ext"):
        found = run("auto")
    for a, b in zip(found, run("torch"), strict=True):
        assert identical(a, b)
    assert "this GPU has 7.0" in caplog.text


def test_auto_does_not_check_during_a_graph_capture(double):
    double.capturing = True
    with double.auto(), pytest.raises(RuntimeError, match=r"warm up"):
        run("auto")
    double.capturing = False
    with double.auto():
        run("auto")
    assert check._found == {-1: ""}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_check_is_a_computation_of_its_own(double, mode):
    with mode():
        assert check.self_check(CPU) is None


# ---------------------------------------------------------------- machines without


@pytest.mark.parametrize(
    ("installed", "torch_cuda", "expected"),
    [
        ((), "13.0", "CuPy is not installed: pip install cupy-cuda13x (cupy-cuda12x for CUDA 12)"),
        ((), "12.8", "CuPy is not installed: pip install cupy-cuda12x (cupy-cuda13x for CUDA 13)"),
        (
            ("cupy-cuda13x", "cupy-cuda12x"),
            "12.8",
            "cupy-cuda13x and cupy-cuda12x are installed together and overwrite each other: pip uninstall -y "
            "cupy-cuda13x cupy-cuda12x, then pip install cupy-cuda12x",
        ),
        (("cupy",), None, f"torch {torch.__version__} is built without CUDA: install one with it"),
    ],
)
def test_what_is_missing(double, monkeypatch, installed, torch_cuda, expected):
    monkeypatch.setattr(cuda, "_is_installed", lambda name: name in installed)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    reason = kernels.unavailable("cupy")
    assert reason.startswith(expected)
    with pytest.raises(sequence.BackendUnavailable) as caught:
        run()
    assert reason in str(caught.value)


def test_everything_missing_is_said_at_once(double, monkeypatch):
    monkeypatch.setattr(cuda, "_is_installed", lambda name: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    reason = cuda.unavailable()
    assert "pip install cupy-cuda13x" in reason and "built without CUDA" in reason


def raising(error):
    def function(*_):
        raise error

    return function


def test_cupy_that_does_not_work(double, monkeypatch):
    double.nvrtc.getVersion = raising(RuntimeError('Failure finding "libnvrtc.so.13"\n'))
    reason = 'CuPy does not work (Failure finding "libnvrtc.so.13"); if it misses libnvrtc: pip install '
    assert cuda.unavailable() == reason + "nvidia-cuda-nvrtc"
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert cuda.unavailable() == reason + "nvidia-cuda-nvrtc-cu12"


def test_cupy_that_cannot_be_imported(double, monkeypatch):
    monkeypatch.setitem(cupy_double.sys.modules, "cupy", None)
    assert cuda.unavailable().startswith("CuPy does not work (import of cupy halted; None in sys.modules)")


def test_no_gpu(double, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    assert cuda.unavailable() == "torch sees no GPU"
    monkeypatch.setattr(torch.cuda, "init", raising(RuntimeError("Found no NVIDIA driver on your system.")))
    assert cuda.unavailable() == "torch sees no GPU (Found no NVIDIA driver on your system.)"


def test_a_driver_too_old_for_cupy(double):
    double.cuda.runtime.getDeviceCount = raising(RuntimeError("cudaErrorInsufficientDriver: too old"))
    assert cuda.unavailable() == (
        "CuPy sees no GPU (cudaErrorInsufficientDriver: too old): update the driver, or replace CuPy by the wheel for "
        "an older CUDA (pip uninstall cupy-cuda13x, pip install cupy-cuda12x)"
    )


def test_what_is_found_is_remembered(double):
    assert cuda.unavailable() is None
    double.cuda.runtime.getDeviceCount = raising(RuntimeError("asked again"))
    assert cuda.unavailable() is None


def test_installed_packages_are_seen(monkeypatch):
    assert cuda._is_installed("torch")
    monkeypatch.setattr(cuda, "version", raising(PackageNotFoundError("torch")))
    assert not cuda._is_installed("torch")


# ---------------------------------------------------------------- devices


def test_values_on_another_device_are_refused():
    neuron, x = ROW.case.neuron, torch.ones(3, 4)
    for where in (torch.ones((), device="meta"), torch.ones(4, device="meta")):
        with pytest.raises(ValueError, match="v_threshold is on meta, the input on cpu; move one with"):
            values = {"tau": 2.0, "v_threshold": where, "v_reset": 0.0}
            sequence.run(neuron, x, None, values, spike=ROW.spike)
    with pytest.raises(ValueError, match="state v is on meta, the input on cpu"):
        states = (torch.ones(4, device="meta"),)
        sequence.run(neuron, x, states, {"tau": 2.0, "v_threshold": 1.0, "v_reset": 0.0}, spike=ROW.spike)


def test_a_number_on_the_cpu_goes_where_the_input_is():
    """As in torch; its address would mean nothing to a GPU."""
    x = torch.ones(3, 4, device="meta")
    value = sequence._check_value(ROW.case.neuron, "tau", torch.tensor(2.0), x, x.shape[1:], x.dtype)
    assert value.device == x.device


def test_the_texts_and_the_options_agree():
    """The text's K is what op.py makes checkpoints for; the CPU's cache holds other kernels."""
    assert f"-DK={cuda.SEGMENT}" in cuda.OPTIONS and cuda.block(7) == cuda.BLOCK
    assert cpu.SEGMENT != cuda.SEGMENT
    assert "#define W 1" in generate.forward_text(ROW.request, torch.float32, False)
