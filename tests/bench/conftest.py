"""Nothing is compiled in these tests, which are not about it: it takes longer than everything else."""

from collections.abc import Iterator

import pytest

from hyperopt_cli.program import compiled_step


@pytest.fixture(scope="module", autouse=True)
def _no_compiler() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_step, "cannot_compile", lambda: "no C++ compiler was found")
        yield
