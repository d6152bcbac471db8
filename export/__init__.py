"""torch -> one plain ONNX graph -> every variant derived from it, each checked against the plain one."""
