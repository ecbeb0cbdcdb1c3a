"""Run graphs in onnxruntime and OpenVINO with PyTorch's number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import need
from mdssd.detection.openvino import openvino_core


def onnx_call(
    nodes: Sequence[Any], outputs: Sequence[str], **inputs: Tensor
) -> Callable[[], list[Any]]:
    """Return a call that runs a graph of ONNX nodes on these inputs and returns numpy arrays."""
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
    """Return a call that runs an openvino.Model on these numpy arrays and returns numpy arrays."""
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

    def call(_held: Any = (arrays, tensors)) -> list[Any]:  # OpenVINO does not keep them alive
        request.infer()
        return [request.get_output_tensor(i).data for i in range(len(compiled.outputs))]

    return call
