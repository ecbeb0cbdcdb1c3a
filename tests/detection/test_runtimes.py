"""Every runtime of Detector returns the detections of "eager" or says why it cannot run."""

import sys
import threading

import numpy as np
import pytest
import torch

from mdssd import cli, mdssd300, ops, ssd300
from mdssd.detection import openvino
from mdssd.detection.cuda_graphs import Graphs, fitting_size
from mdssd.detection.detector import Detector
from mdssd.detection.runtime import from_pixels
from mdssd.names import RUNTIMES
from mdssd.ops._modules import native
from mdssd.ops._threads import cpu_threads, on_one_thread
from mdssd.ops.native import detection_output

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
# The scores of 10 detections differ by more than rounding errors, so their order is certain.
OPTIONS = {"score_threshold": 0.3, "max_detections": 10, "batch_size": 3}


def model(build=mdssd300):
    """Make a model whose scores and boxes are in the range of a trained model's."""
    torch.manual_seed(0)
    network = build(4, width=0.0625, batch_norm=True)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics are those of one pass
    if build is ssd300:
        torch.nn.init.ones_(network.conv4_3_scale)
    with torch.no_grad():
        network(torch.randn(3, 3, 300, 300) * 70)
    return network.eval()


def images(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (90 + n, 120, 3), np.uint8) for n in range(count)]


def assert_same_detections(got, want, tolerance=1e-3):
    assert len(got) == len(want) and sum(len(one["labels"]) for one in want)
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g["labels"], w["labels"])
        torch.testing.assert_close(g["scores"], w["scores"], rtol=0, atol=tolerance)
        torch.testing.assert_close(g["boxes"], w["boxes"], rtol=0, atol=100 * tolerance)


@pytest.mark.parametrize(
    "counts", [[3], pytest.param([1, 3], marks=pytest.mark.nightly("converts the network twice"))]
)
def test_openvino_returns_the_detections_of_eager(counts):
    pytest.importorskip("openvino", reason="openvino is not installed")
    eager, other = Detector(model(), **OPTIONS), Detector(model(), runtime="openvino", **OPTIONS)
    expected = eager(images(5))
    for count in counts:
        assert_same_detections(other(images(count)), expected[:count], 1e-5)
    # The second batch has two images and is filled up to three.
    results = list(other.stream(images(5), workers=0))
    assert_same_detections([result.found for result in results], expected, 1e-5)


@pytest.mark.parametrize("runtime", ["eager", "openvino"])
def test_beside_openvino_detection_output_stays_on_one_thread(runtime, monkeypatch):
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    threads = []

    class Native:
        @staticmethod
        def detection_output_cpu(*arguments):
            threads.append(arguments[-1])
            return native.detection_output_cpu(*arguments)

    monkeypatch.setattr(detection_output, "native", Native)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    detector = Detector(model(), runtime=runtime, **OPTIONS)
    with ops.backend("cpp"):
        detector(images(3))
    assert threads == [1 if runtime == "openvino" else 3]


def test_one_thread_holds_for_the_block_and_the_calling_thread(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    elsewhere = []
    with on_one_thread():
        with on_one_thread():
            assert cpu_threads() == 1
        assert cpu_threads() == 1
        other = threading.Thread(target=lambda: elsewhere.append(cpu_threads()))
        other.start()
        other.join()
    assert cpu_threads() == 3 and elsewhere == [3]
    with pytest.raises(KeyError), on_one_thread():
        raise KeyError
    assert cpu_threads() == 3


def test_compile_returns_the_detections_of_eager():
    # Compiling is slow, so only the smaller network runs, with one batch size.
    eager = Detector(model(ssd300), **OPTIONS)
    other = Detector(model(ssd300), runtime="compile", **OPTIONS)
    # The second batch has two images and is filled up to three.
    assert_same_detections(other(images(5)), eager(images(5)), 1e-5)


def test_bfloat16_returns_nearly_the_same():
    """The error of bfloat16 is at most three times that of rounding the weights alone."""
    eager, other = Detector(model(), **OPTIONS), Detector(model(), dtype=torch.bfloat16, **OPTIONS)
    rounded = Detector(model(), **OPTIONS)
    with torch.inference_mode():
        pixels = np.stack([other._preprocess.warp(image) for image in images(2)])
        for weight in rounded.model.parameters():
            if weight.dim() == 4:
                weight.copy_(weight.bfloat16())
        outputs = [d.model(d._pipeline.network_input(pixels)) for d in (eager, other, rounded)]
    for want, got, near in zip(*outputs, strict=True):
        assert got.dtype == torch.bfloat16
        assert 0 < (got.float() - want).abs().mean() < 3 * (near - want).abs().mean()


def test_pixels_are_normalised_alike_on_every_device():
    detector = Detector(model(), mean=(100.5, 50.25, 1.0))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 300, 300, 3), np.uint8)
    got, want = (
        detector._pipeline.normalize(torch.from_numpy(pixels)),
        detector._pipeline.network_input(pixels),
    )
    assert torch.equal(got, want)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert want.is_contiguous(memory_format=torch.channels_last)


def test_a_device_resizes_as_the_host_does_to_within_a_level():
    detector = Detector(model())
    frames = images(3)
    got = detector._pipeline.upload(frames).numpy().astype(int)
    want = np.stack([detector._preprocess.warp(frame) for frame in frames])
    assert got.shape == want.shape and np.abs(got - want).max() <= 1


def test_runtime_device_and_dtype_that_do_not_fit_are_named():
    for runtime in RUNTIMES:  # the command accepts every runtime of the detector
        cli.make_parser().parse_args(["detect", "x", "y", "--runtime", runtime])
    with pytest.raises(ValueError, match="runtime: expected one of .*got 'magic'"):
        Detector(model(), runtime="magic")
    with pytest.raises(ValueError, match="runtime: 'graph' needs a cuda device, got cpu"):
        Detector(model(), runtime="graph")
    with pytest.raises(ValueError, match="dtype: float16 needs a GPU"):
        Detector(model(), dtype=torch.float16)
    with pytest.raises(ValueError, match="dtype: expected torch.float32.*got torch.int64"):
        Detector(model(), dtype=torch.int64)


def test_an_absent_openvino_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(openvino, "openvino_core", openvino.openvino_core.__wrapped__)
    with pytest.raises(ImportError, match="needs a package: pip install openvino"):
        Detector(model(), runtime="openvino")


@pytest.mark.filterwarnings("error")
def test_an_image_that_is_mirrored_or_read_only_becomes_a_tensor():
    """As a GPU needs it: `image[..., ::-1]` turns BGR into RGB by a negative stride."""
    (image,) = images(1)
    turned, shown = image[..., ::-1], np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape)
    for each in (turned, shown, image[::2, 1:], image):
        np.testing.assert_array_equal(from_pixels(each).numpy(), each)
    assert from_pixels(image).data_ptr() == image.ctypes.data  # nothing to copy


@needs_gpu
@pytest.mark.parametrize("runtime", ["eager", "graph"])
def test_a_mirrored_image_is_detected_on(runtime):
    detector = Detector(model(), device="cuda", runtime=runtime, **OPTIONS)
    for image in (images(1)[0][..., ::-1], images(1)[0][:200, ::-1]):
        assert_same_detections(detector(image), detector(image.copy()))


def test_the_smallest_size_that_fits():
    assert [fitting_size(n, 8) for n in (1, 2, 3, 4, 5, 8, 9)] == [1, 2, 4, 4, 8, 8, 9]
    assert [fitting_size(n, 6) for n in (1, 3, 5, 6, 7)] == [1, 4, 6, 6, 7]
    assert fitting_size(1, 1) == 1


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_graphs_return_the_detections_of_eager(dtype, monkeypatch):
    # In TF32 the algorithms differ by more than the tolerance.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    options = {**OPTIONS, "device": "cuda", "dtype": dtype, "batch_size": 4}
    eager, graph = Detector(model(), **options), Detector(model(), runtime="graph", **options)
    # cuDNN may choose other algorithms for a capture, which round differently in half precision.
    tolerance = 1e-3 if dtype == torch.float32 else 0.05
    for seed, count in enumerate((3, 1, 4, 2, 5, 9)):
        got, want = graph(images(count, seed)), eager(images(count, seed))
        if dtype == torch.float32:
            assert_same_detections(got, want, tolerance)
        assert [len(one["labels"]) > 0 for one in got] == [len(one["labels"]) > 0 for one in want]
    graph.score_threshold = eager.score_threshold = 0.35
    if dtype == torch.float32:
        assert_same_detections(graph(images(3)), eager(images(3)), tolerance)


@needs_gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_through_graphs_is_its_images_one_by_one(workers):
    graph = Detector(model(), device="cuda", runtime="graph", **OPTIONS)
    # Images of the input's size, because workers resize with OpenCV and a GPU by its own operator.
    pictures = [graph._preprocess.warp(image) for image in images(17)]
    expected = [graph(picture)[0] for picture in pictures]
    for size in (1, 3):
        results = list(graph.stream(pictures, batch_size=size, workers=workers))
        assert_same_detections([result.found for result in results], expected)
    stream = graph.stream(pictures, batch_size=2, workers=workers)
    next(stream)
    stream.close()  # while a batch is in flight
    assert_same_detections(graph(pictures), expected)


@needs_gpu
def test_graphs_resize_as_eager_does():
    eager = Detector(model(), device="cuda", **OPTIONS)
    graphs = Graphs(lambda pixels: (pixels.clone(),), 300, 4, torch.device("cuda"))
    frames = images(2) + [eager._preprocess.warp(images(1)[0])]
    (got,) = Graphs.finish(graphs.start(frames))
    assert torch.equal(got, eager._pipeline.upload(frames).cpu())


@needs_gpu
def test_two_batches_in_flight_do_not_mix():
    graphs = Graphs(lambda pixels: (pixels.float().mean((1, 2, 3)),), 8, 4, torch.device("cuda"))
    batches = [
        [np.full((8, 8, 3), 10 * k + n, np.uint8) for n in range(1 + k % 4)] for k in range(9)
    ]
    tickets = []
    for k, batch in enumerate(batches):
        tickets.append(graphs.start(batch))
        if k:
            (means,) = Graphs.finish(tickets[k - 1])
            assert means.tolist() == [10.0 * (k - 1) + n for n in range(len(batches[k - 1]))]
