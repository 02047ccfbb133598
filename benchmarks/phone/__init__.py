"""A page that measures a run's ONNX files in a phone's browser, and the server that offers it."""
