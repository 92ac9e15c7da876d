"""A decoder that streams: layers, the chunk step, questions and answers. Of no model family."""
