"""Other libraries as sides: what several op files need of them. Imported in the processes of those sides only."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

Array = Any
Call = Callable[[], Any]

PEERS = ("numpy", "torch", "onnxruntime", "openvino", "ctranslate2", "llama_cpp")


def thread_count() -> int:
    """For libraries that must be told, or would take fewer: --threads, else the CPUs that this process may use."""
    return int(os.environ.get("QKV_NUM_THREADS") or len(os.sched_getaffinity(0)))


def tensors(*arrays: Array) -> list[Any]:
    """Torch tensors over the same memory; the process records no gradients from here on."""
    import torch

    torch.set_grad_enabled(False)
    return [torch.from_numpy(x) for x in arrays]


def onnx_session(
    nodes: Sequence[tuple[Any, ...]],
    inputs: dict[str, Array],
    constants: dict[str, Array] | None = None,
    output: str = "y",
    opset: int = 23,
    int8: bool = False,
) -> Call:
    """An ONNX Runtime session of nodes (op, input names, output names, attributes) and the call that runs it.

    inputs: name -> array that each run is given, shapes fixed; constants: known to the session, which may lay them out
    as it likes. Attributes may hold "domain" for ONNX Runtime's own ops (com.microsoft). int8: its dynamic quantisation
    of the whole graph as a user gets it, whose sums of 16 bits may saturate on AVX2 (NOTES.md).
    """
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    made = [helper.make_node(op, list(into), list(out), **attributes) for op, into, out, attributes in nodes]
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in inputs.items()
    ]
    graph = helper.make_graph(
        made,
        "bench",
        values,
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(x, name) for name, x in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if int8:
        import tempfile

        from onnx import load
        from onnxruntime.quantization import quantize_dynamic

        with tempfile.TemporaryDirectory() as folder:
            untyped = {"DefaultTensorType": TensorProto.FLOAT}  # it knows no shapes behind fused ops
            quantize_dynamic(model, f"{folder}/int8.onnx", per_channel=True, extra_options=untyped)
            model = load(f"{folder}/int8.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return lambda: session.run([output], inputs)


def openvino_model(model: Any, inputs: Array | dict[str, Array], precision: str = "f32") -> Call:
    """The call that runs a compiled OpenVINO model. precision: bf16 needs a machine with the instructions."""
    import openvino

    config = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.compile_model(model, "CPU", config).create_infer_request()
    return lambda: request.infer(inputs)[0]
