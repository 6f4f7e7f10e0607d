"""MLPerf's load generator as an oracle: it sends Poisson arrivals, too. Constant ones it does not know."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from detbench.load.schedules import schedule_of

RATE, REQUESTS = 100.0, 500

# In a process of its own: it has threads that outlive a test. Prints when each request was issued, in seconds.
LOADGEN = f"""
import json, sys, time
import mlperf_loadgen as loadgen

issued = []

def issue(queries):
    issued.append(time.monotonic())
    loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query.id, 0, 0) for query in queries])

settings = loadgen.TestSettings()
settings.scenario, settings.mode = loadgen.TestScenario.Server, loadgen.TestMode.PerformanceOnly
settings.server_target_qps, settings.min_duration_ms = {RATE}, 0
settings.min_query_count = settings.max_query_count = {REQUESTS}
output = loadgen.LogOutputSettings()
output.outdir = sys.argv[1]
log = loadgen.LogSettings()
log.log_output, log.enable_trace = output, False
nothing = lambda samples: None
loadgen.StartTestWithLogSettings(
    loadgen.ConstructSUT(issue, lambda: None), loadgen.ConstructQSL(4, 4, nothing, nothing), settings, log
)
print(json.dumps(issued))
"""


@pytest.mark.skipif(find_spec("mlperf_loadgen") is None, reason="there is no mlcommons-loadgen for this machine")
@pytest.mark.slow  # five seconds, in real time
def test_poisson_arrivals_are_those_of_mlperfs_load_generator(tmp_path: Path):
    ran = subprocess.run([sys.executable, "-c", LOADGEN, str(tmp_path)], capture_output=True, text=True, check=True)
    theirs_s = np.array(json.loads(ran.stdout))
    ours_s = schedule_of(rate=RATE, seed=3).between(0, REQUESTS / RATE)
    assert len(theirs_s) == REQUESTS
    # Both numbers have a standard deviation of 4.5 % of the rate with 500 arrivals.
    assert (REQUESTS - 1) / (theirs_s[-1] - theirs_s[0]) == pytest.approx(RATE, rel=0.2)
    assert len(ours_s) == pytest.approx(REQUESTS, rel=0.2)
    assert ks_2samp(np.diff(theirs_s), np.diff(ours_s)).pvalue > 1e-3
