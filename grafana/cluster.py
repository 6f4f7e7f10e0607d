"""The replicas of a cluster of Ray Serve, beside each other; Ray's own metrics carry the names of its documentation."""

from grafana_foundation_sdk.builders.dashboard import Dashboard
from panels import NO_CLUSTER, dashboard, graph, number, weights

HEALTHY = "sum(ray_serve_deployment_replica_healthy)"
WANTED = "sum(ray_serve_autoscaling_target_replicas)"
IN_PROXY = "sum(ray_serve_deployment_queued_queries)"
STARTED = "sum(ray_serve_replica_startup_latency_ms_count)"
ERRORS = "error_code:ray_serve_num_http_error_requests:rate30s"
ONE = "{{replica}}"


def cluster() -> Dashboard:
    """The replicas of a cluster of Ray Serve, beside each other."""
    return (
        dashboard(
            "detbench-cluster",
            "Cluster",
            "The server as several replicas behind one address, by Ray Serve: how many there are and whether they are "
            "well, what each of them does, and what the proxy before them turns away.",
        )
        .with_panel(number("Replicas", "Replicas that pass Ray's health check now.", "short", HEALTHY))
        .with_panel(number("Replicas wanted", "How many the autoscaler wants there to be now.", "short", WANTED))
        .with_panel(
            number(
                "Throughput",
                "Successful answers per second of all replicas, by their own count.",
                "reqps",
                'sum(rate(detserver_requests_total{status="200"}[$__rate_interval]))',
            )
        )
        .with_panel(number("Waiting for a replica", "Requests that wait in the proxy now.", "short", IN_PROXY))
        .with_panel(
            number(
                "Waiting for a device", "Requests that wait in a replica now.", "short", "sum(detserver_queue_depth)"
            )
        )
        .with_panel(
            number(
                "Errors",
                "Answers per second with a status of 400 or more, of the replicas and of the proxy, over 30 s.",
                "reqps",
                f"sum({ERRORS})",
            )
        )
        .with_panel(weights())
        .with_panel(
            graph(
                "Replicas",
                "Wanted by the autoscaler, well by Ray's health check, and answering Prometheus. Where the first stays "
                "above the second, there is no place for more: a worker is missing.",
                "short",
                (WANTED, "wanted"),
                (HEALTHY, "healthy"),
                ("count(detserver_build_info)", "answering"),
            )
        )
        .with_panel(
            graph(
                "Requests by replica",
                "Successful answers per second of each replica. The proxy asks two for the shorter queue.",
                "reqps",
                ('sum by (replica) (rate(detserver_requests_total{status="200"}[$__rate_interval]))', ONE),
            )
        )
        .with_panel(
            graph(
                "Queue",
                "Requests that wait in the proxy for a place in a replica, and in each replica for its device.",
                "short",
                (IN_PROXY, "proxy"),
                ("sum by (replica) (detserver_queue_depth)", ONE),
            )
        )
        .with_panel(
            graph(
                "Restarts",
                "Replicas that became ready since the cluster began: at first as many as were wanted, and one more for "
                "each that took the place of a dead one or that the autoscaler added. Health checks that failed.",
                "short",
                (STARTED, "started"),
                (f"sum(ray_serve_health_check_failures_total) or 0 * {STARTED}", "failed health checks"),
                absent=NO_CLUSTER,
            )
        )
        .with_panel(
            graph(
                "Memory by replica",
                "Of each replica's process now: on a GPU the GPU's memory by NVML, without one resident memory.",
                "bytes",
                ('sum by (replica) (detserver_vram_bytes{kind="process"})', f"GPU, {ONE}"),
                (
                    'sum by (replica) (detserver_resident_bytes{kind="now"} unless on (instance) detserver_vram_bytes)',
                    f"resident, {ONE}",
                ),
            )
        )
        .with_panel(
            graph(
                "Errors by code",
                "Answers per second with a status of 400 or more, over 30 s. 429: no place, or too near a deadline. "
                "500 or 503: a replica died with the request in work, there is none, or a deadline was missed.",
                "reqps",
                (ERRORS, "{{error_code}}"),
                absent=NO_CLUSTER,
            ).axis_soft_max(1)
        )
    )
