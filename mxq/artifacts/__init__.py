"""What mxq leaves on disk: the quantized pair and the record beside it."""
