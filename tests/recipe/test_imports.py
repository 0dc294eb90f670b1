"""Reading a recipe's text is quick: torch is loaded only to look up callables."""

import subprocess
import sys


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, hyperopt_cli.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
