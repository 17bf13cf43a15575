"""matplotlib is loaded when something is drawn, and not before."""

import subprocess
import sys


def test_importing_the_pictures_does_not_import_matplotlib():
    code = "import sys, qkvit.analysis.pictures; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
