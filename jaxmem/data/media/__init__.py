"""Files, addresses and devices as aligned pieces of pictures and sound."""

from jaxmem.data.media.media import open_media

__all__ = ["open_media"]
