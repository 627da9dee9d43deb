"""The finished model in other forms: one graph for ONNX Runtime and OpenVINO, 8 bit of it, and static embeddings."""
