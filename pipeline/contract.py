"""What every exported file says of itself, in the metadata of its own format.

The accuracy in it is the student's on the validation split, which is known before a file is made:
writing the file's own test accuracy into it afterwards would make it another file than the one
that was measured. That one stands in the bundle's manifest, beside the file's checksum.
"""

import json
from collections.abc import Mapping
from typing import Self

from pipeline.machine import package_version
from pipeline.records import Checkpoint, InputSpec, Record

LICENCE_UNKNOWN = "unknown"


class Facts(Record):
    """Of the student, and hence of all files made from it."""

    labels: tuple[str, ...]
    """Class names, in the order of the answers."""
    input: InputSpec
    student: str
    """Store key of the student."""
    arch: str
    licence: str = LICENCE_UNKNOWN
    """Terms of the images it was trained on."""
    val_top1: float | None = None
    """Of the float student on the validation split."""
    version: str = ""
    """Of this program."""

    @classmethod
    def of(cls, student: Checkpoint, licence: str = LICENCE_UNKNOWN) -> Self:
        """What is to be said of `student`."""
        return cls(
            labels=student.labels,
            input=student.input,
            student=student.key,
            arch=student.arch,
            licence=licence,
            val_top1=student.history[-1].val_top1 if student.history else None,
            version=package_version("pocket-distillery") or "unknown",
        )

    def texts(self, output: str) -> dict[str, str]:
        """As names with texts, all that a format's metadata holds; `output` is what it answers."""
        accuracy = {"model": "float student", "split": "validation", "top1": self.val_top1}
        return {
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "input": self.input.model_dump_json(),
            "output": output,
            "student": self.student,
            "arch": self.arch,
            "version": self.version,
            "licence": self.licence,
            "accuracy": json.dumps(accuracy if self.val_top1 is not None else None),
        }


def read_input(texts: Mapping[str, str]) -> InputSpec:
    """The input contract in a file's metadata. Raises KeyError where there is none."""
    return InputSpec.model_validate_json(texts["input"])
