"""Where a number says it comes from."""

import types

import jax
import pytest

from experiments import provenance


def test_commit_of_a_checkout_and_of_a_copy(monkeypatch):
    monkeypatch.delenv("HESSABS_COMMIT", raising=False)
    monkeypatch.setattr(provenance.shutil, "which", lambda name: None)
    assert provenance.commit() == "unknown"
    monkeypatch.setenv("HESSABS_COMMIT", "0123abc")
    assert provenance.commit() == "0123abc"


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerators_are_named(monkeypatch, platform):
    chip = types.SimpleNamespace(platform=platform, device_kind="Chip 9")
    monkeypatch.setattr(jax, "devices", lambda: [chip, chip])
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert provenance.hardware().startswith("2 x Chip 9, ")
    assert provenance.platform_suffix() == f"_{platform}"


def test_a_cpu_is_named_alone():
    assert provenance.hardware() == provenance._processor()
    assert provenance.platform_suffix() == ""
