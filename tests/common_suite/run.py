#!/usr/bin/env python
"""Run transformers' own common test suites on our model classes and, the same way, on transformers' ViT.

    python tests/common_suite/run.py [--models qkvit vit] [--recorded] [-k EXPR] [--json OUT] [-n PROCESSES]

The suites (`ModelTesterMixin`, `ConfigTester`, `PipelineTesterMixin`, `TrainingTesterMixin`,
`BackboneTesterMixin`) come from the source distribution of the installed transformers version, fetched once
from the package index into `.cache/common_suite`. None of it is part of this repository. A few modules that
the suites import are missing there; `standins/` holds ours, and each says what it leaves out.

No change of ours changes what transformers' ViT passes. With `--recorded` its outcomes are those of
`vit_outcomes.json`, if that is of the installed versions; `--record` runs everything and writes it.

Exit code 0 only if nothing failed, every skip has a written reason, and there is no test that transformers'
ViT passes and ours does not.
"""

import argparse
import collections
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import skips

HERE = Path(__file__).resolve().parent
RECORD = HERE / "vit_outcomes.json"
CACHE = HERE.parents[1] / ".cache" / "common_suite"

SUITES = (
    "test_backbone_common.py",
    "test_configuration_common.py",
    "test_modeling_common.py",
    "test_pipeline_mixin.py",
    "test_training_mixin.py",
)
STANDINS = {
    "configuration.py": "tests/utils/test_configuration_utils.py",
    "export.py": "tests/exporters/test_export.py",
    "generation.py": "tests/generation/test_utils.py",
    "pipeline_image_classification.py": "tests/pipelines/test_pipelines_image_classification.py",
    "pipeline_image_feature_extraction.py": "tests/pipelines/test_pipelines_image_feature_extraction.py",
}
PARAMETERIZED = "parameterized==0.9.0"  # the suites import it, nothing of ours does

CLASSES = {
    "qkvit": (
        "QKViTModel",
        "QKViTForImageClassification",
        "QKViTForMaskedImageModeling",
        "QKViTBackbone",
        "QKViTModelOptions",  # with the options that the defaults leave off
        "QKViTForImageClassificationOptions",
    ),
    "vit": ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling", "Dinov2Backbone"),
}
# Ours -> the class of transformers that may not do better anywhere.
COUNTERPARTS = {
    "QKViTModel": "ViTModel",
    "QKViTForImageClassification": "ViTForImageClassification",
    "QKViTForMaskedImageModeling": "ViTForMaskedImageModeling",
}
# ViT has no backbone: this one is shown beside ours, and does not decide anything.
REFERENCES = {"QKViTBackbone": "Dinov2Backbone"}


def main() -> int:
    options = parse_arguments()
    version = importlib.metadata.version("transformers")
    if "qkvit" in options.models and importlib.util.find_spec("qkvit") is None:
        sys.exit("error: qkvit is not installed; run `pip install -e .`, or pass --models vit.")
    known = read_record() if options.recorded and not options.k else []
    if known:
        options.models = [family for family in options.models if family != "vit"]
        print(f"The outcomes of transformers' ViT are those of {RECORD.name}.", flush=True)
    suites = fetch_suites(version)
    with tempfile.TemporaryDirectory(prefix="common_suite_") as workspace:
        lay_out(suites, Path(workspace))
        results = run_pytest(suites, Path(workspace), options)
    tests = results["tests"]
    for test in tests:
        test["reason"] = general_reason(test) if test["outcome"] == "skipped" else ""
    if options.record:
        write_record(tests)
    tests += known

    print_counts(tests)
    print_skips(tests)
    print_failures(tests)
    verdict = judge(tests, results["broken"])
    if not options.k:
        missing = [name for family in options.models for name in CLASSES[family] if name not in counts(tests)]
        verdict["objections"] += [f"{name}: no test ran." for name in missing]
    for line in verdict["notes"] + verdict["objections"]:
        print(line)
    if options.json:
        report = {"versions": versions(), "counts": counts(tests), **verdict, "tests": tests}
        options.json.write_text(json.dumps(report, indent=1))
        print(f"Every outcome is in {options.json}.")
    print("Not passed." if verdict["objections"] else "Passed.")
    return 1 if verdict["objections"] else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(CLASSES), default=list(CLASSES))
    parser.add_argument("--recorded", action="store_true", help=f"do not run transformers' ViT, but read {RECORD.name}")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    parser.add_argument("-k", metavar="EXPR", default="", help="only tests whose names match, as for pytest")
    parser.add_argument("--json", metavar="OUT", type=Path, help="write every outcome to this file")
    parser.add_argument("-n", metavar="PROCESSES", type=int, default=2, help="default: 2; 0 runs in one process")
    return parser.parse_args()


# ---- bringing the suites ----


def fetch_suites(version: str) -> Path:
    """The folder that holds the suites of this transformers version, fetched when missing."""
    folder = CACHE / f"transformers-{version}"
    if folder.is_dir():
        return folder
    print(f"Fetching the test suites of transformers {version} from the package index ...", flush=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="fetching-") as aside:
        aside = Path(aside)
        complete = aside / "complete"
        source_only = ("--no-deps", "--no-binary", "transformers")
        pip("download", *source_only, "--dest", str(aside), f"transformers=={version}")
        pip("install", "--no-deps", "--target", str(complete / "site"), PARAMETERIZED)
        extract_suites(aside / f"transformers-{version}.tar.gz", complete)
        with contextlib.suppress(OSError):  # another run may have been first
            complete.rename(folder)
    return folder


def pip(*arguments: str):
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        why = f" (pip says: {lines[-1].removeprefix('ERROR: ').rstrip('.')})" if lines else ""
        sys.exit(f"error: {arguments[-1]} could not be fetched from the package index{why}; is it reachable?")


def extract_suites(archive: Path, folder: Path):
    with tarfile.open(archive) as tar:
        for name in SUITES:
            member = tar.getmember(f"{archive.name.removesuffix('.tar.gz')}/tests/{name}")
            member.name = f"tests/{name}"
            tar.extract(member, folder, filter="data")


def lay_out(suites: Path, workspace: Path):
    """Build in `workspace` what looks like a checkout of transformers to the suites: `tests/`,
    `src/transformers`, and a list of tiny models."""
    shutil.copytree(suites / "tests", workspace / "tests")
    for source, target in STANDINS.items():
        (workspace / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(HERE / "standins" / source, workspace / target)
    for folder in (workspace / "tests", *(workspace / "tests").glob("*/")):
        (folder / "__init__.py").touch()
    # The pipeline suite imports "transformers" from this path. The name is taken by then, by the installed
    # package, and an empty file leaves it so.
    (workspace / "src" / "transformers").mkdir(parents=True)
    (workspace / "src" / "transformers" / "__init__.py").touch()
    # common_tester.py saves the tiny models themselves.
    entry = {"tokenizer_classes": [], "processor_classes": ["ViTImageProcessorPil"]}
    summary = {name: entry for names in CLASSES.values() for name in names}
    (workspace / "tiny" / "reports").mkdir(parents=True)
    (workspace / "tiny" / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary))


def run_pytest(suites: Path, workspace: Path, options: argparse.Namespace) -> dict:
    command = [sys.executable, "-m", "pytest", "-c", str(HERE / "common_suite.ini"), "--rootdir", str(HERE)]
    command += ["--confcutdir", str(HERE), "-p", "recorder", "--quiet", "--no-header", "--tb=no", "-rN"]
    command += ["-n", str(options.n)] if options.n else []
    command += ["-k", options.k] if options.k else []
    command += [str(HERE / f"suite_{family}.py") for family in options.models]
    output = workspace / "results.json"
    paths = (workspace, suites / "site", HERE)
    threads = max(1, (os.cpu_count() or 1) // max(1, options.n))
    environment = os.environ | {
        "COMMON_SUITE_RESULTS": str(output),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "PYTHONPATH": os.pathsep.join(filter(None, [*map(str, paths), os.environ.get("PYTHONPATH")])),
        "TRANSFORMERS_TINY_MODEL_PATH": str(workspace / "tiny"),
    }
    code = subprocess.run(command, cwd=workspace, env=environment).returncode
    if code not in (0, 1) and not output.exists():
        sys.exit(f"error: pytest ended with code {code} before it ran a test; its own message stands above.")
    return json.loads(output.read_text())


# ---- reading the outcomes ----


def general_reason(test: dict) -> str:
    """The reason of a skip without the names of class, test and task, so that equal reasons count as one."""
    reason = re.sub(r"^\w+::test_\w+ is skipped: ", "", test["text"])
    reason = re.sub(rf"`?\b{re.escape(test['model_class'])}(Test)?\b`?", "CLASS", reason)
    reason = re.sub(r"<class '[\w.]+'>", "CLASS", reason)
    return re.sub(r"`[a-z0-9-]+` is not in", "TASK is not in", reason)


def unwritten(reason: str) -> bool:
    return reason.strip() in ("", "unconditional skip", "<Skipped instance>")


def counts(tests: list[dict]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for test in tests:
        row = table.setdefault(test["model_class"], {"passed": 0, "skipped": 0, "failed": 0})
        row[test["outcome"]] += 1
    return table


def judge(tests: list[dict], broken: list[str]) -> dict[str, list[str]]:
    """What speaks against these results (`objections`), and what is only worth knowing (`notes`)."""
    outcomes: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for test in tests:
        outcomes[test["model_class"]][test["test"]] = test["outcome"]
    objections = [f"A suite file could not be read:\n{text}" for text in broken]
    if not tests:
        objections.append("No test ran at all.")
    for model_class, row in counts(tests).items():
        if row["failed"]:
            objections.append(f"{model_class}: {row['failed']} failed.")
    for test in tests:
        if test["outcome"] == "skipped" and unwritten(test["reason"]):
            objections.append(f"{test['model_class']}.{test['test']} is skipped without a written reason.")
    notes = []
    for ours, theirs in COUNTERPARTS.items():
        for test, outcome in behind(outcomes, ours, theirs):
            line = f"{theirs} passes {test}; {ours}: {outcome}."
            if outcome == "skipped" and test in skips.NOTHING_TO_TEST:
                notes.append(f"{line} {skips.NOTHING_TO_TEST[test]}")
            else:
                objections.append(line)
    notes += [
        f"For reference: {theirs} passes {test}; {ours}: {outcome}."
        for ours, theirs in REFERENCES.items()
        for test, outcome in behind(outcomes, ours, theirs)
    ]
    return {"objections": objections, "notes": notes}


def behind(outcomes: dict[str, dict[str, str]], ours: str, theirs: str) -> list[tuple[str, str]]:
    """The tests that `theirs` passes and `ours` skips or lacks, if both ran. Failures count by themselves."""
    if ours not in outcomes or theirs not in outcomes:
        return []
    passed = [test for test, outcome in outcomes[theirs].items() if outcome == "passed"]
    found = [(test, outcomes[ours].get(test, "missing")) for test in passed]
    return [(test, outcome) for test, outcome in found if outcome in ("skipped", "missing")]


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in ("transformers", "torch", "pytest")
    }


# ---- what transformers' ViT passes ----


def write_record(tests: list[dict]):
    outcomes: dict[str, dict] = {name: {"passed": [], "skipped": {}, "failed": []} for name in CLASSES["vit"]}
    for test in tests:
        row = outcomes.get(test["model_class"])
        if row is not None and test["outcome"] == "skipped":
            row["skipped"].setdefault(test["reason"], []).append(test["test"])
        elif row is not None:
            row[test["outcome"]].append(test["test"])
    RECORD.write_text(json.dumps({"versions": versions(), "outcomes": outcomes}, indent=1) + "\n")


def release(version: str) -> str:
    return version.partition("+")[0]  # whatever it was built for


def read_record() -> list[dict]:
    """The recorded tests, in the form of those that have run; none if they are of other versions."""
    record = json.loads(RECORD.read_text())
    if any(release(record["versions"][name]) != release(versions()[name]) for name in ("transformers", "torch")):
        return []
    found = []
    for model_class, row in record["outcomes"].items():
        groups = [(outcome, "", row[outcome]) for outcome in ("passed", "failed")]
        for outcome, reason, names in groups + [("skipped", *item) for item in row["skipped"].items()]:
            common = {"model_class": model_class, "outcome": outcome, "text": reason, "reason": reason, "seconds": 0}
            found += [{"test": name, **common} for name in names]
    return found


# ---- printing ----


def print_counts(tests: list[dict]):
    print("\n" + ", ".join(f"{name} {version}" for name, version in versions().items()))
    print(f"\n{'class':32}{'passed':>8}{'skipped':>9}{'failed':>8}{'seconds':>9}")
    for model_class, row in counts(tests).items():
        seconds = sum(test["seconds"] for test in tests if test["model_class"] == model_class)
        print(f"{model_class:32}{row['passed']:>8}{row['skipped']:>9}{row['failed']:>8}{seconds:>9.0f}")


def print_skips(tests: list[dict]):
    skipped = [test for test in tests if test["outcome"] == "skipped"]
    if not skipped:
        return
    classes = list(counts(tests))
    numbered = ", ".join(f"({i}) {name}" for i, name in enumerate(classes, 1))
    print(f"\nWhy tests were skipped, and how many, for {numbered}:")
    print("".join(f"{f'({i})':>5}" for i in range(1, len(classes) + 1)))
    tally = collections.Counter((test["reason"], test["model_class"]) for test in skipped)
    for reason, _ in collections.Counter(test["reason"] for test in skipped).most_common():
        numbers = "".join(f"{tally[reason, model_class] or '.':>5}" for model_class in classes)
        print(f"{numbers}   {' '.join(reason.split())}")
    print()


def print_failures(tests: list[dict]):
    """Every failed test, under the error that it ended with."""
    passed = {(test["model_class"], test["test"]) for test in tests if test["outcome"] == "passed"}
    by_error = collections.defaultdict(list)
    for test in tests:
        if test["outcome"] == "failed":
            theirs = (COUNTERPARTS | REFERENCES).get(test["model_class"])
            contrast = f" ({theirs} passes it)" if (theirs, test["test"]) in passed else ""
            by_error[last_error(test["text"])].append(f"{test['model_class']}.{test['test']}{contrast}")
    for error, names in by_error.items():
        print(f"FAILED with {error}")
        print(*(f"    {name}" for name in names), sep="\n")


def last_error(traceback: str) -> str:
    lines = [line for line in traceback.splitlines() if line.strip()]
    errors = [line.removeprefix("E").strip() for line in lines if line.startswith("E ")]
    return (errors or lines[-1:])[0]


if __name__ == "__main__":
    sys.exit(main())
