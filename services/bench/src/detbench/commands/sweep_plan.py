"""What `detbench run` is to do: the plan of its options, or of a run that was broken off, and the servers for it."""

import argparse
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from detbench.api.protocol import Native, Oip, Protocol, Tensors, read_tensors
from detbench.api.schemas import ModelSetStatus
from detbench.commands.offered import offered_load
from detbench.commands.options import opened_dataset, servers_of
from detbench.datasets import fetch_or_open
from detbench.errors import DetbenchError
from detbench.measure.lengthening import Until
from detbench.measure.progress import SweepProgress
from detbench.measure.servers import OipServerAt, Servers
from detbench.measure.session import Subject
from detbench.measure.sweep import Plan
from detbench.quality.reference import newest_reference
from detbench.results.loads import ClosedLoop
from detbench.results.sweep import Sweep

MAX_DURATION_S = 600.0
"""Of a run that is lengthened, unless --max-duration says otherwise."""


def plan_of_options(options: argparse.Namespace) -> Plan:
    """The plan that the options describe.

    Raises:
        DetbenchError: they contradict each other.
        DatasetError: the images are not there.
        ReferenceMismatch: another server cannot be compared, because there is no reference of all images.
    """
    offered, duration_s = offered_load(options)
    until = Until(options.until, options.max_duration or MAX_DURATION_S) if options.until else None
    if until and not all(isinstance(each, ClosedLoop) or each.steady for each in offered):
        raise DetbenchError("--until cannot lengthen --steps or --trace, which have an end; leave it out")
    subject = subject_of(options)
    protocol: Protocol = Native()
    if options.protocol == "oip":
        subject = _with_reference(subject)
        protocol = _oip(read_tensors(options.tensors) if options.tensors else Tensors(), subject)
    return Plan(
        implementations=tuple(options.implementations) if options.implementations else None,
        replicas=tuple(options.replicas or ()),
        subject=subject,
        offered=offered,
        processes=options.processes,
        repeats=options.repeats or 1,
        duration_s=duration_s,
        until=until,
        warmup_requests=options.warmup,
        slo=tuple(options.slo),
        dataset_name=options.dataset,
        data_dir=options.data_dir,
        compare_outputs=options.compare_outputs,
        keep_requests=options.keep_requests,
        metrics_port=options.metrics_port,
        protocol=protocol,
    )


def plan_of_run(broken_off: Sweep, options: argparse.Namespace) -> Plan:
    """The plan of a run that was broken off; its server is that of the options from then on.

    Raises:
        DatasetError: the images are not there any more.
    """
    settings = broken_off.settings
    dataset = fetch_or_open(settings.dataset, options.data_dir, settings.images)
    until = Until(settings.until, settings.max_duration_s) if settings.until and settings.max_duration_s else None
    options.host = settings.host
    subject = Subject(settings.model_set, dataset, options.outputs_dir, settings.concurrency, settings.max_map_loss)
    return Plan(
        implementations=tuple(settings.implementations),
        replicas=() if settings.host else tuple(settings.replicas),
        subject=subject if isinstance(settings.protocol, Native) else _with_reference(subject),
        offered=tuple(settings.offered),
        processes=settings.processes,
        repeats=settings.repeats,
        duration_s=settings.duration_s,
        until=until,
        warmup_requests=settings.warmup_requests,
        slo=tuple(settings.slo),
        dataset_name=settings.dataset,
        data_dir=options.data_dir,
        compare_outputs=settings.compare_outputs,
        keep_requests=settings.keep_requests,
        metrics_port=options.metrics_port,
        protocol=settings.protocol,
    )


def subject_of(options: argparse.Namespace) -> Subject:
    """What the options say is measured with."""
    dataset = opened_dataset(options)
    return Subject(options.model_set, dataset, options.outputs_dir, options.concurrency, options.max_map_loss)


def servers_for(plan: Plan, options: argparse.Namespace, run_dir: Path, progress: SweepProgress) -> Servers:
    """Where a plan is measured."""
    if isinstance(plan.protocol, Native):
        return servers_of(options, run_dir, progress, _most_in_flight(plan))
    reference = plan.subject.reference
    assert reference is not None
    model_set = ModelSetStatus(name=plan.subject.model_set, models=reference.manifest.weights)
    return OipServerAt(options.host, plan.protocol, model_set, plan.implementations or ())


def _with_reference(subject: Subject) -> Subject:
    """The subject of a server that can make no reference: with the stored one, which holds all images."""
    reference = newest_reference(subject.outputs_dir, subject.model_set)
    reference.check_photos(subject.dataset.photos)
    return replace(subject, reference=reference)


def _oip(tensors: Tensors, subject: Subject) -> Oip:
    assert subject.reference is not None
    try:
        return Oip(tensors=tensors, models=tuple(model.model_name for model in subject.reference.manifest.weights))
    except ValidationError as error:
        raise DetbenchError(f"--tensors: {error.errors()[0]['msg']}") from error


def _most_in_flight(plan: Plan) -> int:
    return max(each.users if isinstance(each, ClosedLoop) else each.max_in_flight for each in plan.offered)
