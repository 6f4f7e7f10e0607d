"""The implementations that are recipes. One row each; their order is that of the ablation.

A row differs from the row that it adds to in one technique, so that what it gains is that technique's.
"""

from dataclasses import replace

from detserver.implementations.from_recipe import Row
from detserver.recipes.recipe import Recipe, Search

_BASELINE = Recipe()
_BATCHED = replace(_BASELINE, postprocess="batched")
_FOLDED = replace(_BATCHED, fold=True)
_CHANNELS_LAST = replace(_FOLDED, layout="channels_last")
_STREAMS = replace(_FOLDED, streams=True)
_GRAPHS = replace(_STREAMS, graph=True)
_COMPILED = replace(_CHANNELS_LAST, compile="default")
_OPENVINO = replace(_CHANNELS_LAST, backend="openvino")

ROWS = (
    Row("baseline", _BASELINE, "effdet's DetBenchPredict, eager fp32, one model after the other, one image at a time"),
    Row("postprocess", _BATCHED, "as baseline, with one post-processing of all models and images", "baseline"),
    Row("folded", _FOLDED, "as postprocess, with batch norms folded into the convolutions", "postprocess"),
    Row("channels-last", _CHANNELS_LAST, "as folded, in the memory format channels_last", "folded"),
    Row("streams", _STREAMS, "as folded, each model on a CUDA stream of its own", "folded"),
    Row("graphs", _GRAPHS, "as streams, networks and post-processing in one CUDA graph per batch size", "streams"),
    Row("compiled", _COMPILED, "as channels-last, each model through torch.compile", "channels-last"),
    Row(
        "reduce-overhead",
        replace(_COMPILED, compile="reduce-overhead"),
        "as compiled, each model in the CUDA graphs that torch.compile makes itself",
        "compiled",
    ),
    Row(
        "vmap",
        replace(_CHANNELS_LAST, stack="vmap"),
        "as channels-last, models of one architecture stacked by vmap",
        "channels-last",
    ),
    Row(
        "grouped",
        replace(_CHANNELS_LAST, stack="grouped"),
        "as channels-last, models of one architecture as one network of grouped convolutions",
        "channels-last",
    ),
    Row("openvino", _OPENVINO, "the folded models through OpenVINO; CPU", "channels-last"),
    Row(
        "onnxruntime",
        replace(_CHANNELS_LAST, backend="onnxruntime"),
        "the folded models through ONNX Runtime",
        "channels-last",
    ),
    Row("fastest", Search(), "the fastest exact recipe for this set, device and batch size, found by timing"),
    Row("tf32", replace(_GRAPHS, precision="tf32"), "as graphs, in TF32: not exact, see its output error", "graphs"),
    Row("fp16", replace(_GRAPHS, precision="fp16"), "as graphs, in float16: not exact, see its output error", "graphs"),
    Row(
        "openvino-int8",
        replace(_OPENVINO, precision="int8"),
        "as openvino, in 8-bit integers calibrated on photographs: not exact, see its output error",
        "openvino",
    ),
    Row("fastest-bf16", Search("bf16"), "as fastest, in bfloat16: not exact, see its output error", "fastest"),
    Row("fastest-fp16", Search("fp16"), "as fastest, in float16: not exact, see its output error", "fastest"),
)
