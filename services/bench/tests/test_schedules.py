"""Arrival schedules: exact where they can be, and of the right distribution where they are random."""

import math
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from detbench.errors import DetbenchError
from detbench.load.schedules import Schedule, photo_of, read_trace, schedule_of

SEED = 20
MANY = 20_000
EVERY_KIND = [
    {"rate": 20, "arrivals": "constant"},
    {"rate": 20, "arrivals": "poisson"},
    {"rate": 20, "arrivals": "gamma", "burstiness": 0.5},
    {"steps": "60s:5,120s:20", "arrivals": "poisson"},
]


def first(schedule: Schedule, count: int) -> np.ndarray:
    return np.array(list(islice(schedule.times_s(), count)))


def gaps(schedule: Schedule, count: int = MANY) -> np.ndarray:
    return np.diff(first(schedule, count), prepend=0.0)


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({"rate": 4}, [0, 0.25, 0.5, 0.75, 1]),
        ({"rate": 10}, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        ({"rate": 0.5}, [0, 2, 4, 6]),
        ({"steps": "2s:2,1s:4"}, [0, 0.5, 1, 1.5, 2, 2.25, 2.5, 2.75]),
        ({"steps": "1s:1, 4s:0.5"}, [0, 1, 3]),
        ({"steps": "1s:0.5,4s:1"}, [0, 1.5, 2.5, 3.5, 4.5]),  # half a gap at one rate, half of it at the next
        ({"steps": "0.1m:0.5"}, [0, 2, 4]),
        ({"steps": "0.001h:1"}, [0, 1, 2, 3]),
    ],
)
def test_constant_arrivals_are_exact(options: dict, times: list[float]):
    schedule = schedule_of(**options, arrivals="constant")
    assert first(schedule, len(times)).tolist() == times
    if "steps" in options:
        assert list(schedule.times_s()) == times


@pytest.mark.parametrize(
    ("steps", "counts"),
    [("10s:5,10s:20", (50, 200)), ("1.1s:50,1s:10", (55, 10)), ("0.7s:10,0.3s:10", (7, 3)), ("3s:7,2s:0.5", (21, 1))],
)
def test_a_step_has_as_many_constant_arrivals_as_its_rate_times_its_duration(steps: str, counts: tuple[int, int]):
    schedule = schedule_of(steps=steps, arrivals="constant")
    boundary_s = float(steps.split("s")[0])
    assert (schedule.between(0, boundary_s).size, schedule.between(boundary_s, math.inf).size) == counts


def test_poisson_arrivals_have_their_rate_and_exponential_gaps():
    schedule = schedule_of(rate=50, arrivals="poisson", seed=SEED)
    count = 200_000  # the mean of as many has a standard error of 0.22 %
    assert count / first(schedule, count)[-1] == pytest.approx(50, rel=0.01)
    assert stats.kstest(gaps(schedule), stats.expon(scale=1 / 50).cdf).pvalue > 0.01


@pytest.mark.parametrize("burstiness", [0.25, 0.5, 1, 4])
def test_gamma_arrivals_have_vllms_gaps(burstiness: float):
    found = gaps(schedule_of(rate=50, arrivals="gamma", burstiness=burstiness, seed=SEED))
    assert stats.kstest(found, stats.gamma(burstiness, scale=1 / (50 * burstiness)).cdf).pvalue > 0.01
    assert found.std() / found.mean() == pytest.approx(burstiness**-0.5, rel=0.05)
    if burstiness != 1:
        assert stats.kstest(found, stats.expon(scale=1 / 50).cdf).pvalue < 1e-9


def test_gamma_of_burstiness_1_is_poisson():
    gamma = schedule_of(rate=50, arrivals="gamma", burstiness=1, seed=SEED)
    assert first(gamma, MANY).tolist() == first(schedule_of(rate=50, arrivals="poisson", seed=SEED), MANY).tolist()


def test_every_step_of_a_poisson_profile_is_poisson():
    schedule = schedule_of(steps="1000s:5,1000s:20", arrivals="poisson", seed=SEED)
    assert schedule.duration_s == 2000
    for start_s, rate in ((0, 5), (1000, 20)):
        times = schedule.between(start_s, start_s + 1000)
        assert times.size == pytest.approx(1000 * rate, abs=4 * math.sqrt(1000 * rate))
        assert stats.kstest(np.diff(times), stats.expon(scale=1 / rate).cdf).pvalue > 0.01
    assert schedule.between(2000, math.inf).size == 0


@pytest.mark.parametrize("options", EVERY_KIND)
def test_times_ascend_and_do_not_depend_on_how_far_one_asked(options: dict):
    schedule = schedule_of(**options, seed=SEED)
    far = schedule.between(0, 150)
    assert far.dtype == np.float64
    assert (np.diff(far) >= 0).all()
    for count in (1, 10, 1023, 1024, 1025):
        assert first(schedule, count).tolist() == far[:count].tolist()
    assert schedule.between(30, 90).tolist() == far[(far >= 30) & (far < 90)].tolist()
    assert schedule.between(0, 0).tolist() == []


@pytest.mark.parametrize("workers", [1, 4, 7])
@pytest.mark.parametrize("options", EVERY_KIND)
def test_the_slots_of_all_workers_together_are_the_schedule(options: dict, workers: int):
    schedule = schedule_of(**options, seed=SEED)
    whole = list(islice(schedule.slots(), 2000))
    assert [slot.number for slot in whole] == list(range(2000))
    assert [slot.time_s for slot in whole] == first(schedule, 2000).tolist()
    shares = [list(islice(schedule.slots(worker, workers), 2000)) for worker in range(workers)]
    assert sorted(slot for share in shares for slot in share)[:2000] == whole


def test_workers_do_not_start_together():
    schedule = schedule_of(rate=8, arrivals="constant")
    assert [next(schedule.slots(worker, 4)) for worker in range(4)] == [(0, 0), (1, 0.125), (2, 0.25), (3, 0.375)]
    poisson = schedule_of(rate=8, arrivals="poisson", seed=SEED)
    assert len({next(poisson.slots(worker, 4)).time_s for worker in range(4)} - {0.0}) == 4


@pytest.mark.parametrize("options", EVERY_KIND[1:])
def test_a_seed_makes_the_same_schedule_and_another_seed_another(options: dict):
    times = first(schedule_of(**options, seed=SEED), 100)
    assert times.tolist() == first(schedule_of(**options, seed=SEED), 100).tolist()
    assert not np.isin(times, first(schedule_of(**options, seed=SEED + 1), 100)).any()


def test_one_seed_is_the_same_pattern_at_every_rate():
    slow, fast = (first(schedule_of(rate=rate, arrivals="poisson", seed=SEED), 100) for rate in (5, 20))
    assert slow.tolist() == (4 * fast).tolist()


def test_a_schedule_is_the_same_in_a_process_of_its_own_without_gevent():
    code = (
        "import itertools, sys; from detbench.load.schedules import schedule_of; "
        f"print(list(itertools.islice(schedule_of(rate=3, seed={SEED}).times_s(), 50)), 'gevent' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.strip() == f"{first(schedule_of(rate=3, seed=SEED), 50).tolist()} False"


@pytest.mark.parametrize("photos", [1, 2, 7, 100])
def test_every_photo_is_sent_as_often_as_others_to_within_one(photos: int):
    sent = Counter(dict.fromkeys(range(photos), 0))
    for number in range(5 * photos + photos // 2):
        sent[photo_of(number, photos, SEED)] += 1
        assert max(sent.values()) - min(sent.values()) <= 1
    assert set(sent) == set(range(photos))


def test_photos_come_in_another_order_in_every_pass_and_for_every_seed():
    passes = [
        tuple(photo_of(number + 50 * past, 50, seed) for number in range(50)) for past in range(3) for seed in (1, 2)
    ]
    assert len(set(passes)) == 6
    # Whatever was asked before: the last pass again, backwards.
    assert passes[-1][::-1] == tuple(photo_of(number, 50, 2) for number in reversed(range(100, 150)))


@pytest.mark.parametrize(
    "text",
    [
        "0\n0.5\n0.5\n2\n",
        "\ufefftime_s\r\n0\r\n0.5\r\n0.5\r\n2",
        '# recorded in May\n\n"arrival time (s)"\n0 # first\n\n 5e-1 \n0.5\n  # 1.0\n2.0',
    ],
)
def test_a_trace_is_read(tmp_path: Path, text: str):
    (tmp_path / "trace.csv").write_bytes(text.encode())
    trace = schedule_of(trace=tmp_path / "trace.csv")
    assert trace == read_trace(tmp_path / "trace.csv")
    assert list(trace.slots(1, 2)) == [(1, 0.5), (3, 2.0)]
    assert trace.between(0, 2).tolist() == [0, 0.5, 0.5]
    assert trace.duration_s == 2


ONE_NUMBER = "one number a line: seconds from the start, 0 or more"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"0\n2\n1\n", "{}, line 3: 1.0 comes after 2.0; sort the lines by time"),
        (
            b"1764000000\n1764000001\n",
            "{} begins at 1764000000 s, after more than a day; subtract that from every line",
        ),
        (b"# t\n\n0\n-1\n", "{}, line 4: '-1' is no arrival time; write " + ONE_NUMBER),
        (b"0\nNaN\n", "{}, line 2: 'NaN' is no arrival time; write " + ONE_NUMBER),
        (b"nan\n0\n", "{}, line 1: 'nan' is no arrival time; write " + ONE_NUMBER),
        (b"0\ninf\n", "{}, line 2: 'inf' is no arrival time; write " + ONE_NUMBER),
        (b"-Infinity\n0\n", "{}, line 1: '-Infinity' is no arrival time; write " + ONE_NUMBER),
        (b"O.5\n1\n", "{}, line 1: 'O.5' is no arrival time; write " + ONE_NUMBER),
        (b"0\ntime_s\n", "{}, line 2: 'time_s' is no arrival time; write " + ONE_NUMBER),
        (b"time_s,photo\n0.5,cat.jpg\n", "{}, line 2: '0.5,cat.jpg' is no arrival time; write " + ONE_NUMBER),
        (b"1;" * 99, "{}, line 1: '" + "1;" * 20 + "' is no arrival time; write " + ONE_NUMBER),
        (b"", "{} holds no arrival time; name a file with " + ONE_NUMBER),
        (b"time_s\n# none\n", "{} holds no arrival time; name a file with " + ONE_NUMBER),
        (b"\xff\xfe0\x00", "{} is no text; name a file with " + ONE_NUMBER),
        (None, "{} cannot be read (No such file or directory); name a file with " + ONE_NUMBER),
    ],
)
def test_a_trace_that_is_none_is_refused_with_file_line_and_remedy(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "trace.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DetbenchError) as caught:
        schedule_of(trace=path)
    assert str(caught.value) == message.format(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "an open loop needs arrivals; name --rate, --steps or --trace"),
        ({"arrivals": "constant"}, "an open loop needs arrivals; name --rate, --steps or --trace"),
        ({"rate": 1, "trace": Path("t")}, "--rate and --trace exclude each other; name one of them"),
        ({"rate": 1, "steps": "1s:1"}, "--rate and --steps exclude each other; name one of them"),
        ({"trace": Path("t"), "arrivals": "poisson"}, "--trace has arrivals of its own; leave out --arrivals"),
        ({"trace": Path("t"), "burstiness": 1}, "--trace has arrivals of its own; leave out --arrivals"),
        ({"rate": 0}, "--rate is 0; it must be a finite number above 0"),
        ({"rate": -2.5}, "--rate is -2.5; it must be a finite number above 0"),
        ({"rate": math.inf}, "--rate is inf; it must be a finite number above 0"),
        ({"rate": math.nan}, "--rate is nan; it must be a finite number above 0"),
        ({"rate": 1, "burstiness": 0.5}, "add --arrivals gamma, or leave it out"),
        ({"rate": 1, "arrivals": "constant", "burstiness": 0.5}, "add --arrivals gamma, or leave it out"),
        ({"rate": 1, "arrivals": "gamma"}, "--arrivals gamma needs --burstiness: 1 is Poisson, less comes in bursts"),
        ({"rate": 1, "arrivals": "gamma", "burstiness": 0}, "--burstiness is 0; it must be a finite number above 0"),
        ({"rate": 1, "arrivals": "gamma", "burstiness": math.inf}, "--burstiness is inf; it must be a finite number"),
        ({"rate": 1, "arrivals": "uniform"}, "--arrivals 'uniform' is unknown; choose from constant, poisson, gamma"),
        ({"rate": 1, "seed": -1}, "--seed is -1; it must be a whole number from 0"),
        ({"steps": ""}, "--steps: '' is no step; write DURATION:RATE, such as 10s:5"),
        ({"steps": "10:5"}, "--steps: '10:5' is no step; write DURATION:RATE, such as 10s:5"),
        ({"steps": "10s:5,"}, "--steps: '' is no step; write DURATION:RATE, such as 10s:5"),
        ({"steps": "10s:5,10s:nan"}, "--steps: '10s:nan' is no step"),
        ({"steps": "10s:-5"}, "--steps: '10s:-5' is no step"),
        ({"steps": "0s:5"}, "--steps: the duration of '0s:5' is 0; it must be a finite number above 0"),
        ({"steps": "10s:0.0"}, "--steps: the rate of '10s:0.0' is 0; it must be a finite number above 0"),
        ({"steps": f"{'9' * 400}s:1"}, "is inf; it must be a finite number above 0"),
    ],
)
def test_options_that_contradict_or_make_no_sense_are_refused_in_one_line(options: dict, message: str):
    with pytest.raises(DetbenchError) as caught:
        schedule_of(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said", "duration_s"),
    [
        ({"rate": 20}, "20 requests/s, Poisson", math.inf),
        ({"rate": 20, "arrivals": "constant"}, "20 requests/s, constant", math.inf),
        (
            {"rate": 2.5, "arrivals": "gamma", "burstiness": 0.5},
            "2.5 requests/s, gamma of burstiness 0.5",
            math.inf,
        ),
        ({"steps": "10s:5,1.5m:20"}, "10 s at 5, 90 s at 20 requests/s, Poisson", 100),
        ({"trace": Path("trace.csv")}, "2 requests in 1.5 s, as in trace.csv", 1.5),
    ],
)
def test_a_schedule_says_what_it_is_and_when_it_ends(
    options: dict, said: str, duration_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("trace.csv").write_text("0\n1.5\n")
    assert str(schedule_of(**options)) == said
    assert schedule_of(**options).duration_s == duration_s
