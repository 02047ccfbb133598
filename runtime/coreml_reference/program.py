"""An ML program as it stands in a specification: typed operators, with every constant made dense.

Parsing fails on what cannot be executed, so that nothing is refused half way through a test set.
The messages of MIL.proto are turned into plain values here; the rest knows no protobuf.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import ExportError
from runtime.coreml_reference import constants
from runtime.coreml_reference.package import TYPES, Package, decode

STRING = 2  # in MIL.proto's DataType
TUPLES = ("values",)
"""Parameters that take several values even where one is given."""
CLASSIFY = "classify"


class Name(str):
    """A reference to a value that is computed, as opposed to a text."""

    __slots__ = ()


class Type(NamedTuple):
    """Of a value: its elements' type, as coremltools spells it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """One operator and what it is given.

    An argument is a `Name`, an array, a number, a truth value, a text, or a list of those.
    """

    type: str
    outputs: tuple[tuple[str, Type], ...]
    arguments: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of its first output."""
        return self.outputs[0][0]

    @property
    def names(self) -> list[str]:
        """Of the computed values that it is given."""
        flat: list[Any] = []
        for value in self.arguments.values():
            flat.extend(value if isinstance(value, list) else [value])
        return [value for value in flat if isinstance(value, Name)]


class Image(NamedTuple):
    """The image that a program takes."""

    name: str
    colour: str
    """"GRAYSCALE", "RGB" or "BGR"."""
    height: int
    width: int

    @property
    def channels(self) -> int:
        """Of an image handed over: 1 or 3."""
        return 1 if self.colour == "GRAYSCALE" else 3


@dataclass(frozen=True)
class Program:
    """A function of float arrays, as a list of operators in the order of execution."""

    package: Package
    inputs: Mapping[str, Type]
    operations: tuple[Operation, ...]
    """Constants are not among them, nor is ``classify``."""
    answer: str
    """Name of the value that tells the classes apart (or of the only output)."""
    labels: tuple[str | int, ...] | None
    """Of that value's elements; None where the program is no classifier."""

    def types(self) -> dict[str, Type]:
        """Of every computed value."""
        outputs = (output for operation in self.operations for output in operation.outputs)
        return {**self.inputs, **dict(outputs)}

    def image(self) -> Image:
        """What it takes. Raises `ExportError` unless that is one image of 8-bit channels."""
        features = list(self.package.spec.description.input)
        kinds = [feature.type.WhichOneof("Type") for feature in features]
        if kinds != ["imageType"]:
            raise self.package.fault(f"it takes {kinds or 'nothing'}, where one image is expected")
        kind = features[0].type.imageType
        colour = kind.ColorSpace.Name(kind.colorSpace)
        image = Image(features[0].name, colour, kind.height, kind.width)
        if colour not in ("GRAYSCALE", "RGB", "BGR"):
            raise self.package.fault(f"images of colour space {colour} are not executed")
        shape = (1, image.channels, image.height, image.width)
        taken = self.inputs.get(image.name)
        if taken is None or taken.shape != shape:
            raise self.package.fault(
                f"its image {image.name} is {list(shape)}, and its program takes "
                f"{'none of that name' if taken is None else list(taken.shape)}"
            )
        return image


def parse(package: Package, known: Collection[str]) -> Program:
    """The program of `package`, whose operators must be `known`.

    Raises `ExportError` naming every operator that is not, with the value it computes, or the
    place where the program or its weights are damaged.
    """
    function, block = _main(package)
    _refuse(package, block, {*known, *constants.TABLE, "const", CLASSIFY})
    reader = _Reader(package)
    inputs = {entry.name: reader.type(entry.type, entry.name) for entry in function.inputs}
    operations, classify = [], None
    for message in block.operations:
        operation = reader.operation(message)
        if operation is not None and operation.type == CLASSIFY:
            classify = operation
        elif operation is not None:
            operations.append(operation)
    defined = {*inputs, *(name for each in operations for name, _ in each.outputs)}
    for operation in (*operations, *([classify] if classify else [])):
        if missing := set(operation.names) - defined:
            raise package.fault(f"{operation.name} needs {sorted(missing)}, which is not computed")
    if classify is not None:
        answer, labels = str(classify.arguments["probabilities"]), classify.arguments["classes"]
        return Program(package, inputs, tuple(operations), answer, tuple(labels))
    if len(block.outputs) != 1 or block.outputs[0] not in defined:
        raise package.fault(f"it is no classifier, and it gives {list(block.outputs)}")
    return Program(package, inputs, tuple(operations), block.outputs[0], None)


def _main(package: Package) -> tuple[Any, Any]:
    functions = package.spec.mlProgram.functions
    name = package.spec.description.defaultFunctionName or "main"
    if name not in functions:
        raise package.fault(f"its program has no function {name}: {sorted(functions)}")
    function = functions[name]
    if function.opset not in function.block_specializations:
        raise package.fault(f"its function {name} has no operators of opset {function.opset!r}")
    return function, function.block_specializations[function.opset]


def _refuse(package: Package, block: Any, known: Collection[str]) -> None:
    lacking: dict[str, list[str]] = {}
    for operation in _all(block):
        if operation.type not in known:
            lacking.setdefault(operation.type, []).append(operation.outputs[0].name)
    if lacking:
        told = "; ".join(f"{kind} ({', '.join(names)})" for kind, names in sorted(lacking.items()))
        raise ExportError(
            f"{package.path}: the reference executor lacks {told}",
            "Write the operator into runtime/coreml_reference/operators.py, or run the file on "
            "a Mac.",
        )


def _all(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _all(inner)


class _Reader:
    """Turns messages into plain values, and remembers the constants."""

    def __init__(self, package: Package) -> None:
        self._package = package
        self._constants: dict[str, Any] = {}

    def operation(self, message: Any) -> Operation | None:
        """None for a constant, which is only remembered."""
        name = message.outputs[0].name if message.outputs else message.type
        if message.type == "const":
            self._constants[name] = self._value(message.attributes["val"], name)
            return None
        arguments = {key: self._argument(key, each, name) for key, each in message.inputs.items()}
        if message.type in constants.TABLE:
            self._decompress(message, name, arguments)
            return None
        outputs = (
            [(name, Type("", ()))]  # a label and a dictionary, which are no tensors
            if message.type == CLASSIFY
            else [(each.name, self.type(each.type, each.name)) for each in message.outputs]
        )
        return Operation(message.type, tuple(outputs), arguments)

    def _decompress(self, message: Any, name: str, arguments: dict[str, Any]) -> None:
        # iOS16's operators have their parameters as attributes, iOS18's as inputs.
        given = {key: self._value(each, name) for key, each in message.attributes.items()}
        given.pop("name", None)
        try:
            made = constants.TABLE[message.type](**arguments, **given)
            several = made if isinstance(made, tuple) else (made,)
            pairs = list(zip(several, message.outputs, strict=True))
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise self._package.fault(f"{message.type} {name} is damaged: {error}") from error
        for each, output in pairs:
            kind = self._element(output.type.tensorType.dataType, name)
            told = self.type(output.type, output.name).shape
            if each.shape != told:
                raise self._package.fault(
                    f"{message.type} {name} is to be {list(told)}, and it makes {list(each.shape)}"
                )
            self._constants[output.name] = each.astype(kind.dtype)

    def _argument(self, key: str, message: Any, name: str) -> Any:
        values = [self._binding(each, name) for each in message.arguments]
        return values if key in TUPLES or len(values) != 1 else values[0]

    def _binding(self, message: Any, name: str) -> Any:
        if message.WhichOneof("binding") == "value":
            return self._value(message.value, name)
        constant = self._constants.get(message.name)
        return Name(message.name) if constant is None else constant

    def type(self, message: Any, name: str) -> Type:
        """Of a tensor."""
        if (kind := message.WhichOneof("type")) != "tensorType":
            raise self._package.fault(f"{name} is a {kind or 'value without a type'}, no tensor")
        dtype = self._element(message.tensorType.dataType, name).name
        return Type(dtype, self._shape(message.tensorType, name))

    def _shape(self, message: Any, name: str) -> tuple[int, ...]:
        sizes = message.dimensions
        if message.rank != len(sizes) or any(
            d.WhichOneof("dimension") != "constant" for d in sizes
        ):
            raise self._package.fault(
                f"the shape of {name} is not fixed, and only fixed shapes are executed"
            )
        return tuple(each.constant.size for each in sizes)

    def _element(self, number: int, name: str) -> Any:
        if number not in TYPES:
            raise self._package.fault(f"{name} is of data type {number}, which is not executed")
        return TYPES[number]

    def _value(self, message: Any, name: str) -> Any:
        """Arrays as arrays; a single number, truth value or text as that; lists as lists."""
        where = message.WhichOneof("value")
        if where == "blobFileValue":
            blob, kind = message.blobFileValue, message.type.tensorType
            element = self._element(kind.dataType, name)
            shape = self._shape(kind, name)
            return self._package.tensor(blob.fileName, blob.offset, element, shape)
        if where is None:
            raise self._package.fault(f"{name} has no value")
        if message.immediateValue.WhichOneof("value") == "list":
            return [self._value(each, name) for each in message.immediateValue.list.values]
        return self._immediate(message, name)

    def _immediate(self, message: Any, name: str) -> Any:
        tensor, kind = message.immediateValue.tensor, message.type.tensorType
        field = tensor.WhichOneof("value")
        if field is None:
            raise self._package.fault(f"{name} has no value")
        held, shape = getattr(tensor, field).values, self._shape(kind, name)
        if kind.dataType == STRING:
            return held[0] if shape == () else list(held)
        element = self._element(kind.dataType, name)
        try:
            if field == "bytes":
                array = decode(held, element, shape)
            else:
                array = np.array(held, element.dtype).reshape(shape)
        except (ValueError, OverflowError) as error:
            raise self._package.fault(
                f"{name} does not hold what its type says: {error}"
            ) from error
        return array.item() if shape == () else array
