"""The finished model in other forms, for ONNX Runtime, OpenVINO or tiny devices: open `build.py` first."""
