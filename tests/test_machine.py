"""What is said of a machine: names that tell two apart, cores that may be used, the CUDA driver."""

import ctypes
import platform
import sys
from types import SimpleNamespace

import pytest

from pipeline import machine

GRAVITON = """\
processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd bf16
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd0c
"""
BIG_LITTLE = GRAVITON + GRAVITON.replace("0xd0c", "0xd05") + GRAVITON


@pytest.fixture(autouse=True)
def asked_afresh():
    """What a machine is does not change, except in these tests."""
    answers = [x for x in vars(machine).values() if hasattr(x, "cache_clear")]
    for answer in answers:
        answer.cache_clear()
    yield
    for answer in answers:
        answer.cache_clear()


@pytest.mark.parametrize(
    ("cpuinfo", "device_tree", "name"),
    [
        ("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz: fast\n", "", "Some CPU @ 2 GHz: fast"),
        (GRAVITON, "Raspberry Pi 5 Model B Rev 1.0\0", "Raspberry Pi 5 Model B Rev 1.0"),
        (GRAVITON, "", "CPU 0x41/0xd0c"),
        (BIG_LITTLE, "", "CPU 0x41/0xd05 + 0x41/0xd0c"),
        ("cpu\t: POWER9\n", "", ""),
        ("", "", ""),
    ],
)
def test_the_name_of_a_linux_cpu(cpuinfo, device_tree, name):
    assert machine.linux_cpu(cpuinfo, device_tree) == name


def test_a_mac_is_asked_for_its_chip(tmp_path, monkeypatch):
    sysctl = tmp_path / "sysctl"
    wanted = "-n machdep.cpu.brand_string"
    sysctl.write_text(f'#!/bin/sh\n[ "$*" = "{wanted}" ] && echo "Apple M4 Pro"\n')
    sysctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert machine.cpu_name().startswith("Apple M4 Pro, ")


def test_a_nameless_cpu_is_known_by_its_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")
    monkeypatch.setattr(machine, "DEVICE_TREE", tmp_path / "none")
    assert f" of {platform.node()}, " in machine.cpu_name()


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("max 100000", None),
        ("-1 100000", None),
        ("", None),
        ("100000", None),
        ("100000 0", None),
        ("400000 100000", 4),
        ("250000 100000\n", 2),
        ("50000 100000", 1),
    ],
)
def test_cores_of_a_quota(limit, cores):
    assert machine.quota_cores(limit) == cores


def test_cores_are_no_more_than_the_container_s(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    unlimited = machine.cores()
    (tmp_path / "cpu.max").write_text(f"{(unlimited + 1) * 100000} 100000\n")
    assert machine.cores() == unlimited
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert machine.cores() == 1
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert machine.cores() == 1


def test_without_a_cuda_driver(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    answers = (machine.cuda_devices(), machine.cuda_name(), machine.driver_version())
    assert answers == (0, None, None)


@pytest.mark.parametrize("gpus", [0, 2])
def test_what_a_cuda_driver_answers(monkeypatch, gpus):
    def answer(target, value):
        target._obj.value = value
        return 0

    def name(buffer, length, device):
        buffer.value = b"NVIDIA H100"
        return 0

    driver = SimpleNamespace(
        cuInit=lambda flags: 0 if gpus else 100,
        cuDeviceGetCount=lambda target: answer(target, gpus),
        cuDeviceGet=answer,
        cuDeviceGetName=name,
        cuDriverGetVersion=lambda target: answer(target, 12080),
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert machine.cuda_devices() == gpus
    assert machine.cuda_name() == ("NVIDIA H100" if gpus else None)
    assert machine.driver_version() == "12.8"


@pytest.mark.gpu
@pytest.mark.skipif(machine.cuda_devices() == 0, reason="needs a CUDA GPU")
def test_the_gpu_of_this_machine():
    torch = pytest.importorskip("torch")
    assert machine.cuda_name() == torch.cuda.get_device_name(0)
    assert machine.driver_version()
