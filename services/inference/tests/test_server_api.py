"""All routes but `/infer`, and how the server starts."""

import threading
from pathlib import Path

import httpx
import pytest
from running_server import RunningServer

from detserver.__main__ import main
from detserver.http.stages import STAGES

PNG = {"Content-Type": "image/png"}


def get(server: RunningServer, path: str) -> dict:
    return httpx.get(server.url + path, timeout=30).raise_for_status().json()


def test_health_says_what_the_server_is(server: RunningServer):
    health = get(server, "/health")
    assert health["status"] == "ok"
    assert health["versions"]["effdet"]
    assert [model_set["name"] for model_set in health["model_sets"]] == ["mixed", "uniform", "quick"]
    mixed, _, quick = ([each["model_name"] for each in model_set["models"]] for model_set in health["model_sets"])
    assert mixed == ["tf_efficientdet_d0", "tf_efficientdet_d1", "tf_efficientdet_d2"]
    assert quick == ["tf_efficientdet_d0", "tf_efficientdet_d1"]
    assert [model["source"] for model in health["model_sets"][2]["models"]] == ["random", "random"]


def test_implementations_say_what_they_claim_and_whether_they_are_loaded(server: RunningServer):
    baseline, invalid = get(server, "/implementations")[:2]
    assert (baseline["name"], baseline["exact"], "quick" in baseline["loaded"]) == ("baseline", True, True)
    assert (invalid["name"], invalid["exact"]) == ("invalid", False)
    assert invalid["model_sets"] == ["mixed", "uniform", "quick"]


def test_load_and_unload(start_server, photos: list[Path]):
    server = start_server(preload="none")
    data = photos[0].read_bytes()
    # A request loads what it needs.
    assert server.infer("invalid", files={"file": data}).status_code == 200
    load = f"{server.url}/implementations/invalid/load?model_set=uniform"
    assert httpx.post(load, timeout=60).json()["load_s"] > 0
    assert httpx.post(load, timeout=60).json()["load_s"] == 0
    assert get(server, "/implementations")[1]["loaded"] == ["quick", "uniform"]
    assert server.infer("invalid?model_set=uniform", files={"file": data}).status_code == 200
    unload = f"{server.url}/implementations/invalid/unload?model_set=uniform"
    assert httpx.post(unload).json()["was_loaded"] is True
    assert httpx.post(unload).json()["was_loaded"] is False
    # But not what somebody has unloaded.
    refused = server.infer("invalid?model_set=uniform", files={"file": data})
    assert refused.status_code == 409
    assert "POST /implementations/invalid/load" in refused.json()["detail"]
    assert server.infer("invalid", files={"file": data}).status_code == 200
    assert httpx.post(load, timeout=60).status_code == 200
    assert server.infer("invalid?model_set=uniform", files={"file": data}).status_code == 200


def test_a_request_is_answered_by_its_deadline_or_refused_with_when_to_come_back(server: RunningServer, photos):
    data = photos[0].read_bytes()

    def ask(deadline_ms: str) -> httpx.Response:
        return server.infer("baseline", content=data, headers=PNG | {"X-Deadline-Ms": deadline_ms})

    assert ask("60000").status_code == 200
    refused = ask("1")
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert "deadline" in refused.json()["detail"]
    for wrong in ("0", "0.5", "-1", "soon", "nan", "1e99"):
        assert ask(wrong).status_code == 422


def test_implementations_say_what_loading_took(server: RunningServer):
    baseline = get(server, "/implementations")[0]
    (figures,) = [each for each in baseline["loads"] if each["model_set"] == "quick"]
    assert figures["load_s"] > 0
    assert figures["compile_s"] is None
    compiled = next(each for each in get(server, "/implementations") if each["name"] == "compiled")
    assert compiled["compiles"] is True


@pytest.mark.slow
def test_kernels_are_counted_once_in_another_process(start_server):
    server = start_server(preload="invalid")

    def counted(query: str) -> httpx.Response:
        return httpx.post(f"{server.url}/implementations/{query}", timeout=200)

    assert counted("baseline/kernels").json()["kernels_per_request"] > 1000
    assert counted("baseline/kernels").json()["kernels_per_request"] > 1000
    assert counted("invalid/kernels?model_set=uniform").json()["kernels_per_request"] == 0
    assert server.log.count("counting the kernels") == 2
    assert get(server, "/implementations")[0]["loaded"] == [], "the server itself has not loaded it"
    assert counted("nothing/kernels").status_code == 404
    assert counted("vmap/kernels?model_set=mixed").status_code == 409


def test_loading_in_the_middle_of_requests_fails_none_but_those_for_what_was_unloaded(start_server, photos: list[Path]):
    server = start_server(preload="none")
    data = photos[0].read_bytes()
    statuses: list[int] = []

    def ask() -> None:
        for _ in range(10):
            statuses.append(server.infer("invalid?model_set=uniform", content=data, headers=PNG).status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        for what in ("load", "load", "unload"):
            answer = httpx.post(f"{server.url}/implementations/invalid/{what}?model_set=uniform", timeout=60)
            assert answer.status_code == 200
    for thread in threads:
        thread.join()
    assert len(statuses) == 30
    assert set(statuses) <= {200, 409}
    assert httpx.post(f"{server.url}/implementations/invalid/load?model_set=uniform", timeout=60).status_code == 200
    ask()
    assert statuses[30:] == [200] * 10


def test_a_batch_is_timed_on_the_device(server: RunningServer, photos: list[Path]):
    def ask(query: str) -> httpx.Response:
        return httpx.post(f"{server.url}/time/{query}", content=photos[0].read_bytes(), headers=PNG, timeout=120)

    timed = ask("invalid?batch_size=4&repeats=7").json()
    assert (timed["batch_size"], len(timed["latencies_ms"])) == (4, 7)
    assert ask("invalid?batch_size=65").status_code == 422
    assert ask("invalid?repeats=0").status_code == 422
    assert ask("graphs").status_code == 409
    assert httpx.post(f"{server.url}/time/invalid", content=b"no image", headers=PNG).status_code == 400


def test_what_cannot_run_is_listed_with_the_reason_and_refused_with_409(server: RunningServer):
    listed = {each["name"]: each for each in get(server, "/implementations")}
    for name in ("vmap", "grouped"):
        assert listed[name]["model_sets"] == ["uniform"]
        assert "nothing to stack" in listed[name]["unsupported"]["mixed"]
        assert_refused(f"{server.url}/implementations/{name}/load?model_set=mixed", "tf_efficientdet_d2")
        assert_refused(f"{server.url}/infer/{name}?model_set=mixed", "it can run uniform")
    assert "NVIDIA" in listed["graphs"]["unavailable"]
    assert_refused(f"{server.url}/implementations/graphs/load", "CUDA streams need an NVIDIA GPU")


def assert_refused(url: str, reason: str) -> None:
    answer = httpx.post(url)
    assert answer.status_code == 409
    assert reason in answer.json()["detail"]


def test_loading_something_unknown_is_404(server: RunningServer):
    for path in ("/implementations/nothing/load", "/implementations/invalid/load?model_set=nothing"):
        assert httpx.post(server.url + path).status_code == 404
    assert httpx.get(server.url + "/model-sets/nothing").status_code == 404


def test_metrics_count_requests_by_status_and_never_by_names_of_the_client(server: RunningServer, photos: list[Path]):
    server.infer("invalid", files={"file": photos[0].read_bytes()})
    server.infer("x" * 50, files={"file": photos[0].read_bytes()})
    metrics = httpx.get(server.url + "/metrics").text
    assert 'detserver_requests_total{implementation="invalid",model_set="quick",status="200"}' in metrics
    assert 'detserver_requests_total{implementation="unknown",model_set="quick",status="404"}' in metrics
    assert "x" * 50 not in metrics
    for stage in STAGES:
        assert f'detserver_stage_duration_seconds_count{{implementation="invalid",stage="{stage}"}}' in metrics
    assert 'detserver_implementation_loaded{implementation="invalid",model_set="quick"} 1.0' in metrics
    assert 'detserver_weights_info{model="tf_efficientdet_d0",model_set="quick",source="random"} 1.0' in metrics


def test_the_documentation_describes_the_image_and_every_refusal(server: RunningServer):
    schema = get(server, "/openapi.json")
    assert "HTTPValidationError" not in schema["components"]["schemas"]  # its `detail` is a list
    infer = schema["paths"]["/infer/{implementation}"]["post"]
    assert {"multipart/form-data", "image/jpeg", "image/png"} <= set(infer["requestBody"]["content"])
    assert {"200", "400", "404", "409", "413", "415", "422", "429", "503"} <= set(infer["responses"])
    answer = infer["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer == {"$ref": "#/components/schemas/Inference"}


def test_one_request_too_many_is_429_with_retry_after(start_server, photos: list[Path]):
    server = start_server(queue_size="1")
    data = photos[0].read_bytes()
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(server.infer("baseline", files={"file": data}))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert all(answer.headers["Retry-After"] for answer in refused)
    assert {answer.status_code for answer in answers} == {200, 429}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"device": "cuda:77"}, "DETSERVER_DEVICE=cuda:77"),
        ({"device": "mps"}, "DETSERVER_DEVICE=mps: the server runs on cuda and on cpu, not on mps"),
        ({"device": "gpu"}, "DETSERVER_DEVICE=gpu is no device"),
        ({"default_model_set": "nothing"}, "nothing"),
        ({"queue_size": "many"}, "DETSERVER_QUEUE_SIZE"),
        ({"max_batch_size": "8"}, "DETSERVER_MAX_BATCH_SIZE: Value error, '8' is not of the form NAME=NUMBER"),
        ({"max_batch_size": "fastest=2,slowest=8"}, "DETSERVER_MAX_BATCH_SIZE: no implementation 'slowest'"),
        ({"max_batch_size": "fastest=0"}, "DETSERVER_MAX_BATCH_SIZE: Value error, 'fastest=0' is not"),
        ({"max_queue_delay_ms": "fastest=-1"}, "DETSERVER_MAX_QUEUE_DELAY_MS"),
        ({"model_sets_file": "/nowhere.toml"}, "/nowhere.toml"),
    ],
)
def test_a_setting_that_cannot_be_used_ends_the_start_with_one_line(monkeypatch, capsys, settings: dict, reason: str):
    monkeypatch.setattr("sys.argv", ["detserver"])
    for name, value in settings.items():
        monkeypatch.setenv(f"DETSERVER_{name.upper()}", value)
    assert main() == 2
    printed = capsys.readouterr().err
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert reason in line
    assert "Traceback" not in printed


def test_a_preload_that_fails_is_told_by_ready_and_health(start_server):
    server = start_server(wait=False, preload="nothing")
    while (answer := httpx.get(server.url + "/ready")).json().get("failed") is False:
        pass
    assert answer.status_code == 503
    assert "no implementation 'nothing'" in answer.json()["detail"]
    assert get(server, "/health")["status"] == "failed"
