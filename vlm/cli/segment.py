"""`vlm segment PATH... -o OUT`: masks of scans, each on its scan's own grid."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from seg_backbone.lesions import Instance
    from seg_backbone.predict import Drawing, Segmenter
    from seg_backbone.volume import Volume

Span = tuple[float, float]  # time of day in seconds, start and end


def segment(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Scans (see above), or folders of them.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for CASE.nii.gz and labels.json.")],
    model: Annotated[str, typer.Option(help="A model that ships or was imported, or a model folder.")] = "default",
    fast: Annotated[bool, typer.Option("--fast/--accurate", help="Fewer overlapping windows, none of air.")] = False,
    step: Annotated[
        float | None, typer.Option(help="Share of a window between neighbours, instead of the model's.")
    ] = None,
    blending: Annotated[
        Literal["gaussian", "uniform"], typer.Option(help="Weights of overlapping windows.")
    ] = "gaussian",
    mirror: Annotated[
        bool | None,
        typer.Option("--mirror/--no-mirror", help="Mean over the flips of training; nnU-Net's models do."),
    ] = None,
    export: Annotated[
        Literal["linear", "nearest"],
        typer.Option(help="nearest: faster; has the steps of the working grid."),
    ] = "linear",
    roi: Annotated[
        bool | None,
        typer.Option(
            "--roi/--no-roi",
            help="Windows only near what a low-resolution pass finds; left out: as the model says, with --fast.",
        ),
    ] = None,
    gate: Annotated[
        bool | None,
        typer.Option("--gate/--no-gate", help="Windows that the model's classifier keeps; left out: with --fast."),
    ] = None,
    verify_skips: Annotated[
        bool, typer.Option("--verify-skips", help="Also run the skipped windows; tell what differs.")
    ] = False,
    labels: Annotated[
        Literal["native", "flare23", "flare24"], typer.Option(help="Whose ids the masks use.")
    ] = "native",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the network runs.")] = "auto",
    runtime: Annotated[
        Literal["torch", "compile", "openvino", "openvino-int8", "auto"],
        typer.Option(help="auto: OpenVINO where it pays, with --fast on a CPU. compile: torch.compile, many scans."),
    ] = "auto",
    max_gpu_mb: Annotated[float | None, typer.Option(help="Cap on the device's memory.")] = None,
    max_ram_mb: Annotated[float | None, typer.Option(help="Cap on this process' memory.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Cap on reading and segmenting each scan.")] = None,
    modality: Annotated[
        Literal["CT", "MR"] | None, typer.Option(help="Of every scan; a DICOM tells, others are guessed.")
    ] = None,
    statistics: Annotated[bool, typer.Option("--statistics", help="Also OUT/statistics.csv.")] = False,
    preview: Annotated[bool, typer.Option("--preview", help="Also OUT/CASE.png, a look at three planes.")] = False,
    dicom_seg: Annotated[
        bool, typer.Option("--dicom-seg", help="Also OUT/CASE.seg.dcm, a DICOM Segmentation of a DICOM scan.")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="JSON to write, one object a scan.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report.")] = False,
) -> None:
    """Segment scans and measure what is found. CASE_0000.nii.gz becomes OUT/CASE.nii.gz.

    A model that also classifies whole scans writes OUT/results.csv (identifier,probs).

    A scan is a NIfTI, NRRD or MetaImage file, or a DICOM folder or zip; PATH#UID is one series of several in it. A
    model of several channels reads CASE_0001.nii.gz and so on beside CASE_0000.nii.gz.
    """
    import json
    import time

    begun = time.time()
    from seg_backbone.checkpoint import PLAN, find_model
    from seg_backbone.plan import Plan

    scans = collect(paths, out, len(Plan.read(find_model(model) / PLAN).channels))

    from seg_backbone.errors import InputError
    from seg_backbone.io import read_volume, replacing, require_writable, write_mask
    from seg_backbone.labels import to_scheme, undrawn
    from seg_backbone.scan_classes import RESULT_FILE, write_results
    from seg_backbone.stream import stream
    from seg_backbone.table import write_statistics
    from vlm.cli.progress import stages

    for folder in {out, report.parent} if report else {out}:
        require_writable(folder)
    found: list[tuple[str, Instance]] = []
    names: dict[str, int] = {}
    loaded: list[Segmenter] = []
    once: dict[str, Span] = {}  # what the run pays once, told with its first scan

    def read(item: tuple[str, Path]) -> tuple[Volume, Span]:
        started = time.time()
        if dicom_seg:
            from seg_backbone.io.dicom_seg import require_dicom

            require_dicom(item[1])
        if max_ram_mb is not None:
            loaded[0].foresee(item[1], max_ram_mb)
        return read_volume(item[1], modality), (started, time.time())

    def windows(segmenter: Segmenter) -> int | None:
        """About how many there will be, as if all scans were like the first; None where its header does not tell."""
        try:
            count = segmenter.windows(next(iter(scans.values())), fast, step)
        except InputError:
            return None  # it is told when it is read
        return None if count is None else count * len(scans)

    def prepare() -> Callable[[tuple[Volume, Span]], tuple[Drawing, dict[str, Span]]]:
        from seg_backbone.governor import Budget
        from seg_backbone.predict import Segmenter, Settings

        once["import"] = (begun, time.time())
        Budget(max_ram_mb, max_gpu_mb, max_seconds)  # an impossible cap is told before the weights load
        if step is not None:
            Settings(step)
        segmenter = Segmenter.load(model, device, runtime)
        loaded.append(segmenter)
        count = windows(segmenter)
        segmenter.runtimes.choose(fast, False, max_ram_mb is not None, count)  # made while the first scan is read
        once["load"] = (once["import"][1], time.time())

        def work(scan: tuple[Volume, Span]) -> tuple[Drawing, dict[str, Span]]:
            volume, reading = scan
            started = time.time()
            drawing = segmenter.draw(
                volume,
                fast=fast,
                progress=lambda done, total: progress("windows", done, total),
                max_gpu_mb=max_gpu_mb,
                max_ram_mb=max_ram_mb,
                max_seconds=max_seconds,
                spent_seconds=reading[1] - reading[0],
                verify_skips=verify_skips,
                step=step,
                blending=blending,
                mirror=mirror,
                export=export,
                roi=roi,
                gate=gate,
            )
            spans = {**once, **_spans(started, drawing.report["seconds"]), "read": reading}
            once.clear()
            return drawing, spans

        return work

    def write(item: tuple[str, Path], work: tuple[Drawing, dict[str, Span]]) -> dict[str, Any]:
        from seg_backbone.predict import measure

        (case, scan), (drawing, spans) = item, work
        started = time.time()
        result = measure(drawing)
        measured = time.time()
        mask, dropped = to_scheme(result.mask, labels)
        written = write_mask(mask, out / f"{case}.nii.gz")
        if dicom_seg:
            from seg_backbone.io.dicom_seg import write_dicom_seg

            if write_dicom_seg(mask, scan, out / f"{case}.seg.dcm", result.report["model"]) is None:
                print(f"note: {scan}: nothing found, so no DICOM-SEG", file=sys.stderr)
        if preview:
            from seg_backbone.preview import write_preview

            write_preview(drawing.volume, result.mask, result.instances, out / f"{case}.png")
        found.extend((case, instance) for instance in result.instances)
        names.update(mask.labels)
        report = result.report
        spans |= {"measure": (started, measured), "write": (measured, time.time())}
        report["spans"] = spans
        report["seconds"] = {name: round(end - start, 3) for name, (start, end) in spans.items()}
        drawn = [name for name in report["classes"] if name not in report["not_trained_for"]]
        return {
            "output": str(written),
            "labels": mask.labels,
            "dropped_classes": dropped,  # the model draws them, the scheme has no id for them
            "undrawn_classes": undrawn(labels, drawn),  # the scheme has an id for them, the model never draws them
            **report,
        }

    entries: list[dict[str, Any]] = []
    failures: list[Exception] = []
    with stages() as progress:
        progress("scans", 0, len(scans))
        # under a cap on memory one scan at a time
        for (case, scan), entry in stream([*scans.items()], read, prepare, write, overlap=max_ram_mb is None):
            if isinstance(entry, Exception):
                line = " ".join(f"{entry}".splitlines()) or type(entry).__name__
                print(f"error: {line if isinstance(entry, InputError) else f'{scan}: {line}'}", file=sys.stderr)
                failures.append(entry)
                entries.append({"case": case, "source": str(scan), "error": line})
            else:
                entries.append({"case": case, "error": None, **entry})
                _note(scan, entry)
            progress("scans", len(entries), len(scans))
    missing = dict.fromkeys(name for entry in entries for name in entry.get("undrawn_classes", []))
    if missing:
        print(f"note: --labels {labels}: this model never draws {', '.join(missing)}", file=sys.stderr)
    text = json.dumps(entries, indent=2) + "\n"
    if len(failures) < len(scans):
        with replacing(out / "labels.json") as temporary:
            temporary.write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
        if classified := {one["case"]: one["scan_classes"] for one in entries if one.get("scan_classes")}:
            write_results(out / RESULT_FILE, classified)
        if statistics:
            write_statistics(found, out / "statistics.csv")
    if report:
        with replacing(report) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if as_json:
        print(text, end="")
    elif sys.stdout.isatty():
        spent = time.time() - begun
        network = sum(end - start for one in entries if "spans" in one for start, end in [one["spans"]["network"]])
        speed = f"{spent:.1f} s, the network busy for {network / spent:.0%} of it"
        print(f"{len(scans) - len(failures)} of {len(scans)} scans segmented, {len(found)} instances: {out} ({speed})")
    if failures:
        users = len(failures) == len(scans) and all(isinstance(error, InputError) for error in failures)
        raise typer.Exit(2 if users else 1)


def _note(scan: Path, entry: dict[str, Any]) -> None:
    """What a user should know of a scan that went well, on stderr."""
    from seg_backbone.skips import CERTIFICATES

    if set(entry["not_trained_for"]) == set(entry["classes"]):
        print(
            f"note: {scan}: {entry['model']} was not trained on {entry['modality']}; its mask is empty", file=sys.stderr
        )
    skipped = entry["skipped"]
    if skipped["voxels_that_differ"] is not None:
        by = ", ".join(f"{skipped[name]} by {name}" for name in CERTIFICATES if skipped[name]) or "none"
        note = f"windows skipped: {by}; {skipped['voxels_that_differ']} voxels differ"
        if skipped["lost"]:
            note += f"; pieces lost: {', '.join(f'{count} {name}' for name, count in skipped['lost'].items())}"
        print(f"note: {scan}: {note}", file=sys.stderr)


def _spans(start: float, seconds: dict[str, float]) -> dict[str, Span]:
    """Start and end of parts that follow each other, as the time of day in seconds."""
    spans = {}
    for name, length in seconds.items():
        spans[name] = (start, start + length)
        start += length
    return spans


def collect(paths: list[Path], out: Path, channels: int = 1) -> dict[str, Path]:
    """Case name -> scan, in the order given, folders by name; a folder's other files are named on stderr.

    channels: of the model; of several, CASE_0001 and so on are no scans beside CASE_0000. Raises ScanError for a folder
    without scans, ConfigError where two scans share a case name or an output would overwrite a scan.
    """
    from seg_backbone.errors import ConfigError, ScanError
    from seg_backbone.io import SUFFIXES, case_name, find_scans, further_channel

    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        scans, others = find_scans(path)
        if not scans:
            raise ScanError(path, f"a folder with scans ({', '.join(SUFFIXES)}, DICOM)", "none", "check the path")
        if others:
            print(f"note: {path}: not scans, left out: {', '.join(others)}", file=sys.stderr)
        files += scans
    further = {further_channel(scan, number) for scan in files for number in range(1, channels)}
    cases: dict[str, Path] = {}
    for scan in dict.fromkeys(file for file in files if file not in further):
        case = case_name(scan)
        if case in cases:
            raise ConfigError(scan, "case names that differ", f"{case!r} again, as {cases[case]}", "run them apart")
        cases[case] = scan
    written = {(out / f"{case}.nii.gz").resolve() for case in cases}
    for scan in cases.values():
        if scan.resolve() in written:
            raise ConfigError(out, "an output folder beside the scans", f"{scan.name} in it", "choose another -o")
    return cases
