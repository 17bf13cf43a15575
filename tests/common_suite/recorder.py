"""A pytest plugin: write every test's outcome and reason to the file that COMMON_SUITE_RESULTS names."""

import json
import os

import pytest


class Recorder:
    def __init__(self, path: str):
        self.path = path
        self.tests: dict[str, dict] = {}
        self.broken: list[str] = []

    def pytest_collectreport(self, report):
        if report.failed:
            self.broken.append(str(report.longrepr))

    def pytest_runtest_logreport(self, report):
        _, class_name, test = report.nodeid.split("::")
        model_class = class_name.removesuffix("Test")
        new = {"model_class": model_class, "test": test, "outcome": "passed", "text": "", "seconds": 0.0}
        record = self.tests.setdefault(report.nodeid, new)
        record["seconds"] += report.duration
        # Subtests report under the test's own name. The worst of them is the test's outcome: with one model
        # class a test case, a skip inside a subtest means that the test has not looked at the class.
        worse = {"passed": 0, "skipped": 1, "failed": 2}
        if worse[report.outcome] > worse[record["outcome"]]:
            record["outcome"] = report.outcome
            record["text"] = _text(report)

    def pytest_sessionfinish(self):
        with open(self.path, "w") as file:
            json.dump({"tests": list(self.tests.values()), "broken": self.broken}, file)


def _text(report) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ").strip()
    return str(report.longrepr)


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    # With pytest-xdist, the reports of all workers reach the controller, the process without a workerinput.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(os.environ["COMMON_SUITE_RESULTS"]))
