"""Single operators of onnxruntime, as oracles.

onnxruntime runs models, not operators, and takes a model as a protocol buffer. A model of one
node needs so few fields that they are written here, without the package `onnx`: see `onnx.proto`
for their numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# TensorProto.DataType and AttributeProto.AttributeType.
_TENSOR_TYPES = {"float32": 1, "int32": 6, "int64": 7, "bool": 9}
_FLOAT, _INT, _STRING, _INTS = 1, 2, 3, 7

_IR_VERSION = 8
_OPSET = 16

Attribute = int | float | str | Sequence[int]


def make_operator(
    op_type: str,
    inputs: Mapping[str, np.ndarray],
    *,
    output: str = "float32",
    threads: int = 0,
    **attributes: Attribute,
) -> Callable[[], np.ndarray]:
    """Make a call of an operator on the CPU.

    Args:
      op_type: name of the operator.
      inputs: in its order, under any names.
      output: dtype of its first output, which is returned.
      threads: that may compute; 0 leaves it to onnxruntime.
      **attributes: of the operator.

    Returns:
      What computes its first output.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        _model(op_type, inputs, output, attributes),
        options,
        providers=["CPUExecutionProvider"],
    )
    return lambda: session.run(None, dict(inputs))[0]


def run_operator(op_type: str, inputs: Mapping[str, np.ndarray], **options: Any) -> np.ndarray:
    """Compute an operator's first output; see `make_operator`."""
    return make_operator(op_type, inputs, **options)()


def _model(
    op_type: str,
    inputs: Mapping[str, np.ndarray],
    output: str,
    attributes: Mapping[str, Attribute],
) -> bytes:
    node = b"".join(
        [
            *(_field(1, name) for name in inputs),
            _field(2, "output"),
            _field(4, op_type),
            *(_field(5, _attribute(name, value)) for name, value in attributes.items()),
        ]
    )
    values = [_field(11, _value(name, array.dtype.name)) for name, array in inputs.items()]
    graph = b"".join(
        [_field(1, node), _field(2, "graph"), *values, _field(12, _value("output", output))]
    )
    return _field(1, _IR_VERSION) + _field(7, graph) + _field(8, _field(2, _OPSET))


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, int):
        content = _field(3, value) + _field(20, _INT)
    elif isinstance(value, float):
        content = _field(2, np.float32(value)) + _field(20, _FLOAT)
    elif isinstance(value, str):
        content = _field(4, value) + _field(20, _STRING)
    else:
        content = b"".join(_field(8, number) for number in value) + _field(20, _INTS)
    return _field(1, name) + content


def _value(name: str, dtype: str) -> bytes:
    """Name an input or output and its type, without its shape."""
    return _field(1, name) + _field(2, _field(1, _field(1, _TENSOR_TYPES[dtype])))


def _field(number: int, value: int | str | bytes | np.float32) -> bytes:
    """Encode one field of a message: a number, or text or a message of known length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    if isinstance(value, np.float32):
        return _varint(number << 3 | 5) + value.tobytes()
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Encode a number that is not negative, seven bits a byte, lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
