"""The implementations that are recipes. One row each; their order is that of the ablation.

A row differs from the row that it adds to in one technique, so that what it gains is that technique's.
"""

from dataclasses import replace

from detserver.implementations.from_recipe import Row
from detserver.recipes.recipe import Recipe, Search

_BASELINE = Recipe()
_BATCHED = replace(_BASELINE, postprocess="batched")
_CHANNELS_LAST = replace(_BATCHED, layout="channels_last")
_FOLDED = replace(_CHANNELS_LAST, fold=True)
_STREAMS = replace(_FOLDED, streams=True)
_GRAPHS = replace(_STREAMS, graph=True)
_COMPILED = replace(_FOLDED, compile="default")
_OPENVINO = replace(_FOLDED, backend="openvino")

ROWS = (
    Row("baseline", _BASELINE, "effdet's DetBenchPredict, eager fp32, one model after the other, one image at a time"),
    Row("postprocess", _BATCHED, "as baseline, with one post-processing of all models and images", "baseline"),
    Row("channels-last", _CHANNELS_LAST, "as postprocess, in the memory format channels_last", "postprocess"),
    Row("folded", _FOLDED, "as channels-last, with batch norms folded into the convolutions", "channels-last"),
    Row("streams", _STREAMS, "as folded, each model on a CUDA stream of its own", "folded"),
    Row("graphs", _GRAPHS, "as streams, networks and post-processing in one CUDA graph per batch size", "streams"),
    Row("compiled", _COMPILED, "as folded, each model through torch.compile", "folded"),
    Row(
        "reduce-overhead",
        replace(_COMPILED, compile="reduce-overhead"),
        "as compiled, each model in the CUDA graphs that torch.compile makes itself",
        "compiled",
    ),
    Row("vmap", replace(_FOLDED, stack="vmap"), "as folded, models of one architecture stacked by vmap", "folded"),
    Row(
        "grouped",
        replace(_FOLDED, stack="grouped"),
        "as folded, models of one architecture as one network of grouped convolutions",
        "folded",
    ),
    Row("openvino", _OPENVINO, "the folded models through OpenVINO; CPU", "folded"),
    Row("onnxruntime", replace(_FOLDED, backend="onnxruntime"), "the folded models through ONNX Runtime", "folded"),
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
