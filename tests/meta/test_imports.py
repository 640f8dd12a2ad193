"""`import sample_attention` needs torch and nothing else, and does nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "sample_attention"
OPTIONAL = ("transformers", "accelerate", "triton", "matplotlib", "gguf", "typer", "rich")
# What may need an extra; everything else of the package has to import with torch alone.
MAY_NEED_EXTRAS = ("cli", "integrations", "models", "bench", "tuning", "eval", "baselines")

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
        if parts and parts[0] not in MAY_NEED_EXTRAS and "triton" not in parts:
            names.append(".".join(("sample_attention", *parts)))
    return names


def test_the_probe_sees_a_forbidden_import():
    assert probe("matplotlib")["errors"]


def test_import_needs_torch_only_and_is_inert(request):
    report = probe("sample_attention")
    assert not report["errors"]
    assert not report["cuda"], "importing the package initialised CUDA"
    assert not report["torch_changed"], "importing the package changed torch's settings"
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        milliseconds = 1000 * report["seconds"]
        terminal.write_line(f" import sample_attention: {milliseconds:.0f} ms beyond torch")


def test_core_modules_need_torch_only():
    modules = core_modules()
    assert {"sample_attention.api", "sample_attention.reference"} <= set(modules)
    assert not probe(*modules)["errors"]


@pytest.mark.parametrize("extra", MAY_NEED_EXTRAS)
def test_the_package_itself_imports_no_optional_part(extra):
    code = f"import sys, sample_attention; sys.exit('sample_attention.{extra}' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or f"sample_attention.{extra} is loaded"
