"""Trackers: callbacks that hand the scalars and texts of a run to TensorBoard, W&B, MLflow and OpenTelemetry."""
