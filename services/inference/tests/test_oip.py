"""The Open Inference Protocol, as Triton's own client speaks it, and as nobody should."""

import base64
import io
import json
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from running_server import RunningServer
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from detserver.errors import BadInferRequest
from detserver.http.oip.messages import InferRequest

LENGTH = "Inference-Header-Content-Length"
OUTPUTS = {"boxes": "FP32", "scores": "FP32", "labels": "INT64", "model": "INT32"}


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=300) as connected:
        yield connected


@pytest.fixture(scope="module")
def photo(photos: list[Path]) -> bytes:
    return photos[1].read_bytes()


def picture(data: bytes, binary: bool = True, name: str = "image", datatype: str = "BYTES", shape=(1,)):
    tensor = triton.InferInput(name, list(shape), datatype)
    values = np.full(shape, data if binary else base64.b64encode(data), dtype=object)
    tensor.set_data_from_numpy(values.astype(triton_to_np_dtype(datatype)), binary_data=binary)
    return tensor


def of_infer(server: RunningServer, implementation: str, photo: bytes) -> list[dict]:
    answer = server.infer(implementation, content=photo, headers={"Content-Type": "image/png"})
    return answer.raise_for_status().json()["detections"]


def assert_same(answer: triton.InferResult, detections: list[dict]) -> None:
    boxes, scores, labels, model = (answer.as_numpy(name) for name in OUTPUTS)
    assert [each.dtype for each in (boxes, scores, labels, model)] == [np.float32, np.float32, np.int64, np.int32]
    assert boxes.shape == (len(scores), 4)
    assert answer.get_response()["parameters"]["models"] == ",".join(each["model_name"] for each in detections)
    for number, expected in enumerate(detections):
        found = model == number
        assert np.array_equal(boxes[found], np.reshape(np.float32(expected["boxes"]), (-1, 4)))
        assert np.array_equal(scores[found], np.float32(expected["scores"]))
        assert np.array_equal(labels[found], expected["labels"])
    assert len(scores) == sum(len(each["scores"]) for each in detections) > 0
    assert np.all(np.diff(model) >= 0)


def test_the_server_says_that_it_lives_what_it_is_and_what_it_can(client: triton.InferenceServerClient):
    assert client.is_server_live()
    assert client.is_server_ready()
    about = client.get_server_metadata()
    assert about["name"] == "detserver"
    assert {"binary_tensor_data", "statistics", "model_repository", "model_configuration"} <= set(about["extensions"])


@pytest.mark.parametrize("version", ["", "1"])
@pytest.mark.parametrize("model", ["baseline", "invalid", "baseline@quick"])
def test_a_model_tells_its_tensors(client: triton.InferenceServerClient, model: str, version: str):
    assert client.is_model_ready(model, version)
    metadata = client.get_model_metadata(model, version)
    assert (metadata["name"], metadata["versions"]) == (model, ["1"])
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [1]}]
    assert {each["name"]: each["datatype"] for each in metadata["outputs"]} == OUTPUTS
    config = client.get_model_config(model, version)
    assert (config["name"], config["max_batch_size"]) == (model, 0)
    assert config["input"] == [{"name": "image", "data_type": "TYPE_STRING", "dims": [1]}]
    assert [each["name"] for each in config["output"]] == list(OUTPUTS)
    assert config["instance_group"] == [{"kind": "KIND_CPU", "count": 1}]


@pytest.mark.parametrize("binary_out", [True, False], ids=["binary out", "JSON out"])
@pytest.mark.parametrize("binary_in", [True, False], ids=["binary in", "JSON in"])
def test_detections_equal_those_of_infer(
    client, server: RunningServer, photo: bytes, binary_in: bool, binary_out: bool
):
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in OUTPUTS]
    answer = client.infer("baseline", [picture(photo, binary_in)], outputs=outputs, request_id="seven")
    assert answer.get_response()["id"] == "seven"
    assert_same(answer, of_infer(server, "baseline", photo))


@pytest.mark.parametrize("size", [1, 3, 40, 200, 10_000])
def test_a_request_may_arrive_in_any_pieces(size: int):
    image = bytes(range(256))
    binary = triton.InferInput("image", [1], "BYTES")
    binary.set_data_from_numpy(np.array([image], dtype=object))
    body, json_bytes = triton.InferenceServerClient.generate_request_body([binary])
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    assert InferRequest(pieces, json_bytes).image == image
    with pytest.raises(BadInferRequest):
        InferRequest(pieces[:-1], json_bytes)


def test_a_version_in_a_query_is_no_version(server: RunningServer):
    assert httpx.get(f"{server.url}/v2/models/baseline?version=7").status_code == 200
    assert httpx.get(f"{server.url}/v2/models/baseline/versions/7").status_code == 404


def test_outputs_can_be_chosen_and_left_to_the_server(client, server: RunningServer, photo: bytes):
    everything = client.infer("baseline", [picture(photo)], model_version="1")
    assert_same(everything, of_infer(server, "baseline", photo))
    wanted = [triton.InferRequestedOutput("scores", binary_data=False), triton.InferRequestedOutput("labels")]
    answer = client.infer("baseline", [picture(photo)], outputs=wanted)
    assert [each["name"] for each in answer.get_response()["outputs"]] == ["scores", "labels"]
    assert ["data" in each for each in answer.get_response()["outputs"]] == [True, False]
    assert np.array_equal(answer.as_numpy("scores"), everything.as_numpy("scores"))
    assert answer.as_numpy("boxes") is None


def test_a_body_that_is_the_picture_alone_is_answered_in_binary(server: RunningServer, photo: bytes):
    answer = httpx.post(f"{server.url}/v2/models/baseline/infer", content=photo, headers={LENGTH: "0"}, timeout=60)
    size = int(answer.headers[LENGTH])
    assert_same(
        triton.InferenceServerClient.parse_response_body(answer.content, header_length=size),
        of_infer(server, "baseline", photo),
    )


def test_the_timings_of_an_answer_add_up(client, photo: bytes):
    parameters = client.infer("baseline", [picture(photo)]).get_response()["parameters"]
    stages = {name: value for name, value in parameters.items() if name.endswith("_ms")}
    assert set(stages) >= {"receive_ms", "queue_ms", "forward_ms", "serialise_ms"}
    assert all(value >= 0 for value in stages.values())
    assert parameters["batch_size"] == 1
    assert (parameters["implementation"], parameters["model_set"]) == ("baseline", "quick")


WRONG = {
    "no such model": (404, "no implementation", {"model_name": "nonsense"}),
    "no such set": (404, "no model set", {"model_name": "baseline@nonsense"}),
    "no such version": (404, "version 1 alone", {"model_version": "2"}),
    "input name": (400, "`picture`", {"inputs": [{"name": "picture"}]}),
    "two inputs": (400, "has one", {"inputs": [{}, {}]}),
    "no input": (400, "has none", {"inputs": []}),
    "datatype": (400, "datatype UINT8", {"inputs": [{"datatype": "UINT8"}]}),
    "shape": (400, r"shape \[2\]", {"inputs": [{"shape": (2,)}]}),
    "no elements": (400, r"shape \[0\]", {"inputs": [{"shape": (0,)}]}),
    "no picture": (400, "not an image", {"inputs": [{"data": b"no picture"}]}),
    "output name": (400, "`box`", {"outputs": [triton.InferRequestedOutput("box")]}),
    "output twice": (400, "each once", {"outputs": [triton.InferRequestedOutput("boxes")] * 2}),
    "classes": (400, "no classification", {"outputs": [triton.InferRequestedOutput("boxes", class_count=3)]}),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_in_the_form_of_the_protocol(client, photo: bytes, case: str):
    status, message, changed = WRONG[case]
    request = {"model_name": "baseline", "inputs": [{}]} | changed
    request["inputs"] = [
        picture(**({"data": b"\7" if each.get("datatype") == "UINT8" else photo} | each))
        if each.get("datatype") != "UINT8"
        else numbers()
        for each in request["inputs"]
    ]
    with pytest.raises(InferenceServerException, match=message) as refused:
        client.infer(**request)
    assert refused.value.status() == str(status)


def numbers() -> triton.InferInput:
    tensor = triton.InferInput("image", [1], "UINT8")
    tensor.set_data_from_numpy(np.zeros(1, np.uint8))
    return tensor


def test_the_repository_lists_loads_and_unloads(start_server, photo: bytes):
    server = start_server(preload="invalid")
    with triton.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=300) as client:
        states = {each["name"]: each["state"] for each in client.get_model_repository_index()}
        assert states["invalid"] == "READY"
        assert states["baseline"] == states["invalid@uniform"] == "UNAVAILABLE"
        assert not client.is_model_ready("baseline")
        client.load_model("invalid@uniform")
        assert client.is_model_ready("invalid@uniform")
        assert not client.is_model_ready("nonsense")
        client.unload_model("invalid")
        with pytest.raises(InferenceServerException, match="unloaded"):
            client.infer("invalid", [picture(photo)])
        client.load_model("invalid")
        client.infer("invalid", [picture(photo)])
        with pytest.raises(InferenceServerException, match="loaded as it is"):
            client.load_model("invalid", config='{"max_batch_size": 8}')
        ready = httpx.post(f"{server.url}/v2/repository/index", json={"ready": True}).json()
        assert {each["name"] for each in ready} == {"invalid", "invalid@uniform"}


def test_statistics_count_what_was_answered_and_what_was_not(start_server, photo: bytes):
    server = start_server(preload="invalid")
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        before_ms = 1e3 * time.time()
        for _ in range(3):
            client.infer("invalid", [picture(photo)])
        of_infer(server, "invalid", photo)
        with pytest.raises(InferenceServerException):
            client.infer("invalid", [picture(b"no picture")])
        (stats,) = client.get_inference_statistics("invalid")["model_stats"]
        assert client.get_inference_statistics()["model_stats"] == [stats]
    assert (stats["name"], stats["version"], stats["inference_count"], stats["execution_count"]) == (
        "invalid",
        "1",
        4,
        4,
    )
    assert before_ms <= stats["last_inference"] <= 1e3 * time.time()
    figures = stats["inference_stats"]
    assert (figures["success"]["count"], figures["fail"]["count"]) == (4, 1)
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert {figures[part]["count"] for part in parts} == {4}
    assert 0 < sum(figures[part]["ns"] for part in parts) <= figures["success"]["ns"]
    (batches,) = stats["batch_stats"]
    assert (batches["batch_size"], batches["compute_infer"]) == (1, figures["compute_infer"])


@pytest.mark.parametrize(
    ("extra", "statuses"),
    [({"headers": {"X-Deadline-Ms": "1"}}, {"429"}), ({"timeout": 1000}, {"429", "503"})],
    ids=["header", "timeout"],
)
def test_a_deadline_holds(client, photo: bytes, extra: dict, statuses: set[str]):
    client.infer("baseline", [picture(photo)])  # so that the server knows how long it takes
    with pytest.raises(InferenceServerException, match="deadline") as refused:
        client.infer("baseline", [picture(photo)], **extra)
    assert refused.value.status() in statuses
    client.infer("baseline", [picture(photo)], timeout=60_000_000)


def tiny() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (9, 99, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


def malformed(random: random.Random) -> tuple[dict[str, str], bytes]:
    """A request with one thing wrong: what is named, counted, nested or as long as it says."""
    data = tiny()
    element = struct.pack("<I", len(data)) + data
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(element)}}
    request: dict = {"inputs": [image]}
    number = random.choice([-1, 0, 1, 2, 7, 2**31, 2**63, 2**64, 10**400, -(10**4000), 1.5, "1", None, True, [1], {}])
    lie = random.choice([len(element) + 1, len(element) - 1, 0, 2**40, 10**4000, -5, "9", 1.5, None, [], True])
    length: object = None
    kind = random.randrange(16)
    if kind == 0:
        image["shape"] = [number] if number != 1 or number is True else [1, 2]
    elif kind == 1:
        image["shape"] = random.choice([[1] * 20_000, [2**40] * 8, [], "1", None, {}, [[1]], [-1], [0], [1, 3]])
    elif kind == 2:
        image["parameters"] = {"binary_data_size": lie}
    elif kind == 3:
        length = random.choice(["-1", "1e3", "９", "", "0x10", str(2**70), "99999999", "1", "7"])
    elif kind == 4:
        element = random.choice(
            [b"", data, element[:-1], element + b"x", struct.pack("<I", 2**32 - 1) + data, b"\0\0\0"]
        )
        image["parameters"] = {"binary_data_size": len(element)}
    elif kind == 5:
        image["datatype"] = random.choice(["FP32", "bytes", "", "B" * 10_000, None, 7, "UINT8"])
    elif kind == 6:
        image["name"] = random.choice(["", "images", "i" * 100_000, None, 7, "image\0"])
    elif kind == 7:
        request["inputs"] = random.choice([None, {}, [], [image] * 2, [image] * 5000, "image", [None], [[image]], 3])
    elif kind == 8:
        request["outputs"] = random.choice(
            [
                7,
                "boxes",
                [{}],
                [{"name": "no"}],
                [{"name": "boxes"}] * 2,
                [{"name": 7}],
                [None],
                [{"name": "boxes"}] * 4000,
            ]
        )
    elif kind == 9:
        request["parameters"] = random.choice(
            [{"timeout": -1}, {"timeout": 10**400}, {"timeout": "soon"}, {"binary_data_output": "yes"}, 7, []]
        )
    elif kind == 10:
        image |= {"data": ["AAAA"]}
    elif kind == 11:
        del image["parameters"]
        element = b""
        image["data"] = random.choice(
            [None, [], ["a", "b"], [7], "not base64!", [["###"]], {}, [None], [["A"]], [True]]
        )
    elif kind == 12:
        request["id"] = random.choice([7, None, [], {"a": 1}])
    elif kind == 13:
        element = element + b"\0" * random.randrange(1, 100)
    text = json.dumps(request).encode()
    if kind == 14:
        text = text[: random.randrange(1, len(text))]
    elif kind == 15:
        text = random.choice(
            [
                b"[" * 100_000,
                b'{"a":' * 50_000,
                b"0," * 1_000_000,
                b"\xff\xfe",
                b"nul",
                b"{}",
                b"[]",
                b"7",
                b'"x"',
                b"NaN",
                b'{"inputs": 1' + b"0" * 5000 + b"}",
                b'{"inputs": 1' + b"0" * 5000 + b"}",
            ]
        )
        element = b""
    headers = {LENGTH: str(len(text) if length is None else length)}
    return {name: value for name, value in headers.items() if value.isascii()}, text + element


def test_a_thousand_malformed_requests_are_told_so_and_leave_nothing_behind(server: RunningServer, photo: bytes):
    chance = random.Random(14)
    url = f"{server.url}/v2/models/invalid/infer"

    def ask(client: httpx.Client) -> None:
        headers, body = malformed(chance)
        answer = client.post(url, content=body, headers=headers)
        assert 400 <= answer.status_code < 500, (answer.status_code, headers, body[:300])
        assert list(answer.json()) == ["error"], (headers, body[:300])
        assert 0 < len(answer.json()["error"]) < 600

    with httpx.Client(timeout=60) as client:
        for _ in range(200):
            ask(client)
        after_200 = resident_mb(server)
        for _ in range(800):
            ask(client)
    assert resident_mb(server) < 1.05 * after_200 + 20
    detections = of_infer(server, "baseline", photo)
    with triton.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=300) as client:
        assert_same(client.infer("baseline", [picture(photo)]), detections)


def resident_mb(server: RunningServer) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1e3


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/nonsense"),
        ("DELETE", "/v2"),
        ("GET", "/v2/models/baseline/infer"),
        ("POST", "/v2/repository/indexes"),
    ],
)
def test_what_there_is_not_is_told_in_the_form_of_the_protocol(server: RunningServer, method: str, path: str):
    answer = httpx.request(method, server.url + path)
    assert answer.status_code in (404, 405)
    assert list(answer.json()) == ["error"]
    assert list(httpx.get(f"{server.url}/v20").json()) == ["detail"]


def test_bodies_are_bounded_before_they_are_read(server: RunningServer):
    answer = httpx.post(f"{server.url}/v2/models/invalid/infer", content=b" " * 21_000_000, timeout=60)
    assert (answer.status_code, list(answer.json())) == (413, ["error"])
    compressed = httpx.post(
        f"{server.url}/v2/models/invalid/infer", content=b"x", headers={"Content-Encoding": "gzip"}, timeout=60
    )
    assert (compressed.status_code, list(compressed.json())) == (415, ["error"])
