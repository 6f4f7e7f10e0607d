"""The Open Inference Protocol (KServe's V2 inference protocol) over HTTP, with the extensions of Triton.

    /v2, /v2/health/live, /v2/health/ready
    /v2/models/{model}[/versions/1], and below it /ready, /config, /stats, /infer; /v2/models/stats
    /v2/repository/index, /v2/repository/models/{model}/load, …/unload

Source: KServe's open-inference-protocol, `inference_rest.md`; Triton's `docs/protocol`: binary data, statistics, model
configuration, model repository.
"""
