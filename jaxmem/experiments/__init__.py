"""Command lines: `python -m jaxmem.experiments.{stream,train,benchmark,calibrate}`."""
