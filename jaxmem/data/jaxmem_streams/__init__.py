"""TensorFlow Datasets builder `jaxmem_streams`: fixed splits of the synthetic world.

Importing this package registers the builder; it needs the `train` extra, but no TensorFlow.
"""

from jaxmem.data.jaxmem_streams.jaxmem_streams_dataset_builder import Builder, StreamsConfig

__all__ = ["Builder", "StreamsConfig"]
