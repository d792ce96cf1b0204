"""Settings of every test, made before jax is imported."""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
quick_to_compile = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if version("jaxlib").startswith("0.10."):  # without fusion emitters, tests take 2/3 of the time
    quick_to_compile += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", quick_to_compile)

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # else this is a worker, whose parent has made the folder
    programs = tempfile.mkdtemp(prefix="lumina-programs-")
    atexit.register(shutil.rmtree, programs, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs  # tests and the processes they start compile a program once
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


def pytest_collection_finish() -> None:
    """Search for garbage less often: the modules of jax and transformers hold millions of objects that stay."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
