"""What runs inside an emulator: one ONNX file answers one array of images.

It is handed to another Python, on another kind of CPU, as a file of its own: it may import nothing
of this project, and needs no more than NumPy and ONNX Runtime. ::

    python emulated.py MODEL IMAGES.npy LOGITS.npy THREADS
"""

import json
import platform
import sys

import numpy as np

BATCH = 32
"""Images at a time: memory stays bounded, and the cost of a call is shared."""


def main(model: str, images: str, logits: str, threads: str) -> None:
    """Write the logits of `images` to `logits` and print, as JSON, what worked them out."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    entrance, answer = session.get_inputs()[0].name, session.get_outputs()[0].name
    given = np.load(images)
    # At least one call: no images, too, have logits of a known width.
    starts = range(0, max(len(given), 1), BATCH)
    parts = [session.run([answer], {entrance: given[i : i + BATCH]})[0] for i in starts]
    np.save(logits, np.concatenate([np.asarray(part) for part in parts]))
    print(json.dumps({"onnxruntime": onnxruntime.__version__, "machine": platform.machine()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
