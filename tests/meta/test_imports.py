"""`import sample_attention` needs torch and nothing else, and does nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "sample_attention"
OPTIONAL = ("transformers", "accelerate", "triton", "matplotlib", "gguf", "typer", "rich")
# What may need an extra; everything else of the package has to import with torch alone.
KERNELS = ("triton", "hopper")
MAY_NEED_EXTRAS = ("cli", "integrations", "lab", "methods")

# Runs in a fresh process: blocks the optional packages, then imports and reports.
PROBE = """
import importlib, json, sys, time

optional, modules = json.loads(sys.argv[1])

class Blocked(ImportError):
    pass

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in optional:
            raise Blocked(f"{name} is imported")

import torch  # has its own guarded imports of optional packages: block after it

held = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in optional}
threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
sys.meta_path.insert(0, Blocker())

start = time.perf_counter()
errors = {}
for module in modules:
    try:
        importlib.import_module(module)
    except Blocked as error:
        errors[module] = str(error)
json.dump(
    {
        "errors": errors,
        "seconds": time.perf_counter() - start,
        "loaded": [name for name in sys.modules if name.startswith("sample_attention")],
        "cuda": torch.cuda.is_initialized(),
        "torch_changed": (threads, dtype) != (torch.get_num_threads(), torch.get_default_dtype()),
    },
    sys.stdout,
)
"""


def probe(*modules):
    command = [sys.executable, "-W", "error::ImportWarning", "-c", PROBE]
    done = subprocess.run(
        [*command, json.dumps([OPTIONAL, modules])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def core_modules():
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        kernel = path.stem.endswith("_kernel") or any(x in parts[:-1] for x in KERNELS)
        if parts and parts[0] not in MAY_NEED_EXTRAS and not kernel:
            names.append(".".join(("sample_attention", *parts)))
    return names


def test_the_probe_sees_a_forbidden_import():
    assert probe("matplotlib")["errors"]


@pytest.fixture(scope="module")
def bare_import():
    return probe("sample_attention")


def test_import_needs_torch_only_and_is_inert(bare_import, capsys):
    assert not bare_import["errors"]
    assert not bare_import["cuda"], "importing the package initialised CUDA"
    assert not bare_import["torch_changed"], "importing the package changed torch's settings"
    with capsys.disabled():
        print(
            f" import sample_attention: {1000 * bare_import['seconds']:.0f} ms beyond torch ",
            end="",
        )


def test_core_modules_need_torch_only():
    modules = core_modules()
    assert {"sample_attention.api", "sample_attention.reference"} <= set(modules)
    assert not probe(*modules)["errors"]


def test_the_package_itself_imports_no_optional_part(bare_import):
    loaded = set(bare_import["loaded"])
    assert "sample_attention" in loaded
    assert not loaded & {f"sample_attention.{part}" for part in MAY_NEED_EXTRAS}
