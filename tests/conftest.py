from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep kernels and trained models of this run apart from the user's, shared by its tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PAREDOWN_CACHE", "PAREDOWN_MODELS"):
            patch.delenv(name, raising=False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
