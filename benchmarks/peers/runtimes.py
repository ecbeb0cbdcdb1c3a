"""Sessions of onnxruntime and OpenVINO with as many threads as PyTorch has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import need
from mdssd.detection.runtimes import openvino_core


def onnx_call(
    nodes: Sequence[Any], outputs: Sequence[str], **inputs: Tensor
) -> Callable[[], list[Any]]:
    """A graph of onnx nodes, and constants, over these inputs, by onnxruntime; numpy arrays."""
    onnx, ort = need("onnx"), need("onnxruntime")
    kinds = {torch.float32: onnx.TensorProto.FLOAT, torch.int64: onnx.TensorProto.INT64}
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "peer",
        [info(name, kinds[value.dtype], value.shape) for name, value in inputs.items()],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 9
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    arrays = {name: value.numpy() for name, value in inputs.items()}
    return lambda: session.run(outputs, arrays)


def onnx_constant(name: str, value: Tensor) -> Any:
    onnx = need("onnx")
    tensor = onnx.numpy_helper.from_array(value.numpy(), name)
    return onnx.helper.make_node("Constant", [], [name], value=tensor)


def openvino_call(model: Any, *arrays: Any, precision: str = "f32") -> Callable[[], list[Any]]:
    """One inference of an openvino.Model on these numpy arrays; its outputs as numpy arrays."""
    openvino = need("openvino")
    compiled = openvino_core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
        },
    )
    request = compiled.create_infer_request()
    tensors = [openvino.Tensor(array, shared_memory=True) for array in arrays]
    for index, tensor in enumerate(tensors):
        request.set_input_tensor(index, tensor)

    def call(_held: Any = (arrays, tensors)) -> list[Any]:  # OpenVINO does not hold them
        request.infer()
        return [request.get_output_tensor(i).data for i in range(len(compiled.outputs))]

    return call
