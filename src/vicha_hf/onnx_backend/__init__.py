"""Models that `vicha-hf export` wrote, run by onnxruntime behind the calls of the torch models."""

from .export_manifest import ExportManifest
from .loading import load_onnx
from .question_answering import OnnxQuestionAnswering
from .retrieval import OnnxRetrieval


__all__ = ["ExportManifest", "OnnxQuestionAnswering", "OnnxRetrieval", "load_onnx"]
