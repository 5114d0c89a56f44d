"""Eight fake CPU devices, caches of its own, and the real data where there is any."""

import os
import pathlib
import tempfile

import hypothesis
import jax
import pytest

# Before anything touches a backend. Most of a first run is compiling; unoptimised, half of that.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Compiled programs outlive the test run; a second one starts faster.
_CACHE = pathlib.Path(tempfile.gettempdir()) / f"lmjax-test-programs-{os.getuid()}"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

hypothesis.settings.register_profile("lmjax", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("lmjax")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared data of the tests goes where nothing else looks."""
    os.environ["LMJAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """Real texts and vocabularies, where LMJAX_TEST_DATA says they are."""
    place = os.environ.get("LMJAX_TEST_DATA")
    if not place:
        pytest.skip("LMJAX_TEST_DATA is not set: no real data to test with")
    return pathlib.Path(place)
