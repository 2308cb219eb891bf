"""What mxq writes down and prints: the record beside a quantized pair, and tables for the terminal."""
