"""Checks of the evaluation toolkits and of Tango's integrations. A toolkit that is not installed is no fault."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from tango.doctor import Finding
from tango.doctor.worker import one_line


def _imported(name: str, package: str, distribution: str, modules: tuple[str, ...], needs: str = "") -> Finding:
    if find_spec(package) is None:
        return Finding(name, "note", "not installed")
    if needs and find_spec(needs) is None:
        return Finding(name, "failed", f"{package} is installed without {needs}", f"install {needs}; see its README")
    try:
        for module in modules:
            import_module(module)
    except (Exception, SystemExit) as error:
        way_out = f"install the tested versions (requirements-toolkits.txt), or pip uninstall {distribution}"
        return Finding(name, "failed", f"it is installed, but {package} cannot be imported: {one_line(error)}", way_out)
    try:
        return Finding(name, "ok", f"{distribution} {version(distribution)}")
    except PackageNotFoundError:  # a source folder on the path
        return Finding(name, "ok", f"imported from {import_module(package).__path__[0]}")


def lmms_eval() -> Finding:
    """The modules of lmms-eval that its command needs can be imported."""
    return _imported("lmms_eval", "lmms_eval", "lmms-eval", ("lmms_eval.evaluator", "lmms_eval.models"))


def tango_lmms_eval() -> Finding:
    """Tango's integration with lmms-eval can be imported."""
    modules = ("tango_lmms_eval", "tango_lmms_eval.models")
    return _imported("tango_lmms_eval", "tango_lmms_eval", "tango-lmms-eval", modules, needs="lmms_eval")


def vlmevalkit() -> Finding:
    """The modules of VLMEvalKit that its runner needs can be imported."""
    return _imported("vlmevalkit", "vlmeval", "ms-vlmeval", ("vlmeval.config", "vlmeval.dataset"))


def tango_vlmeval() -> Finding:
    """Tango's integration with VLMEvalKit can be imported."""
    modules = ("tango_vlmeval.launcher", "tango_vlmeval.model", "tango_vlmeval.data")
    return _imported("tango_vlmeval", "tango_vlmeval", "tango-vlmevalkit", modules, needs="vlmeval")
